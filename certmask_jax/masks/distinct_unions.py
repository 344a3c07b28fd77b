"""Masked images: the distinct unions of masks that a defense looks at, each evaluated once.

The unit of cost is one distinct masked image. Unions are told apart by the pixels that they hide,
so a mask that is repeated k times, a pair in either order, and a union whose second mask adds
nothing are all one masked image. Index arrays lead from ``(i, j, ...)`` back to it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import edge_grids, placements
from certmask_jax.masks.by_content import ByContent
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat, as_threat

MOST_CHOICES = 1 << 27
"""Index arrays with more entries are refused: 25 masks have 390,625 for four patches."""

MOST_BOXES = 20_000_000
"""Unions with more boxes are refused: of 666 masks for two patches it is a million."""

_MOST_FACTORS = 4  # that an error writes out

# Rows of painted cells are compared in blocks of about this many bytes.
_BYTES_AT_ONCE = 1 << 26


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedImages(ByContent):
    """Distinct unions of masks on one image size; equal and hashable by content.

    Attributes:
      boxes: ``int32[V, R, 4]``, one union of boxes for each distinct masked image; not to be
        written to.
      image_size: ``(height, width)`` in pixels.
    """

    boxes: NDArray[np.int32]
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes).view()
        boxes.setflags(write=False)
        object.__setattr__(self, "boxes", boxes)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.image_size
        return f"MaskedImages({len(self)} unions of masks on {height}x{width})"

    def location_groups(self, threat: Threat | Size) -> NDArray[np.bool_]:
        """Which masked image hides the patches at which placement, up to what matters.

        Placements hidden by the same masked images are one group, and a group is dropped when
        another is hidden by a strict subset of its masked images: whatever an attacker can do at
        the former, they can do at the latter. Proofs about the remaining groups therefore hold at
        every placement, for every rule.

        Args:
          threat: or a bare patch size, for one patch anywhere.

        Returns:
          ``bool[G, V]``, distinct rows.

        Raises:
          ValueError: for a threat on another image size, or one whose groups would not fit memory.
        """
        return placements.groups(self.boxes, as_threat(threat, self.image_size)).hidden

    def places(self, wanted: MaskedImages) -> NDArray[np.intp]:
        """Where ``wanted`` stand among these, ``int[V_wanted]``, by the pixels that they hide.

        Computed once for each ``wanted`` and kept with these, so that asking again costs nothing.

        Returns:
          -1 for those that are not among these.
        """
        if wanted is self or wanted == self:
            return np.arange(len(self))
        if wanted not in self._known_places:
            _, (own, theirs) = merge([self, wanted])
            place_of = np.full(max(own.max(), theirs.max()) + 1, -1)
            place_of[own] = np.arange(len(own))
            self._known_places[wanted] = place_of[theirs]
        return self._known_places[wanted]

    @functools.cached_property
    def _known_places(self) -> dict[MaskedImages, NDArray[np.intp]]:
        return {}


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


def one_round(mask_set: MaskSet) -> tuple[MaskedImages, NDArray[np.int32]]:
    """The V distinct single masks of a set, and how many of its masks each is: ``int32[V]``."""
    images, index = unions(mask_set, 1)
    return images, np.bincount(index, minlength=len(images)).astype(np.int32)


def unions_of(mask_sets: Sequence[MaskSet]) -> tuple[MaskedImages, NDArray[np.int32]]:
    """All unions of one mask from each of ``mask_sets`` (equal image sizes); see ``unions``.

    Raises:
      ValueError: for no mask set, or for different image sizes; with the estimate, for more unions
        than would be done in minutes and fit memory.
    """
    if not mask_sets:
        raise ValueError("unions: expected an order of at least 1 (one mask set), got 0")
    image = mask_sets[0].image_size
    if any(s.image_size != image for s in mask_sets):
        raise ValueError(
            "unions: expected mask sets of one image size, got "
            f"{sorted({s.image_size for s in mask_sets})}"
        )
    check_choices(list(map(len, mask_sets)))
    singles = [distinct(s.boxes, image) for s in mask_sets]
    so_far, index = singles[0]
    for number, (single, of_mask) in enumerate(singles[1:], 1):
        # Only two single masks of one set are the same in either order. As many unions as masks
        # do not make them the masks, in their order: a set that is closed under union has both.
        same = number == 1 and mask_sets[1] is mask_sets[0]
        _check_feasible(so_far, single, same)
        so_far, table = _united(so_far.boxes, single.boxes, image, symmetric=same)
        index = table[index][..., of_mask]
    return so_far, index


def check_choices(counts: Sequence[int], *, or_more: bool = False) -> None:
    """Refuses more choices of one mask from each of several sets than index arrays may have.

    Args:
      counts: the masks of each set.
      or_more: whether they are that many at least.

    Raises:
      ValueError: with the number of choices.
    """
    if math.prod(counts) > MOST_CHOICES:
        more = " or more" if or_more else ""
        raise ValueError(
            f"unions: expected at most {MOST_CHOICES:,} choices of one mask from each set, but "
            f"{_product(counts)}{more}; use fewer masks, or fewer patches at once"
        )


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
    grid = edge_grids.edge_grid(boxes, image_size)
    block = max(1, _BYTES_AT_ONCE // (len(grid.rows) * len(grid.cols)))
    seen: dict[bytes, int] = {}
    first: list[int] = []
    index = np.empty(len(boxes), dtype=np.int32)
    for start in range(0, len(boxes), block):
        cells = edge_grids.paint(boxes[start : start + block], grid)
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
    places = list(np.split(index, stops[:-1]))
    merged._known_places.update(zip(parts, (one.astype(np.intp) for one in places), strict=True))
    return merged, places


def unmasked(image_size: tuple[int, int]) -> MaskedImages:
    """The one masked image in which nothing is hidden: the image itself."""
    return MaskedImages(np.zeros((1, 1, 4), dtype=np.int32), image_size)


def _check_feasible(first: MaskedImages, second: MaskedImages, symmetric: bool) -> None:
    pairs = len(first) * (len(first) + 1) // 2 if symmetric else len(first) * len(second)
    boxes = pairs * (first.boxes.shape[1] + second.boxes.shape[1])
    if boxes > MOST_BOXES:
        raise ValueError(
            f"unions: expected at most {MOST_BOXES:,} boxes, but all unions of {len(first):,} and "
            f"{len(second):,} masks are {pairs:,} pairs with {boxes:,} boxes; use fewer masks "
            "(masks_per_axis, larger mask_size), or fewer patches or shapes at once"
        )


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


def _product(counts: Sequence[int]) -> str:
    """``[16, 16]`` -> ``"16 x 16 are 2.6e+02"``, and ``[16] * 99`` -> ``"16^99 are 1.6e+119"``."""
    runs = [(count, len(list(same))) for count, same in itertools.groupby(counts)]
    parts = [
        f"{count}^{n}" if n > _MOST_FACTORS else " x ".join([f"{count}"] * n) for count, n in runs
    ]
    whole, part = divmod(sum(map(math.log10, counts)), 1)  # no float holds numbers above 1e308
    return f"{' x '.join(parts)} are {10**part:.1f}e+{whole:02.0f}"
