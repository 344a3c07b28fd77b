"""What a table tells of one defense on some images: labels under its masks, and a map of places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses import by_placement
from certmask_jax.defenses.by_placement import HOLDS, Spots
from certmask_jax.defenses.defense import Defense
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.tables.prediction_table import PredictionTable

MOST_MASKS = 64
"""Of larger sets no table of pairs is shown: it would have more cells than a page has pixels."""


class Inspected(NamedTuple):
    """One defense on T images.

    Attributes:
      defense: the value itself.
      table: of the T images under the V masked images of the defense, in memory.
      single: ``int[N]``, which of these are its masks alone; empty where they are not among them.
      pair: ``int[N, M]``, which are unions of a first and a second mask; empty where not all are.
      spots: the places of a patch; None where there is no map, and ``no_map`` says why.
      states: ``int8[T, S]``, see ``by_placement.verdicts_at``.
      margins: ``float32[T, S]``, see ``by_placement.smallest_margins``.
      no_map: why there is none; else empty.
    """

    defense: Defense
    table: PredictionTable
    single: NDArray[np.intp]
    pair: NDArray[np.intp]
    spots: Spots | None
    states: NDArray[np.int8]
    margins: NDArray[np.float32]
    no_map: str = ""

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
) -> Inspected:
    """Looks at a defense place by place.

    Args:
      defense: any on masked images.
      table: of T images, with the defense's masked images among its columns.
      labels: the true ones, ``int[T]``.
      certified: ``bool[T]``, whose worst case is known to hold: at every place, so that no place of
        these is looked at.
    """
    own = table.select(defense.masked_images)
    single, pair = _columns(defense)
    nothing = np.zeros((len(own), 0))
    try:
        spots = by_placement.spots_of(defense)
    except ValueError as error:
        return Inspected(
            defense, own, single, pair, None, nothing.astype(np.int8), nothing.astype(np.float32),
            str(error),
        )  # fmt: skip
    states = np.full((len(own), len(spots.hidden)), HOLDS, np.int8)
    rest = ~certified
    if rest.any():
        try:
            states[rest] = by_placement.verdicts_at(defense, own.rows(rest), labels[rest], spots)
        except (ValueError, TypeError, NotImplementedError) as error:
            why = f"{defense.name} cannot be asked about one place alone ({error})"
            return Inspected(
                defense, own, single, pair, None, nothing.astype(np.int8),
                nothing.astype(np.float32), why,
            )  # fmt: skip
    margins = by_placement.smallest_margins(own, spots)
    return Inspected(defense, own, single, pair, spots, states, margins)


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
