"""Partitions of the locations into blocks, and what the masks of such blocks hide, in pixels.

A block of r x c locations is hidden by a rectangle of (r + p - 1) x (c + p - 1) pixels. Splits are
exact and even: 28 locations into 3 are 9, 10, 9, never strides of 10 that reach 30.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import edge_grids, geometry
from certmask_jax.masks.grids import stretches

Blocks = NDArray[np.int32]
"""``int32[n, 4]``, the rectangle of pixels that hides each block, row by row."""


def blocks(
    image: tuple[int, int], patch: tuple[int, int], lengths: Sequence[int], transposed: bool
) -> Blocks:
    """The blocks of a partition into rows of so many blocks each, or (transposed) columns.

    Rows of different lengths have heights that make the largest union of two blocks as small as can
    be, starting from heights in proportion to the lengths, that is from blocks of equal area.
    """
    if transposed:
        turned = blocks(image[::-1], patch[::-1], lengths, False)
        return np.ascontiguousarray(turned[:, [1, 0, 3, 2]])
    counts = geometry.num_locations(image, patch)
    across = {length: stretches(counts[1], length) for length in set(lengths)}

    def with_heights(heights: Sequence[int]) -> Blocks:
        edges = [0, *itertools.accumulate(heights)]
        return np.array(
            [
                (top, left, bottom + patch[0] - 1, right + patch[1] - 1)
                for (top, bottom), length in zip(itertools.pairwise(edges), lengths, strict=True)
                for left, right in across[length]
            ],
            dtype=np.int32,
        )

    return with_heights(_heights(counts[0], lengths, lambda h: rank(pair_areas(with_heights(h)))))


def even_partitions(
    image: tuple[int, int], patch: tuple[int, int], num_blocks: int
) -> Iterable[tuple[tuple[int, ...], bool, Blocks]]:
    """Partitions into so many blocks, in rows and in columns whose lengths differ by one at most.

    Yields the lengths, whether they are columns, and the blocks.
    """
    counts = geometry.num_locations(image, patch)
    for transposed in (False, True):
        down, across = counts[::-1] if transposed else counts
        for num_rows in range(1, min(num_blocks, down) + 1):
            lengths = tuple(b - a for a, b in stretches(num_blocks, num_rows))
            if max(lengths) <= across:
                yield lengths, transposed, blocks(image, patch, lengths, transposed)


def pair_areas(blocks: Blocks) -> NDArray[np.int64]:
    """Pixels of the union of every two blocks: ``int64[n (n - 1) / 2]``."""
    first, second = np.triu_indices(len(blocks), 1)
    area = (blocks[:, 2] - blocks[:, 0]) * (blocks[:, 3] - blocks[:, 1]).astype(np.int64)
    a, b = blocks[first], blocks[second]
    common = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    return area[first] + area[second] - np.clip(common, 0, None).prod(axis=1)


def hidden_areas(boxes: NDArray[np.int32], image_size: tuple[int, int]) -> NDArray[np.int64]:
    """Pixels that each of ``boxes int32[N, R, 4]`` hides: ``int64[N]``."""
    grid = edge_grids.edge_grid(boxes, image_size)
    heights = np.diff(np.append(grid.rows, image_size[0]))
    widths = np.diff(np.append(grid.cols, image_size[1]))
    return np.einsum("nrc,r,c->n", edge_grids.paint(boxes, grid), heights, widths)


def rank(areas: NDArray[np.int64]) -> tuple[int, ...]:
    """What is to be small: the largest mask, then the mean (in 1e-9 pixels), then the masks."""
    return int(areas.max()), int(areas.sum()) * 10**9 // len(areas), len(areas)


def _heights(
    count: int, lengths: Sequence[int], value: Callable[[Sequence[int]], tuple[int, ...]]
) -> list[int]:
    """Splits ``count`` locations into rows, as ``lengths`` say, and then downhill in ``value``.

    Rows of one length stay equally high, as far as that is possible.
    """
    # Every row has one location, and a share of the others.
    spare = [b - a for a, b in stretches(count - len(lengths), len(lengths), weights=lengths)]
    best = [1 + s for s in spare]
    kinds = sorted(set(lengths))
    totals = {
        kind: sum(s for s, n in zip(spare, lengths, strict=True) if n == kind) for kind in kinds
    }
    step = max(1, count // 8) if len(kinds) > 1 else 0
    while step:
        better = None
        for source, target in itertools.permutations(kinds, 2):
            if totals[source] < step:
                continue
            moved = totals | {source: totals[source] - step, target: totals[target] + step}
            shares = {kind: iter(stretches(moved[kind], lengths.count(kind))) for kind in kinds}
            heights = [1 + b - a for a, b in (next(shares[n]) for n in lengths)]
            if value(heights) < value(best):
                better, best = moved, heights
        totals = better or totals
        step = step if better else step // 2
    return best
