"""Two verdicts on the same images: how much they differ, with an interval, and on which images.

Two runs on the same images are not two samples: most images are answered alike by both, so the
interval of each says little of their difference. What differs are the images on which one holds and
the other does not (McNemar, 1947).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.report.labels import patch
from certmask_jax.certification.report.records import (
    DefenseResult,
    Interval,
    Report,
    wilson_interval,
)


class Paired(NamedTuple):
    """Two fractions of the same images.

    Attributes:
      first, second: the fractions.
      gained: images where the second holds and the first does not, as indices.
      lost: where the first holds and the second does not.
      interval: 95%, of ``second - first`` (Newcombe, 1998, method 10).
      p_value: of no difference: the exact two-sided test of McNemar.
    """

    first: float
    second: float
    gained: NDArray[np.intp]
    lost: NDArray[np.intp]
    interval: Interval
    p_value: float

    @property
    def difference(self) -> float:
        """``second - first``."""
        return self.second - self.first


class Match(NamedTuple):
    """A defense that two runs have in common, and how they differ in it.

    Attributes:
      name: of the defense; with its patch where a run has several.
      first, second: its results.
      certified, clean: the differences of the worst case, and of the clean accuracy.
    """

    name: str
    first: DefenseResult
    second: DefenseResult
    certified: Paired
    clean: Paired


def compared(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Two verdicts ``bool[T]`` on the same images.

    Raises:
      ValueError: for no image, or arrays of different lengths.
    """
    one, two = np.asarray(first, np.bool_), np.asarray(second, np.bool_)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise ValueError(
            f"first, second: expected two verdicts on the same images, bool[T] each, got shapes "
            f"{one.shape} and {two.shape}"
        )
    gained, lost = np.flatnonzero(two & ~one), np.flatnonzero(one & ~two)
    counts = (int((one & two).sum()), len(lost), len(gained), int((~one & ~two).sum()))
    return Paired(
        float(one.mean()), float(two.mean()), gained, lost, _newcombe(*counts), _mcnemar(*counts)
    )


def matches(first: Report, second: Report) -> list[Match]:
    """The defenses that two reports have in common, by what was typed and the threat.

    Raises:
      ValueError: for reports of other images than each other's, without rows of images, or that
        have no defense in common.
    """
    check_same_images(first, second)
    there = {(d.spec, d.threat): d for d in second.defenses}
    several = len({d.threat for d in first.defenses}) > 1
    label = first.per_image["label"]
    in_common = []
    for one in first.defenses:
        two = there.get((one.spec, one.threat))
        if two is None:
            continue
        in_common.append(
            Match(
                f"{one.spec} {patch(one.threat)}" if several else one.spec,
                one,
                two,
                compared(one.per_image["worst_case"], two.per_image["worst_case"]),
                compared(one.per_image["answer"] == label, two.per_image["answer"] == label),
            )
        )
    if not in_common:
        names = [", ".join(dict.fromkeys(d.spec for d in one.defenses)) for one in (first, second)]
        raise ValueError(
            f"expected two runs with a defense in common, against the same patch, got {names[0]} "
            f"against {first.defenses[0].threat}, and {names[1]} against "
            f"{second.defenses[0].threat}"
        )
    return in_common


def unmatched(first: Report, second: Report) -> tuple[list[str], list[str]]:
    """The defenses that only the one of two reports has, and those that only the other has.

    Each with its patch, where the two know several.
    """
    several = len({d.threat for d in (*first.defenses, *second.defenses)}) > 1
    one, two = ({(d.spec, d.threat): d for d in of.defenses} for of in (first, second))

    def names(own: Mapping[Any, DefenseResult], other: Mapping[Any, DefenseResult]) -> list[str]:
        alone = [d for key, d in own.items() if key not in other]
        return [f"{d.spec} {patch(d.threat)}" if several else d.spec for d in alone]

    return names(one, two), names(two, one)


def check_same_images(first: Report, second: Report) -> None:
    """``ValueError`` unless two reports have rows of the same images with the same labels."""
    for one in (first, second):
        if not len(one.ids):
            raise ValueError("expected runs with per_image.csv, by which images are compared")
    if tuple(first.ids) != tuple(second.ids):
        common = len({*first.ids} & {*second.ids})
        raise ValueError(
            f"expected two runs of the same images, got one of {len(first.ids):,} and one of "
            f"{len(second.ids):,}, of which {common:,} are the same"
        )
    if not np.array_equal(first.per_image["label"], second.per_image["label"]):
        raise ValueError(
            "expected two runs of the same images with the same labels, got other labels"
        )


def _mcnemar(both: int, lost: int, gained: int, neither: int) -> float:
    changed = lost + gained
    tail = sum(math.comb(changed, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**changed) if changed else 1.0


def _newcombe(both: int, lost: int, gained: int, neither: int) -> Interval:
    """Wilson's intervals of the two fractions, squared and added, less what they share."""
    count = both + lost + gained + neither
    one, two = (both + gained) / count, (both + lost) / count  # the second run less the first
    (low_1, high_1), (low_2, high_2) = wilson_interval(one, count), wilson_interval(two, count)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    shared = float(both * neither - lost * gained)
    if shared > 0:
        shared = max(shared - count / 2, 0)
    phi = shared / math.sqrt(product) if product else 0.0

    def spread(left: float, right: float) -> float:
        return math.sqrt(max(0.0, left**2 - 2 * phi * left * right + right**2))

    low = one - two - spread(one - low_1, high_2 - two)
    high = one - two + spread(high_1 - one, two - low_2)
    return max(-1.0, low), min(1.0, high)
