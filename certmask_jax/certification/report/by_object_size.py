"""Accuracies by the share of the image that the object covers (PatchCleanser, Figure 11)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.certification.report.image_groups import Share, group
from certmask_jax.certification.report.records import Report

TENTHS = tuple(tenth / 10 for tenth in range(11))
"""The ends of ten bins of equal width."""


class SizeBin(NamedTuple):
    """The images whose objects cover from ``low`` to below ``high`` of what the model sees.

    Attributes:
      low, high: fractions; the last bin contains its upper end.
      rows: ``int[n]``, which images of the report, one at least.
      undefended: right without a defense.
      clean, certified: of each defense of the report, in its order.
    """

    low: float
    high: float
    rows: NDArray[np.intp]
    undefended: Share
    clean: tuple[Share, ...]
    certified: tuple[Share, ...]


def size_bins(
    report: Report, shares: ArrayLike, *, ends: Sequence[float] = TENTHS
) -> tuple[SizeBin, ...]:
    """What a report says of its images by the size of their objects.

    Args:
      report: with rows of T images.
      shares: ``float[T]``, from 0 to 1: of what the model sees, how much the objects of each image
        cover (``data.object_shares``); NaN where that is not known. These images are in no bin.
      ends: ascending ends of the bins.

    Returns:
      The bins that have images, from small objects to large ones.

    Raises:
      ValueError: for a report without rows of images, another number of shares, or ends that do not
        ascend.
    """
    covered, bounds = np.asarray(shares, np.float64), np.asarray(ends, np.float64)
    if not len(report.ids):
        raise ValueError("report: expected one with rows of images, got one without")
    if covered.shape != (len(report.ids),):
        raise ValueError(
            f"shares: expected one for each of {len(report.ids)} images, got shape {covered.shape}"
        )
    if bounds.ndim != 1 or len(bounds) < 2 or not (np.diff(bounds) > 0).all():
        raise ValueError(f"ends: expected two or more that ascend, got {tuple(ends)}")
    made = []
    for number, (low, high) in enumerate(itertools.pairwise(bounds.tolist())):
        is_last = number == len(bounds) - 2
        rows = np.flatnonzero(
            (covered >= low) & ((covered <= high) if is_last else (covered < high))
        )
        if len(rows):
            made.append(SizeBin(low, high, *group(report, rows)))
    return tuple(made)
