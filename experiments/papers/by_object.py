"""Certified accuracy against how much of the image its object covers, where boxes are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from certmask_jax.certification.report import Report
from certmask_jax.certification.report.by_object_size import Share, SizeBin, size_bins
from certmask_jax.certification.report.numbers import with_interval
from certmask_jax.pages.charts import Point, Series
from certmask_jax.pages.object_sizes import ObjectSizes
from experiments.papers import figures
from experiments.papers.accuracy import here, measured
from experiments.papers.recipes import Table
from experiments.papers.sheets import NOT_AT_HAND, Sheet


def sheet_of(
    table: Table,
    results: Mapping[str, Mapping[str, Any]],
    reports: Mapping[str, Report],
    sizes: ObjectSizes,
) -> Sheet:
    """A row for each tenth of the image that objects cover, as far as images have such objects.

    Args:
      table: whose first row is shown; the others are of other data.
      results, reports: of the run of each ``Row.patch``, as written and as read back.
      sizes: of the objects of that report's images.

    Raises:
      ValueError: for a run without rows of images.
    """
    row = table.rows[0]
    report = reports[row.patch]
    at = [one.spec for one in report.defenses].index(row.defense)
    bins = size_bins(report, sizes.shares)
    known = int(np.isfinite(sizes.shares).sum())
    series = [
        Series(
            name,
            [_point(one, kind, at, name) for one in bins],
            kind == "certified",
            joined=True,
            colour=number,
        )
        for number, (name, kind) in enumerate(_KINDS)
    ]
    return Sheet(
        measured=f"{measured(results[row.patch])} Against `{row.patch}`, `{row.defense}`. "
        f"{known:,} of {report.num_images:,} images have boxes in {sizes.source}.",
        titles=("objects cover", "images", "undefended", "clean", "certified", "the paper's"),
        rows=[
            [
                f"{100 * one.low:g} to {100 * one.high:g}%",
                f"{len(one.rows):,}",
                *(with_interval(*_share(one, kind, at)) for _, kind in reversed(_KINDS)),
                NOT_AT_HAND,
            ]
            for one in bins
        ],
        numbers=[_numbers(one, at) for one in bins],
        record={
            "here": here(results[row.patch]),
            "defense": row.defense,
            "with_boxes": known,
            "bins": [_numbers(one, at) for one in bins],
        },
        below=["The paper's figures are not at hand.", *sizes.said],
        svg=figures.drawn(
            series, "percent of the image that objects cover", f"{table.name}: {table.title}"
        ),
    )


_KINDS = (("certified", "certified"), ("clean, defended", "clean"), ("undefended", "undefended"))


def _share(one: SizeBin, kind: str, at: int) -> Share:
    of: Share | tuple[Share, ...] = getattr(one, kind)
    return of if isinstance(of, Share) else of[at]


def _point(one: SizeBin, kind: str, at: int, name: str) -> Point:
    fraction, interval = _share(one, kind, at)
    about = f"{name}, {100 * one.low:g} to {100 * one.high:g}%: {100 * fraction:.1f}%"
    return Point(50 * (one.low + one.high), fraction, *interval, about)


def _numbers(one: SizeBin, at: int) -> dict[str, Any]:
    found: dict[str, Any] = {"low": one.low, "high": one.high, "images": len(one.rows)}
    for _, kind in reversed(_KINDS):
        fraction, (low, high) = _share(one, kind, at)
        found |= {kind: fraction, f"{kind}_low": low, f"{kind}_high": high}
    return found
