"""Masked images: the distinct unions of masks that a defense looks at, each evaluated once.

The unit of cost is one distinct masked image. Unions are told apart by the pixels that they hide,
so a mask that is repeated k times, a pair in either order, and a union whose second mask adds
nothing are all one masked image. Index arrays lead from ``(i, j, ...)`` back to it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax import geometry
from certmask_jax.mask_sets import MaskSet

# Rows of painted cells are compared in blocks of about this many bytes.
_BYTES_AT_ONCE = 1 << 26


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedImages:
    """Distinct unions of masks on one image size.

    Attributes:
      boxes: ``int32[V, R, 4]``, one union of boxes for each distinct masked image.
      image_size: ``(height, width)`` in pixels.
    """

    boxes: NDArray[np.int32]
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    def location_groups(self, patch_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Which masked image hides the patch at which location, up to what matters.

        Locations hidden by the same masked images are one group, and a group is dropped when
        another is hidden by a strict subset of its masked images: whatever an attacker can do at
        the former, they can do at the latter. Proofs about the remaining groups therefore hold at
        every location, for every rule.

        Args:
          patch_size: ``(height, width)`` in pixels.

        Returns:
          ``bool[G, V]``, distinct rows.
        """
        locations = geometry.location_grid(self.boxes, self.image_size, patch_size)
        hidden = geometry.hides_on_grid(self.boxes, self.image_size, patch_size, locations)
        packed = np.ascontiguousarray(np.packbits(hidden.reshape(len(self), -1).T, axis=1))
        # As one item a row: fields of their own are hundreds of times slower.
        rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
        _, first = np.unique(rows, return_index=True)
        groups = np.unpackbits(packed[first], axis=1, count=len(self)).astype(np.bool_)
        return _minimal(groups)


def unions(mask_set: MaskSet, order: int) -> tuple[MaskedImages, NDArray[np.int32]]:
    """All unions of ``order`` masks of a set, deduplicated by the pixels that they hide.

    Args:
      mask_set: N masks.
      order: how many masks are united, 1 or more; order 2 includes ``(i, i)``, the single masks.

    Returns:
      The V distinct masked images, and ``index int32[N, ..., N]`` with ``order`` axes: the masked
      image in which masks ``i, j, ...`` are hidden together. ``V <= n (n + 1) / 2`` for order 2
      and n distinct masks.
    """
    return unions_of([mask_set] * order)


def unions_of(mask_sets: Sequence[MaskSet]) -> tuple[MaskedImages, NDArray[np.int32]]:
    """All unions of one mask from each of ``mask_sets`` (equal image sizes); see :func:`unions`.

    Raises:
      ValueError: for no mask set, or for different image sizes.
    """
    if not mask_sets:
        raise ValueError("unions: expected an order of at least 1 (one mask set), got 0")
    image = mask_sets[0].image_size
    if any(s.image_size != image for s in mask_sets):
        raise ValueError(
            "unions: expected mask sets of one image size, got "
            f"{sorted({s.image_size for s in mask_sets})}"
        )
    singles = [distinct(s.boxes, image) for s in mask_sets]
    so_far, index = singles[0]
    for (single, of_mask), mask_set in zip(singles[1:], mask_sets[1:], strict=True):
        same = mask_set is mask_sets[0] and len(so_far) == len(single)
        so_far, table = _united(so_far.boxes, single.boxes, image, symmetric=same)
        index = table[index][..., of_mask]
    return so_far, index


