"""How much of maps a page holds and waits for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from certmask_jax.defenses import by_first_placement
from certmask_jax.masks.threats import Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapLimits:
    """The most that maps of a page may take; of what is beyond there is no map, and a line says so.

    Attributes:
      shapes: of one patch that have a map each; of more some are taken.
      cells: places times images of all maps of one defense but the first, so that a page stays
        small.
      asked: choices of several patches times images times masked images, of choices that a defense
        has to be asked about one by one. The default is half a minute of one core.
      pairs: places of the first of several patches times groups of the others.
      evidence_cells: places times images of all maps on evidence; with all else a page stays below
        10 MB.
    """

    shapes: int = 6
    cells: int = 200_000
    asked: int = 50_000_000
    pairs: int = by_first_placement.MOST_PAIRS
    evidence_cells: int = 1_500_000

    def some_of(self, shapes: Sequence[Shape]) -> Sequence[Shape]:
        """Shapes that have a map: all, or some from the first to the last."""
        if len(shapes) <= self.shapes:
            return shapes
        places = np.linspace(0, len(shapes) - 1, self.shapes).round().astype(int)
        return [shapes[place] for place in places]


USUAL = MapLimits()
"""What a page takes where nothing else is said."""
