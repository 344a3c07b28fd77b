"""Accuracies of groups of a run's images, each with its interval; and the groups by class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.report.records import Interval, Report, wilson_interval


class Share(NamedTuple):
    """A fraction of the images of a group, and its interval (95%, Wilson)."""

    fraction: float
    interval: Interval


class Group(NamedTuple):
    """What a report says of some of its images.

    Attributes:
      rows: ``int[n]``, which images of the report, one at least.
      undefended: right without a defense.
      clean, certified: of each defense of the report, in its order.
    """

    rows: NDArray[np.intp]
    undefended: Share
    clean: tuple[Share, ...]
    certified: tuple[Share, ...]


def group(report: Report, rows: NDArray[np.intp]) -> Group:
    """Some of the images of a report with rows of images; ``rows`` as ``Group`` has them."""
    label = report.per_image["label"][rows]
    return Group(
        rows,
        _share(report.per_image["undefended"][rows] == label),
        tuple(_share(one.per_image["answer"][rows] == label) for one in report.defenses),
        tuple(_share(one.per_image["worst_case"][rows]) for one in report.defenses),
    )


def by_class(report: Report) -> dict[int, Group]:
    """Each class that has images, ascending (PatchCleanser, Figure 13).

    Args:
      report: with rows of images.

    Raises:
      ValueError: for a report without.
    """
    if not len(report.ids):
        raise ValueError("report: expected one with rows of images, got one without")
    label = report.per_image["label"]
    return {int(one): group(report, np.flatnonzero(label == one)) for one in np.unique(label)}


def _share(holds: NDArray[np.bool_]) -> Share:
    fraction = float(holds.mean())
    return Share(fraction, wilson_interval(fraction, len(holds)))
