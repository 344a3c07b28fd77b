"""Accuracy of each class, from the rows of images of the runs of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certmask_jax.certification.report import Report, image_groups
from certmask_jax.pages.mask_words import name_of
from experiments.papers import by_group
from experiments.papers.accuracy import here, measured
from experiments.papers.by_group import Named
from experiments.papers.recipes import Row, Table
from experiments.papers.sheets import Sheet

_MOST = 20
"""Classes that are printed; of more, the best and the worst."""


def sheet_of(
    table: Table, results: Mapping[str, Mapping[str, Any]], reports: Mapping[str, Report]
) -> Sheet:
    """A row a class, the most certified first.

    Args:
      table: whose first row is shown; the others are of other data.
      results, reports: of the run of each ``Row.patch``, as written and as read back.

    Raises:
      ValueError: where the run has no rows of images.
    """
    row = table.rows[0]
    report = reports[row.patch]
    if not len(report.ids):
        raise ValueError(
            f"{table.name}: expected per_image.csv in the folder of the run, which says what "
            "became of each image, got none; choose another --out, and run again"
        )
    ranked = classes(report, row)
    printed: Sequence[Named] = ranked
    below = ["The paper's figures are not at hand."]
    if len(ranked) > _MOST:
        printed = [*ranked[: _MOST // 2], *ranked[-_MOST // 2 :]]
        below.append(
            f"These are the {_MOST // 2} classes of {len(ranked):,} of which most is certified, "
            f"and the {_MOST // 2} of which least is; table.csv has all."
        )
    numbers = [one.numbers for one in ranked]
    return Sheet(
        measured=f"{measured(results[row.patch])} Against `{row.patch}`, `{row.defense}`.",
        titles=("class", *by_group.COLUMNS),
        rows=by_group.cells(printed),
        numbers=numbers,
        record={"here": here(results[row.patch]), "defense": row.defense, "classes": numbers},
        below=below,
        svg=by_group.drawn(table, ranked, "class, the most certified first"),
    )


def classes(report: Report, row: Row) -> list[Named]:
    """Each class that has images, with the defense of a row, the most certified first.

    Args:
      report: with rows of images.
      row: whose defense is one of the report's.
    """
    records = [
        {"class": name_of(label, report.class_names), **by_group.numbers(group, report, row)}
        for label, group in image_groups.by_class(report).items()
    ]
    records.sort(key=lambda one: (-one["certified"], -one["clean"]))
    return [Named(one["class"], rank, one) for rank, one in enumerate(records, 1)]
