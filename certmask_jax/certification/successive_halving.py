"""Which of many defenses are worth their passes: a search that drops the worse ones early.

All candidates see a few images, the better half of them twice as many, and so on. A candidate is
never dropped while it is on the front of what was measured, so what it may lose is known:

- One is dropped for its cost, or for a demand that it does not meet, only where the 95% interval of
  that number excludes the bound.
- One is dropped for another only if the other took no more passes on the same images and certified
  at least as many of them, and only once it cannot certify many more: ``Dropped.at_most``, the end
  of the 95% interval of their paired difference, is at most ``may_lose``.

What is not guaranteed: the intervals hold for one comparison each and not for all of them together;
where the other one is dropped in a later round, the two bounds add up; and passes that depend on
the image may differ on others. Here is nothing but numbers: who measures is the caller's affair.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.certification.report import Interval, wilson_interval

_Z = 1.959963984540054
_LEAST_IMAGES = 16  # of the first round, where there are


class Demand(NamedTuple):
    """A share of the images that something has to hold for."""

    holds: NDArray[np.bool_]  # [T]
    least: float  # fraction
    name: str  # for people

    @property
    def share(self) -> float:
        """The fraction of the images that it holds for."""
        return float(self.holds.mean())

    @property
    def is_met(self) -> bool:
        """Whether it holds for enough of these images."""
        return self.share >= self.least

    @property
    def is_hopeless(self) -> bool:
        """Whether the 95% interval of the share lies below what is asked for."""
        return wilson_interval(self.share, len(self.holds))[1] < self.least


class Measured(NamedTuple):
    """What one candidate did on T images."""

    certified: NDArray[np.float64]  # [T], 0 or 1, or a weighted mean of such over patch sizes
    costs: NDArray[np.float64]  # [T], in what the budget is of: passes, or milliseconds
    right: NDArray[np.bool_]  # [T], the answer without a patch
    demands: tuple[Demand, ...] = ()

    @property
    def worth(self) -> float:
        """What share of the images is certified."""
        return float(self.certified.mean())

    @property
    def cost(self) -> float:
        """Passes, or milliseconds, an image."""
        return float(self.costs.mean())

    def is_within(self, budget: float) -> bool:
        """Whether it keeps to the budget and meets all demands, on these images."""
        return self.cost <= budget and all(demand.is_met for demand in self.demands)


class Dropped(NamedTuple):
    """Why a candidate was not looked at any longer.

    Attributes:
      candidate: its number.
      images: on how many it was measured.
      why: ``"budget"``, the name of a demand, or ``"beaten"``.
      by: the candidate that beat it; None for other reasons.
      at_most: by how much it may certify more than that one, a fraction (95%, one comparison).
      cost: what it took on these images.
    """

    candidate: int
    images: int
    why: str
    by: int | None = None
    at_most: float = 0.0
    cost: float = 0.0


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
      front: numbers of the candidates within the budget that no other one beats, by passes.
      measured: candidate -> what it did on all images, of those that were measured on all.
      dropped: the others, in the order in which they were dropped.
    """

    front: tuple[int, ...]
    measured: dict[int, Measured]
    dropped: tuple[Dropped, ...]


