"""The grids that masks cut images and locations into, and what masks hide on them.

Between two neighbouring box edges all pixel rows are alike, so what is decided on a grid of edges
is decided on pixels, and the work grows with the number of distinct edges and not with the size of
the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Masks are looked at in blocks of about this many grid cells, so that memory stays flat.
_CELLS_AT_ONCE = 1 << 24
FEW_CELLS = 2048
"""A grid of so few cells is looked at 64 cells at a time: 70 times as fast for 66,000 unions."""


class EdgeGrid(NamedTuple):
    """The grid that the box edges cut an image into; all pixels of a cell are masked alike."""

    rows: NDArray[np.int64]  # first pixel row of each cell, ascending, starts with 0
    cols: NDArray[np.int64]


def edge_grid(boxes: NDArray[np.int32], image_size: tuple[int, int]) -> EdgeGrid:
    """The coarsest grid on which every one of ``boxes int32[N, R, 4]`` is a union of cells."""
    rows = np.unique(np.append(boxes[..., [0, 2]], 0))
    cols = np.unique(np.append(boxes[..., [1, 3]], 0))
    return EdgeGrid(rows[rows < image_size[0]], cols[cols < image_size[1]])


def paint(boxes: NDArray[np.int32], grid: EdgeGrid) -> NDArray[np.bool_]:
    """Which cells of ``grid`` each mask hides: ``bool[N, len(rows), len(cols)]``."""
    hidden = np.zeros((len(boxes), len(grid.rows), len(grid.cols)), dtype=np.bool_)
    for top, left, bottom, right in np.moveaxis(boxes, (1, 2), (0, 1)):  # one box slot at a time
        in_rows = (grid.rows >= top[:, None]) & (grid.rows < bottom[:, None])
        in_cols = (grid.cols >= left[:, None]) & (grid.cols < right[:, None])
        hidden |= in_rows[:, :, None] & in_cols[:, None, :]
    return hidden


class LocationGrid(NamedTuple):
    """Locations that the masks cannot tell apart share one entry.

    ``rows`` and ``cols`` are the first location of each stretch of locations, ascending.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]


def location_grid(
    boxes: NDArray[np.int32], image_size: tuple[int, int], patch_size: tuple[int, int]
) -> LocationGrid:
    """The stretches of locations on each axis within which ``hides`` cannot change.

    Moving a patch down by one pixel changes which cells it meets only where its first row leaves a
    cell or its last row enters one, that is at ``edge`` and at ``edge - ph + 1``.
    """
    stretches = []
    for axis in (0, 1):
        edges = np.unique(boxes[..., [axis, axis + 2]])
        first = np.unique(np.concatenate([[0], edges, edges - patch_size[axis] + 1]))
        count = image_size[axis] - patch_size[axis] + 1
        stretches.append(first[(first >= 0) & (first < count)])
    return LocationGrid(*stretches)


def hides_on_grid(
    boxes: NDArray[np.int32],
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    locations: LocationGrid,
    *,
    few_cells: int = FEW_CELLS,
) -> NDArray[np.bool_]:
    """Whether each mask hides a patch at each given row and column of locations.

    Args:
      boxes: masks ``int32[N, R, 4]``.
      image_size, patch_size: pixels.
      locations: the rows and columns, as of ``location_grid``.
      few_cells: a grid of edges of at most so many cells is looked at 64 cells at a time, a larger
        one by sums over rectangles. The answer is the same; the time differs.

    Returns:
      ``bool[N, len(locations.rows), len(locations.cols)]``: true where *every* pixel of the patch
      is masked, by one box or by several together.
    """
    grid = edge_grid(boxes, image_size)
    row_from, row_to = _cells_met(grid.rows, locations.rows, patch_size[0])
    col_from, col_to = _cells_met(grid.cols, locations.cols, patch_size[1])
    if len(grid.rows) * len(grid.cols) <= few_cells:
        in_rows = _within(row_from, row_to, len(grid.rows))
        in_cols = _within(col_from, col_to, len(grid.cols))
        hides = _holds(paint(boxes, grid), in_rows[:, None, :, None] & in_cols[:, None, :])
        return hides.T.reshape(len(boxes), len(row_from), len(col_from))
    met = (row_to - row_from)[:, None] * (col_to - col_from)[None, :]
    hidden = np.empty((len(boxes), len(row_from), len(col_from)), dtype=np.bool_)
    per_mask = (len(grid.rows) + 1) * (len(grid.cols) + 1) + met.size
    block = max(1, _CELLS_AT_ONCE // per_mask)
    for start in range(0, len(boxes), block):
        painted = paint(boxes[start : start + block], grid)
        total = np.pad(painted.cumsum(1, dtype=np.int32).cumsum(2), ((0, 0), (1, 0), (1, 0)))
        below, above = total[:, row_to], total[:, row_from]
        hides = below[:, :, col_to] - below[:, :, col_from]
        hides -= above[:, :, col_to] - above[:, :, col_from]
        hidden[start : start + block] = hides == met
    return hidden


def _within(first: NDArray[np.int64], last: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """``bool[L, count]``: ``first <= cell < last``."""
    cells = np.arange(count)
    return (cells >= first[:, None]) & (cells < last[:, None])


def _holds(have: NDArray[np.bool_], need: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``bool[L, N]``: of cells ``need [.., .., rows, cols]`` (L in all), ``have [N, ...]`` all."""
    cells = have[0].size
    words = [
        np.packbits(np.pad(part.reshape(-1, cells), ((0, 0), (0, -cells % 64))), axis=1).view("<u8")
        for part in (need, ~have)
    ]
    holds = np.ones((len(words[0]), len(have)), dtype=np.bool_)
    lacking = np.ascontiguousarray(words[1].T)
    for location, word in np.argwhere(words[0]):
        holds[location] &= words[0][location, word] & lacking[word] == 0
    return holds


def _cells_met(
    cells: NDArray[np.int64], locations: NDArray[np.int64], patch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one-past-last cell that a patch at each location meets, on one axis."""
    first = np.searchsorted(cells, locations, side="right") - 1
    last = np.searchsorted(cells, locations + patch - 1, side="right")
    return first, last
