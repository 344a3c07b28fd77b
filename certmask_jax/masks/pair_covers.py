"""Pair covers: mask sets in which every two locations are hidden together by at least one mask.

They are what a defense of one round needs to recover the label (soundness, 2.5). The locations are
partitioned into blocks; a block of r x c locations is hidden by a rectangle of (r + p - 1) x
(c + p - 1) pixels, and a mask is a union of such rectangles: of two blocks, one mask for every pair
of blocks, or of the blocks on a line of a finite plane. Every block carries a margin of p - 1
pixels, so few large blocks hide least.

With n blocks there are n (n - 1) / 2 pairs, each hiding 2 / n of the locations; the q^2 + q lines
of AG(2, q) hide 1 / q of them each. No pair cover of masks that hide a share a of the locations has
fewer than 1 / a^2 masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import distinct_unions, finite_planes, geometry, partitions, placements
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.partitions import Blocks

# The budget's search tries all partitions of so many masks in a few seconds.
_LARGEST_BUDGET = 1000


def check(masks: MaskSet) -> None:
    """Checks on pixels that every two locations are hidden together by one of ``masks``.

    Raises:
      CoverageError: naming two locations that share no mask.
    """
    images, _ = distinct_unions.one_round(masks)
    check_groups(masks, images.location_groups(masks.threat))


def check_groups(masks: MaskSet, groups: NDArray[np.bool_]) -> None:
    """Checks a pair cover whose location groups ``bool[G, V]`` are at hand.

    It is enough that the minimal groups meet: every other one contains one of them.
    """
    if not len(_apart(groups)):
        return
    placed = placements.groups(masks.boxes, masks.threat)  # the same ones, with a placement of each
    first, second = (placements.described(placed.example[i]) for i in _apart(placed.hidden)[0])
    raise CoverageError(
        f"{masks.name}: expected a pair cover, in which every two locations are hidden together by "
        f"one of the {len(masks)} masks, but no mask hides both the {first} and the {second}; "
        "build one with pair_covers.pair_cover (for a shape that contains all, where there are "
        "several), or use double masking, which unites the masks of any cover in pairs"
    )


def _apart(groups: NDArray[np.bool_]) -> NDArray[np.intp]:
    """``[., 2]``: pairs of ``groups bool[G, V]`` that have no mask in common."""
    member = groups.astype(np.float32)
    return np.argwhere(member @ member.T == 0)  # exact: counts below 2**24


def pairs_of_blocks(
    image_size: Size, patch_size: Size, *, rows: Sequence[int], transposed: bool = False
) -> MaskSet:
    """One mask for every pair of blocks of a partition of the locations.

    The locations are split into rows, and row i into ``rows[i]`` blocks: ``(3, 3)`` are 2 x 3 equal
    blocks, ``(2, 3)`` two blocks over three. Splits are exact and even. Rows of different lengths
    have heights that make the largest mask as small as can be, starting from heights in proportion
    to the lengths, that is from blocks of equal area.

    Args:
      rows: blocks in each row; at least 3 in all.
      transposed: columns of blocks instead of rows.

    Raises:
      ValueError: for fewer than 3 blocks, or more rows or blocks in a row than there are locations.
    """
    image, patch, lengths = _checked(image_size, patch_size, rows, transposed)
    blocks = partitions.blocks(image, patch, lengths, transposed)
    lines = itertools.combinations(range(len(blocks)), 2)
    return _mask_set(blocks, lines, image, patch, f"pairs of {_text(lengths, transposed)}")


def affine_plane(image_size: Size, patch_size: Size, *, order: int) -> MaskSet:
    """The q^2 + q lines of AG(2, q) over q x q evenly split blocks, q = ``order``.

    Raises:
      ValueError: unless q is a prime power, and there are at least q locations on each axis.
    """
    lines = finite_planes.affine_lines(order)
    image, patch, lengths = _checked(image_size, patch_size, [order] * order, False)
    blocks = partitions.blocks(image, patch, lengths, False)
    return _mask_set(blocks, lines.tolist(), image, patch, f"lines of AG(2,{order})")


def fano_plane(image_size: Size, patch_size: Size) -> MaskSet:
    """The 7 lines of the Fano plane over 7 blocks: each mask hides 3 blocks.

    Of all partitions into 7 blocks and all ways to put the points on them, the one with the least
    hidden area (largest mask first, then mean).

    Raises:
      ValueError: for fewer locations than blocks.
    """
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    plane = finite_planes.fano_lines()
    planes = {
        tuple(sorted(tuple(sorted(p[i] for i in line)) for line in plane))
        for p in itertools.permutations(range(7))
    }
    layouts = [
        (partitions.rank(partitions.hidden_areas(blocks[np.array(lines)], image)), blocks, lines)
        for _, _, blocks in partitions.even_partitions(image, patch, 7)
        for lines in sorted(planes)
    ]
    if not layouts:
        raise ValueError(f"fano_plane: expected at least 7 locations, got {_by(counts)}")
    _, blocks, lines = min(layouts, key=lambda one: one[0])
    return _mask_set(blocks, lines, image, patch, "lines of the Fano plane")


def pair_cover(image_size: Size, patch_size: Size, *, budget: int) -> MaskSet:
    """The pairs of blocks with the least hidden area among all of at most ``budget`` masks.

    Partitions are rows (or columns) of blocks whose numbers differ by one at most. The best is the
    one whose largest mask is smallest, and of those the one whose masks are smallest in the mean,
    in pixels.

    Raises:
      ValueError: for a budget below 3 (a pair cover of one or two masks has one that hides every
        location) or above 1,000 (the search would take minutes).
    """
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    if not isinstance(budget, int | np.integer) or not 3 <= budget <= _LARGEST_BUDGET:
        raise ValueError(
            f"budget: expected from 3 masks (fewer would hide everything) to {_LARGEST_BUDGET} "
            f"(the search takes seconds there), got {budget!r}; pairs_of_blocks takes any partition"
        )
    best: tuple[tuple[int, ...], tuple[int, ...], bool] | None = None
    num_blocks = 3
    while num_blocks * (num_blocks - 1) // 2 <= budget:
        for lengths, transposed, blocks in partitions.even_partitions(image, patch, num_blocks):
            candidate = (partitions.rank(partitions.pair_areas(blocks)), lengths, transposed)
            if best is None or candidate[0] < best[0]:
                best = candidate
        num_blocks += 1
    if best is None:
        raise ValueError(f"pair_cover: expected at least 3 locations, got {_by(counts)}")
    return pairs_of_blocks(image, patch, rows=best[1], transposed=best[2])


def _mask_set(
    blocks: Blocks,
    lines: Iterable[Sequence[int]],
    image: tuple[int, int],
    patch: tuple[int, int],
    name: str,
) -> MaskSet:
    masks = MaskSet(blocks[np.array(list(lines))], image, patch, name=name)
    check(masks)
    return masks


def _checked(
    image_size: Size, patch_size: Size, rows: Sequence[int], transposed: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, ...]]:
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    lengths = tuple(rows)
    if not all(isinstance(n, int | np.integer) and n >= 1 for n in lengths) or sum(lengths) < 3:
        raise ValueError(
            "partition: expected the number of blocks in each row, such as (2, 3), and at least 3 "
            f"blocks in all (a pair of two would hide everything), got {rows!r}"
        )
    down, across = counts[::-1] if transposed else counts
    if len(lengths) > down or max(lengths) > across:
        raise ValueError(
            f"partition: expected at most {down} rows of at most {across} blocks, one for each "
            f"location of a {_by(patch)} patch on {_by(image)}"
            f"{' (transposed)' if transposed else ''}, got {_text(lengths, False)}"
        )
    return image, patch, lengths


def _text(lengths: Sequence[int], transposed: bool) -> str:
    same = len(set(lengths)) == 1
    text = f"{len(lengths)}x{lengths[0]}" if same else "/".join(map(str, lengths))
    return f"{text} transposed" if transposed else text


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
