"""What a page shows by the size of the object: a plot and a table (PatchCleanser, Figure 11)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.certification.report import Report, labels, numbers
from certmask_jax.certification.report.by_object_size import SizeBin, size_bins
from certmask_jax.certification.report.image_groups import Share
from certmask_jax.pages import charts
from certmask_jax.pages.image_data import key_of

_APART = 0.8  # percent between points of a bin, or those of the same height would hide each other
_MOST_CURVES = 7
"""Results in one plot: it has as many colours."""


class ObjectSizes(NamedTuple):
    """How much of each image of a report its objects cover.

    Attributes:
      shares: ``float[T]`` of what the model sees; NaN where the image has no box.
      source: the file that says so, by its name.
      said: what to know of it, in sentences.
    """

    shares: NDArray[np.float64]
    source: str
    said: tuple[str, ...] = ()


def by_size(report: Report, sizes: ObjectSizes) -> dict[str, Any] | None:
    """The plot, ``svg`` with its ``legend``, and the ``rows`` of the table; None without a box."""
    bins = size_bins(report, sizes.shares)
    if not bins:
        return None
    known = int(np.isfinite(sizes.shares).sum())
    said = [
        f"{known:,} of {counted(report.num_images, 'image')} have boxes in {sizes.source}.",
        *sizes.said,
    ]
    if len(report.defenses) > _MOST_CURVES:
        said.append(f"The plot is of the first {_MOST_CURVES} results; the table has all.")
    return {**_plot(report, bins), "rows": [_row(report, one) for one in bins], "said": said}


def covered(report: Report, sizes: ObjectSizes) -> dict[int, dict[str, Any]]:
    """Row of the report -> the percent that its objects cover, and its row of the table."""
    return {
        row: {"o": round(100 * float(sizes.shares[row]), 1), "bin": number}
        for number, one in enumerate(size_bins(report, sizes.shares))
        for row in one.rows.tolist()
    }


def bin_name(one: SizeBin) -> str:
    """``"10 to 20%"``, of what the model sees."""
    return f"{100 * one.low:g} to {100 * one.high:g}%"


def _plot(report: Report, bins: tuple[SizeBin, ...]) -> dict[str, Any]:
    names = labels.in_a_line(report.defenses)
    series, legend = [], []
    count = min(len(names), _MOST_CURVES) + 1
    for number, name in enumerate(names[:_MOST_CURVES]):
        at = _APART * (number - (count - 1) / 2)
        points = [_point(one, one.certified[number], f"{name}: certified", at) for one in bins]
        series.append(charts.Series(name, points, joined=True, colour=number))
        legend.append(
            {"name": f"{key_of(number)} {name}", "colour": charts.colour(number), "filled": True}
        )
    at = _APART * (count - 1) / 2
    points = [_point(one, one.undefended, "no defense: clean", at) for one in bins]
    series.append(charts.Series("no defense", points, False, True, True, colour=7))
    legend.append({"name": "no defense, clean", "colour": charts.colour(7), "filled": False})
    svg = charts.plot(
        series,
        x_title="percent of the image that objects cover",
        title="Certified accuracy in percent against the share of the image that objects cover",
        ticks=sorted({100 * end for one in bins for end in (one.low, one.high)}),
    )
    return {"svg": svg, "legend": legend}


def _point(one: SizeBin, share: Share, what: str, aside: float) -> charts.Point:
    return charts.Point(
        50 * (one.low + one.high) + aside,
        share.fraction,
        *share.interval,
        f"{what} {numbers.percent(share.fraction)}% of {counted(len(one.rows), 'image')} whose "
        "objects cover "
        f"{bin_name(one)}",
    )


def _row(report: Report, one: SizeBin) -> dict[str, Any]:
    return {
        "name": bin_name(one),
        "count": len(one.rows),
        "undefended": numbers.with_interval(*one.undefended),
        "cells": [
            {
                "certified": numbers.with_interval(*certified),
                "clean": numbers.percent(clean.fraction),
                "bar": charts.bar(*certified, "proved"),
            }
            for certified, clean in zip(one.certified, one.clean, strict=True)
        ],
    }
