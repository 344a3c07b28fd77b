"""What a table tells of one defense on some images: labels under its masks, and a map of places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification import verdicts
from certmask_jax.defenses import by_first_placement, by_placement
from certmask_jax.defenses.by_first_placement import FirstSpots
from certmask_jax.defenses.by_placement import HOLDS
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.patch_spots import Spots
from certmask_jax.defenses.places_at_once import asked_alone
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Shape
from certmask_jax.pages.map_limits import USUAL, MapLimits
from certmask_jax.tables.prediction_table import PredictionTable

GUARDED = 2
"""As ``by_placement.HOLDS``, of an image that a margin guard keeps from being certified."""

MOST_MASKS = 64
"""Of larger sets no table of pairs is shown: it would have more cells than a page has pixels."""


class PlaceMap(NamedTuple):
    """Where a patch of one shape could change the outcome on T images.

    Attributes:
      spots: the places, of S kinds; of several patches at once those of the first.
      states: ``int8[T, S]``, see ``by_placement.verdicts_at``, and ``GUARDED``; of several patches
        the worst over the places of the others.
      margins: ``float32[T, S]``, see ``by_placement.smallest_margins``.
      exact: whether a place that fails is lost; else nothing is proved there.
      worst: of several patches ``int[T, S]``, see ``by_first_placement.verdicts_at_first``.
      others: of several patches ``int64[G, K - 1, 4]``, see ``FirstSpots``.
    """

    spots: Spots
    states: NDArray[np.int8]
    margins: NDArray[np.float32]
    exact: bool
    worst: NDArray[np.intp] | None = None
    others: NDArray[np.int64] | None = None


class Inspected(NamedTuple):
    """One defense on T images.

    Attributes:
      defense: the value itself.
      table: of the T images under the V masked images of the defense, in memory.
      single: ``int[N]``, which of these are its masks alone; empty where they are not among them.
      pair: ``int[N, M]``, which are unions of a first and a second mask; empty where not all are.
      maps: a map for each shape of the patch, or for some; none where there is none.
      note: why there is no map, or which are left out; else empty.
    """

    defense: Defense
    table: PredictionTable
    single: NDArray[np.intp]
    pair: NDArray[np.intp]
    maps: tuple[PlaceMap, ...]
    note: str = ""

    @property
    def second(self) -> MaskSet:
        """The masks of the second round, which may be those of the first."""
        return self.defense.second_set or self.defense.mask_set

    def labels(self, row: int, columns: Sequence[int] | NDArray[np.intp]) -> NDArray[np.int64]:
        """Labels of masked images, as the table has them: ``UNKNOWN`` where not evaluated."""
        return np.asarray(self.table.predictions)[row, columns].astype(np.int64)


def inspect(
    defense: Defense,
    table: PredictionTable,
    labels: NDArray[np.int32],
    certified: NDArray[np.bool_],
    *,
    margin_guard: float = 0.0,
    limits: MapLimits = USUAL,
) -> Inspected:
    """Looks at a defense place by place.

    Args:
      defense: any on masked images.
      table: of T images, with the defense's masked images among its columns.
      labels: the true ones, ``int[T]``.
      certified: ``bool[T]``, whose worst case is known to hold: at every place, so that no place of
        these is looked at.
      margin_guard: of the report. It speaks of an image, whatever the place of a patch, so of one
        that it loses no place is left that holds.
      limits: what maps may take.
    """
    own = table.select(defense.masked_images)
    passes = verdicts.passes_guard(own, margin_guard)
    single, pair = _columns(defense)
    shapes = defense.threat.shapes
    maps: list[PlaceMap] = []
    why = ""
    squarest = sorted(limits.some_of(shapes), key=lambda shape: max(shape) / min(shape))
    for shape in squarest:
        if maps and sum(one.states.size for one in maps) + maps[-1].states.size > limits.cells:
            break
        try:
            map_of_shape = _map_of(defense, own, labels, certified, shape, limits)
            map_of_shape.states[(map_of_shape.states == HOLDS) & ~passes[:, None]] = GUARDED
            maps.append(map_of_shape)
        except (ValueError, TypeError, NotImplementedError) as error:
            why = why or _why_not(defense, error)
    if not maps:
        return Inspected(defense, own, single, pair, (), why)
    note = ""
    if len(maps) < len(shapes):
        note = f"{len(maps)} of the {len(shapes)} shapes of the patch have a map here."
    maps.sort(key=lambda one: one.spots.shape)
    return Inspected(defense, own, single, pair, tuple(maps), note)


def _map_of(
    defense: Defense,
    own: PredictionTable,
    labels: NDArray[np.int32],
    certified: NDArray[np.bool_],
    shape: Shape,
    limits: MapLimits,
) -> PlaceMap:
    several = len(defense.threat) > 1
    joint = None
    if several:
        joint = by_first_placement.first_spots_of(defense, shape, most_pairs=limits.pairs)
    spots = by_placement.spots_of(defense, shape) if joint is None else joint.first
    states = np.full((len(own), len(spots.hidden)), HOLDS, np.int8)
    rest = ~certified
    if joint is None:
        if rest.any():
            states[rest] = by_placement.verdicts_at(defense, own.rows(rest), labels[rest], spots)
        exact = by_placement.is_exact(defense, spots)
        margins = by_placement.smallest_margins(own, spots)
        return PlaceMap(spots, states, margins, exact)
    _check_asked(defense, joint, int(rest.sum()), limits.asked)
    worst = np.full(states.shape, -1, np.intp)
    if rest.any():
        states[rest], worst[rest] = by_first_placement.verdicts_at_first(
            defense, own.rows(rest), labels[rest], joint
        )
    exact = by_placement.is_exact(defense, joint)
    margins = by_placement.smallest_margins(own, spots)
    return PlaceMap(spots, states, margins, exact, worst, joint.others)


def _check_asked(defense: Defense, joint: FirstSpots, images: int, most: int) -> None:
    """``ValueError`` for more choices than a page can wait for."""
    alone = int(asked_alone(defense, joint.hidden).sum())
    columns = joint.hidden.shape[1]
    if alone * images * columns > most:
        raise ValueError(
            f"{defense.name}: expected at most {most:,} choices of all patches times images "
            f"times masked images, got {alone:,} x {images:,} x {columns:,}"
        )


def _why_not(defense: Defense, error: Exception) -> str:
    text = str(error)
    if isinstance(error, ValueError) and text.startswith(f"{defense.name}: expected at most"):
        return f"there are too many places to look at one by one ({text})"
    return f"{defense.name} cannot be asked about one place alone ({text})"


def _columns(defense: Defense) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the masks alone, and all unions of two, are among a defense's masked images."""
    masks = defense.mask_set
    images, index = distinct_unions.unions(masks, 1)
    single = defense.masked_images.places(images)[index]
    if (single < 0).any():
        single = np.zeros(0, np.intp)
    none = np.zeros((0, 0), np.intp)
    second = defense.second_set or masks
    if max(len(masks), len(second)) > MOST_MASKS or len(defense.masked_images) <= len(masks) + 1:
        return single, none
    images, index = distinct_unions.unions_of([masks, second])
    pair = defense.masked_images.places(images)[index]
    return single, none if (pair < 0).any() else pair