def rungs(images: int, candidates: int) -> list[int]:
    """How many images each round has seen: each twice as many as the one before, all at last.

    As many rounds as halvings of the candidates, but no round of fewer than 16 images.
    """
    sizes = [images]
    while len(sizes) < math.ceil(math.log2(max(2, candidates))) and sizes[0] >= 2 * _LEAST_IMAGES:
        sizes.insert(0, -(-sizes[0] // 2))
    return sizes


def search(
    candidates: int,
    sizes: Sequence[int],
    measure: Callable[[Sequence[int], int], Sequence[Measured]],
    *,
    budget: float,
    may_lose: float,
) -> Search:
    """Measures candidates on more and more images, and fewer of them each time.

    Args:
      candidates: how many there are; they are called by their numbers.
      sizes: images of each round, ascending (``rungs``). One size is an exhaustive search.
      measure: (numbers of candidates, images) -> what each does on so many images, the first ones
        of the same images each time.
      budget: passes an image, or whatever else costs are.
      may_lose: by how much what is dropped for another may certify more than it, a fraction.

    Raises:
      ValueError: for no candidate.
    """
    if candidates < 1:
        raise ValueError("candidates: expected at least 1, got none")
    left, dropped = list(range(candidates)), list[Dropped]()
    for images in sizes[:-1]:
        known = dict(zip(left, measure(left, images), strict=True))
        gone = halve(known, budget=budget, may_lose=may_lose)
        dropped += gone
        left = [one for one in left if one not in {drop.candidate for drop in gone}]
        if not left:
            return Search((), {}, tuple(dropped))
    known = dict(zip(left, measure(left, sizes[-1]), strict=True))
    return Search(front(known, budget=budget), known, tuple(dropped))


def front(known: dict[int, Measured], *, budget: float) -> tuple[int, ...]:
    """The candidates within the budget that no other such one beats, by their passes."""
    within = {one: measured for one, measured in known.items() if measured.is_within(budget)}
    return tuple(sorted(_unbeaten(within), key=lambda one: within[one].cost))


def halve(known: dict[int, Measured], *, budget: float, may_lose: float) -> list[Dropped]:
    """Whom to drop: what is hopeless, what is beaten beyond doubt, and of the rest the worse half.

    Of the rest only what is beaten on these images goes, and may not certify more than what beats
    it by more than ``may_lose``: the surest first, until half is left. So all of the front stays,
    and of few images hardly anything goes.
    """
    dropped = []
    rest = dict(known)
    for one, measured in known.items():
        why = _hopeless(measured, budget)
        if why is not None:
            dropped.append(Dropped(one, len(measured.costs), why, cost=measured.cost))
            del rest[one]
    best = _unbeaten(rest)
    beaten = list[tuple[bool, Dropped]]()
    for one, measured in rest.items():
        others = [other for other in best if one not in best and _beats(rest, other, one)]
        if not others:
            continue
        lows = {by: paired_interval(rest[by].certified, measured.certified)[0] for by in others}
        by = max(others, key=lambda other: lows[other])
        most = max(0.0, -lows[by])
        drop = Dropped(one, len(measured.costs), "beaten", by, most, measured.cost)
        beaten.append((lows[by] > 0, drop))
    beaten.sort(key=lambda item: item[1].at_most)
    half = -(-len(rest) // 2)
    for surely, drop in beaten:
        if surely or (len(rest) > half and drop.at_most <= may_lose):
            dropped.append(drop)
            del rest[drop.candidate]
    return dropped


def paired_interval(one: ArrayLike, other: ArrayLike) -> Interval:
    """The 95% interval of the mean of ``one - other``, of the same images, each in [0, 1].

    Of zeros and ones it is Agresti and Min's (2005): the normal interval after half an image was
    added to each of the four cells. So a few images without a difference prove nothing.
    """
    differences = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    count = len(differences) + 2
    mean = differences.sum() / count
    spread = ((differences**2).sum() + 1) / count - mean**2
    half = _Z * math.sqrt(max(0.0, spread) / count)
    return max(-1.0, mean - half), min(1.0, mean + half)


def mean_interval(values: ArrayLike) -> Interval:
    """The normal 95% interval of a mean, such as that of passes an image."""
    array = np.asarray(values, np.float64)
    half = _Z * float(array.std()) / math.sqrt(len(array))
    return float(array.mean()) - half, float(array.mean()) + half


def _hopeless(measured: Measured, budget: float) -> str | None:
    if mean_interval(measured.costs)[0] > budget:
        return "budget"
    return next((demand.name for demand in measured.demands if demand.is_hopeless), None)


def _unbeaten(known: dict[int, Measured]) -> list[int]:
    return [one for one in known if not any(_beats(known, other, one) for other in known)]


def _beats(known: dict[int, Measured], one: int, other: int) -> bool:
    """Whether the one costs no more, certifies no less, and is better in something.

    Of equals the more accurate one wins, then the first. It also has to meet each demand, or come
    as near to it.
    """
    if one == other:
        return False
    first, second = known[one], known[other]
    if not all(
        mine.is_met or mine.share >= its.share
        for mine, its in zip(first.demands, second.demands, strict=True)
    ):
        return False
    better: tuple[Any, ...] = (-first.cost, first.worth, first.right.mean(), -one)
    worse: tuple[Any, ...] = (-second.cost, second.worth, second.right.mean(), -other)
    if better[:2] == worse[:2]:
        return better > worse
    return better[0] >= worse[0] and better[1] >= worse[1]
