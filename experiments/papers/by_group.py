"""What tables of groups of the images of one run share: their columns, numbers and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from certmask_jax.certification.report import Report
from certmask_jax.certification.report.by_object_size import SizeBin
from certmask_jax.certification.report.image_groups import Group
from certmask_jax.certification.report.numbers import with_interval
from certmask_jax.pages.charts import Point, Series
from experiments.papers import figures
from experiments.papers.recipes import Row, Table
from experiments.papers.sheets import NOT_AT_HAND

COLUMNS = ("images", "undefended", "clean", "certified", "the paper's")
"""Titles, after that of the name of a group."""

_KINDS = {"undefended": "undefended", "clean": "clean, defended", "certified": "certified"}


class Named(NamedTuple):
    """A group of a table.

    Attributes:
      name: as the table and the points of the figure call it.
      x: where it is on the axis of the figure.
      numbers: its row of the CSV file.
    """

    name: str
    x: float
    numbers: Mapping[str, Any]


def numbers(group: Group | SizeBin, report: Report, row: Row) -> dict[str, Any]:
    """``images``, and accuracies with the defense of a row: fractions, with 95% intervals.

    Args:
      group: of the images of the report.
      report: of a run with that defense.
      row: of the table.
    """
    at = [one.spec for one in report.defenses].index(row.defense)
    record: dict[str, Any] = {"images": len(group.rows)}
    shares = (group.undefended, group.clean[at], group.certified[at])
    for kind, (fraction, (low, high)) in zip(_KINDS, shares, strict=True):
        record |= {kind: fraction, f"{kind}_low": low, f"{kind}_high": high}
    return record


def cells(groups: Sequence[Named]) -> list[list[str]]:
    """Rows of the table: the name of a group, and ``COLUMNS``."""
    return [
        [
            one.name,
            f"{one.numbers['images']:,}",
            *(with_interval(*_ends(one, kind)) for kind in _KINDS),
            NOT_AT_HAND,
        ]
        for one in groups
    ]


def drawn(table: Table, groups: Sequence[Named], axis: str) -> str:
    """The figure: a curve for each kind of accuracy; empty without groups."""
    series = [
        Series(
            called,
            [_point(one, kind, called) for one in groups],
            filled=kind == "certified",
            joined=True,
            colour=number,
        )
        for number, (kind, called) in enumerate(reversed(_KINDS.items()))
    ]
    return figures.drawn(series, axis, f"{table.name}: {table.title}")


def _ends(one: Named, kind: str) -> tuple[float, tuple[float, float]]:
    of = one.numbers
    return of[kind], (of[f"{kind}_low"], of[f"{kind}_high"])


def _point(one: Named, kind: str, called: str) -> Point:
    fraction, between = _ends(one, kind)
    return Point(one.x, fraction, *between, f"{called}, {one.name}: {100 * fraction:.1f}%")
