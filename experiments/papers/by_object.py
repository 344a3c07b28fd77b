"""Certified accuracy against how much of the image its object covers, where boxes are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from certmask_jax._text import counted
from certmask_jax.certification.report import Report
from certmask_jax.certification.report.by_object_size import size_bins
from certmask_jax.pages.object_sizes import ObjectSizes, bin_name
from experiments.papers import by_group
from experiments.papers.accuracy import here, measured
from experiments.papers.by_group import Named
from experiments.papers.recipes import Table
from experiments.papers.sheets import Sheet


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
    known = int(np.isfinite(sizes.shares).sum())
    bins = [
        Named(
            bin_name(one),
            50 * (one.low + one.high),
            {"low": one.low, "high": one.high, **by_group.numbers(one, report, row)},
        )
        for one in size_bins(report, sizes.shares)
    ]
    numbers = [one.numbers for one in bins]
    return Sheet(
        measured=f"{measured(results[row.patch])} Against `{row.patch}`, `{row.defense}`. "
        f"{known:,} of {counted(report.num_images, 'image')} have boxes in {sizes.source}.",
        titles=("objects cover", *by_group.COLUMNS),
        rows=by_group.cells(bins),
        numbers=numbers,
        record={
            "here": here(results[row.patch]),
            "defense": row.defense,
            "with_boxes": known,
            "bins": numbers,
        },
        below=["The paper's figures are not at hand.", *sizes.said],
        svg=by_group.drawn(table, bins, "percent of the image that objects cover"),
    )
