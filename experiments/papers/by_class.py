"""Accuracy of each class, from the rows of images of the runs of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from certmask_jax.certification.report import Interval, Report, wilson_interval
from certmask_jax.certification.report.numbers import with_interval
from certmask_jax.pages.charts import Point, Series
from experiments.papers import figures
from experiments.papers.accuracy import here, measured
from experiments.papers.recipes import Table
from experiments.papers.sheets import NOT_AT_HAND, Sheet

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
    found = classes(report, row.defense)
    printed: Sequence[Mapping[str, Any]] = found
    below = ["The paper's figures are not at hand."]
    if len(found) > _MOST:
        printed = [*found[: _MOST // 2], *found[-_MOST // 2 :]]
        below.append(
            f"These are the {_MOST // 2} classes of {len(found):,} of which most is certified, and "
            f"the {_MOST // 2} of which least is; table.csv has all."
        )
    keys = ("undefended", "clean", "certified")
    return Sheet(
        measured=f"{measured(results[row.patch])} Against `{row.patch}`, `{row.defense}`.",
        titles=("class", "images", "undefended", "clean", "certified", "the paper's"),
        rows=[
            [one["class"], f"{one['images']:,}"]
            + [with_interval(one[key], _between(one, key)) for key in keys]
            + [NOT_AT_HAND]
            for one in printed
        ],
        numbers=found,
        record={"here": here(results[row.patch]), "defense": row.defense, "classes": found},
        below=below,
        svg=figures.drawn(
            [
                Series(
                    name,
                    [
                        Point(rank, one[key], *_between(one, key), f"{one['class']}: {name}")
                        for rank, one in enumerate(found, 1)
                    ],
                    filled=key == "certified",
                    joined=True,
                    colour=number,
                )
                for number, (name, key) in enumerate(
                    (("certified", "certified"), ("clean, defended", "clean"), ("undefended",) * 2)
                )
            ],
            "class, the most certified first",
            f"{table.name}: {table.title}",
        ),
    )


def classes(report: Report, spec: str) -> list[dict[str, Any]]:
    """Each class that has images: fractions of them with 95% intervals, the most certified first.

    Args:
      report: with rows of images.
      spec: of the defense.
    """
    label = report.per_image["label"]
    (result,) = [one for one in report.defenses if one.spec == spec]
    holds = {
        "undefended": report.per_image["undefended"] == label,
        "clean": result.per_image["answer"] == label,
        "certified": result.per_image["worst_case"],
    }
    found = []
    for number in np.unique(label):
        mine = label == number
        count = int(mine.sum())
        name = str(number)
        if number < len(report.class_names):
            name = str(report.class_names[number])
        one: dict[str, Any] = {"class": name, "images": count}
        for key, of in holds.items():
            share = float(of[mine].mean())
            low, high = wilson_interval(share, count)
            one |= {key: share, f"{key}_low": low, f"{key}_high": high}
        found.append(one)
    return sorted(found, key=lambda one: (-one["certified"], -one["clean"]))


def _between(one: Mapping[str, Any], key: str) -> Interval:
    return one[f"{key}_low"], one[f"{key}_high"]
