"""Spots: the places of one patch of one shape, up to what masks can tell apart.

Places that the same masks hide are one *spot*. Unlike the groups of a proof, no spot is dropped
because another one is hidden by fewer masks: that tells the worst of all places, and a map tells
each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import edge_grids
from certmask_jax.masks.threats import Shape, Threat

MOST_ENTRIES = 1 << 21
"""Maps with more spots times masked images are refused: 120 spots of 666 are 80,000."""


class Spots(NamedTuple):
    """Where one patch of one shape may be, up to what a defense's masked images can tell apart.

    Attributes:
      image_size: ``(height, width)``, in the pixels (or cells) that the masks are in.
      shape: ``(height, width)`` of the patch.
      rows: ``int64[R]``, the first row of each stretch of locations, ascending from 0.
      cols: ``int64[C]``, the same of columns.
      spot: ``int32[R, C]``, the number of the spot of these locations; -1 where the threat allows
        no patch.
      hidden: ``bool[S, V]``, which masked images hide the patch at each spot.
      sizes: ``int64[S]``, how many locations each spot has.
      example: ``int64[S, 2]``, one location of each: row and column of its top-left corner.
    """

    image_size: tuple[int, int]
    shape: Shape
    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    spot: NDArray[np.int32]
    hidden: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    example: NDArray[np.int64]

    def threat_at(self, spot: int) -> Threat:
        """The patch at the example of a spot, and nowhere else."""
        (row, col), (height, width) = self.example[spot].tolist(), self.shape
        return Threat.of(self.image_size, self.shape, region=(row, col, row + height, col + width))


def spots_under(boxes: NDArray[np.int32], threat: Threat, shape: Shape, *, name: str) -> Spots:
    """Where one patch of ``shape`` may be, whatever others a threat has.

    Args:
      boxes: ``int32[V, R, 4]``, what each mask hides.
      threat: of one patch or several, whose region counts.
      shape: of the patch that is asked about.
      name: whose masks these are, for errors.

    Raises:
      ValueError: for more spots than can be looked at one by one (``MOST_ENTRIES``).
    """
    region = np.array([threat.region], np.int32).reshape(1, -1, 4)
    edges = np.concatenate([boxes.reshape(-1, 1, 4), region.reshape(-1, 1, 4)])
    grid = edge_grids.location_grid(edges, threat.image_size, shape)
    count = len(grid.rows) * len(grid.cols)
    if count * len(boxes) > MOST_ENTRIES:
        raise ValueError(
            f"{name}: expected at most {MOST_ENTRIES:,} places times masked images, got "
            f"{count:,} x {len(boxes):,}"
        )
    hides = edge_grids.hides_on_grid(boxes, threat.image_size, shape, grid)
    allowed = np.ones(hides.shape[1:], np.bool_)
    if threat.region:
        allowed = edge_grids.hides_on_grid(region, threat.image_size, shape, grid)[0]
    hidden, number = np.unique(hides[:, allowed].T, axis=0, return_inverse=True)
    spot = np.full(allowed.shape, -1, np.int32)
    spot[allowed] = number.ravel()
    ends = [size - side + 1 for size, side in zip(threat.image_size, shape, strict=True)]
    heights, widths = (
        np.diff(np.append(first, end)) for first, end in zip(grid, ends, strict=True)
    )
    areas = (heights[:, None] * widths[None, :])[allowed]
    sizes = np.bincount(spot[allowed], areas, minlength=len(hidden)).astype(np.int64)
    at = [int(np.flatnonzero(spot.ravel() == one)[0]) for one in range(len(hidden))]
    down, across = np.divmod(np.array(at, np.int64), len(grid.cols))
    example = np.column_stack([grid.rows[down], grid.cols[across]])
    return Spots(
        threat.image_size, shape, grid.rows, grid.cols, spot, hidden.astype(np.bool_), sizes,
        example,
    )  # fmt: skip