def distinct(
    boxes: NDArray[np.int32], image_size: tuple[int, int]
) -> tuple[MaskedImages, NDArray[np.int32]]:
    """Drops masks that hide the same pixels as an earlier one.

    Args:
      boxes: ``int32[N, R, 4]``.
      image_size: ``(height, width)``.

    Returns:
      V distinct masked images in order of first appearance, and ``index int32[N]`` into them.
    """
    grid = geometry.edge_grid(boxes, image_size)
    block = max(1, _BYTES_AT_ONCE // (len(grid.rows) * len(grid.cols)))
    seen: dict[bytes, int] = {}
    first: list[int] = []
    index = np.empty(len(boxes), dtype=np.int32)
    for start in range(0, len(boxes), block):
        cells = geometry.paint(boxes[start : start + block], grid)
        packed = np.packbits(cells.reshape(len(cells), -1), axis=1)
        for offset, row in enumerate(packed):
            number = seen.setdefault(row.tobytes(), len(seen))
            if number == len(first):
                first.append(start + offset)
            index[start + offset] = number
    return MaskedImages(np.ascontiguousarray(boxes[first]), image_size), index


def merge(parts: Sequence[MaskedImages]) -> tuple[MaskedImages, list[NDArray[np.int32]]]:
    """One list of distinct masked images that serves several defenses.

    Returns:
      The V distinct masked images of all parts, and for each part ``int32[V_part]``, the columns
      of its own masked images in the merged list.
    """
    image = parts[0].image_size
    if any(part.image_size != image for part in parts):
        raise ValueError(
            "merge: expected masked images of one image size, got "
            f"{sorted({part.image_size for part in parts})}"
        )
    width = max(part.boxes.shape[1] for part in parts)
    boxes = np.concatenate([_widened(part.boxes, width) for part in parts])
    merged, index = distinct(boxes, image)
    stops = list(itertools.accumulate(len(part) for part in parts))
    return merged, list(np.split(index, stops[:-1]))


def unmasked(image_size: tuple[int, int]) -> MaskedImages:
    """The one masked image in which nothing is hidden: the image itself."""
    return MaskedImages(np.zeros((1, 1, 4), dtype=np.int32), image_size)


def _united(
    first: NDArray[np.int32],
    second: NDArray[np.int32],
    image_size: tuple[int, int],
    *,
    symmetric: bool,
) -> tuple[MaskedImages, NDArray[np.int32]]:
    """Unions of every mask of ``first`` with every one of ``second``; index ``[n1, n2]``."""
    if symmetric:
        i, j = np.triu_indices(len(first))
    else:
        i, j = (axis.ravel() for axis in np.indices((len(first), len(second))))
    pairs = _without_spares(np.concatenate([first[i], second[j]], axis=1))
    images, of_pair = distinct(pairs, image_size)
    index = np.empty((len(first), len(second)), dtype=np.int32)
    index[i, j] = of_pair
    if symmetric:
        index[j, i] = of_pair
    return images, index


def _without_spares(boxes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Moves used boxes to the front of each mask and drops slots that no mask uses."""
    used = (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])
    # A box that is listed twice (a mask united with itself) is used once.
    for slot in range(1, boxes.shape[1]):
        twin = (boxes[:, :slot] == boxes[:, slot : slot + 1]).all(-1) & used[:, :slot]
        used[:, slot] &= ~twin.any(1)
    order = np.argsort(~used, axis=1, kind="stable")
    tidy = np.where(used[..., None], boxes, 0)
    tidy = np.take_along_axis(tidy, order[..., None], axis=1)
    return np.ascontiguousarray(tidy[:, : max(1, int(used.sum(1).max()))])


def _widened(boxes: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    return np.pad(boxes, ((0, 0), (0, width - boxes.shape[1]), (0, 0)))


def _minimal(groups: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drops rows of ``bool[G, V]`` (distinct) that are a strict superset of another row."""
    sizes = groups.sum(1)
    order = np.argsort(sizes, kind="stable")
    groups = groups[order]
    # extra[g, o] = members of o that g lacks; o is inside g when there are none.
    member = groups.astype(np.float32)
    keep = np.ones(len(groups), dtype=np.bool_)
    block = max(1, _BYTES_AT_ONCE // (4 * len(groups)))
    for start in range(0, len(groups), block):
        part = slice(start, start + block)
        lacking = (1 - member[part]) @ member.T  # exact: counts below 2**24
        inside = lacking == 0
        inside[np.arange(len(lacking)), np.arange(start, start + len(lacking))] = False
        keep[part] = ~inside.any(1)
    return groups[keep]
