"""Grids of masks: PatchCleanser's, even ones, and the fewest masks of a given size.

Per axis, n is the image, p the patch and q the mask size, in pixels. There are P = n - p + 1
locations, and a mask hides e = q - p + 1 consecutive ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from certmask_jax.masks import geometry
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.intervals import boxes_of, checked_mask_size
from certmask_jax.masks.mask_set import MaskSet


def budgeted_grid(
    image_size: Size,
    patch_size: Size,
    *,
    masks_per_axis: Size | None = None,
    mask_stride: Size | None = None,
    split: Literal["stride", "even"] = "stride",
) -> MaskSet:
    """PatchCleanser's mask set (its section 3.2 and Eq. 1-3), rows outer, exactly as its program.

    Give either the budget ``masks_per_axis`` (the paper's k, then the stride is ``ceil(P / k)``)
    or ``mask_stride``. Masks of ``p + stride - 1`` pixels stand at every multiple of the stride,
    the last one pulled back to the border.

    Args:
      split: ``"stride"`` is the published set. ``"even"`` splits the P locations of an axis into k
        stretches of ``floor(P / k)`` or ``ceil(P / k)``, each with a mask just large enough: as
        many masks, none larger, and none that hides a location twice for nothing.

    Raises:
      ValueError: unless exactly one of the two is given, and the patch fits the image; for an even
        split of a stride.
    """
    if split not in ("stride", "even"):
        raise ValueError(f"split: expected stride (as published) or even, got {split!r}")
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    if (masks_per_axis is None) == (mask_stride is None):
        raise ValueError(
            "budgeted_grid: expected either masks_per_axis or mask_stride, got "
            + ("both" if masks_per_axis is not None else "neither")
        )
    if split == "even":
        if masks_per_axis is None:
            raise ValueError("split: expected masks_per_axis for an even split, got mask_stride")
        return _even_grid(image, patch, geometry.as_size(masks_per_axis, "masks_per_axis"))
    if masks_per_axis is not None:
        budget = geometry.as_size(masks_per_axis, "masks_per_axis")
        stride = [-(-count // k) for count, k in zip(counts, budget, strict=True)]
    else:
        assert mask_stride is not None
        stride = list(geometry.as_size(mask_stride, "mask_stride"))
    axes = []
    for n, p, s in zip(image, patch, stride, strict=True):
        q = min(p + s - 1, n)
        starts = sorted({*range(0, n - q + 1, s), n - q})
        axes.append([[(start, start + q)] for start in starts])
    return MaskSet(boxes_of(axes), image, patch, name="budgeted_grid")


def _even_grid(image: tuple[int, int], patch: tuple[int, int], budget: tuple[int, int]) -> MaskSet:
    axes = []
    for n, p, k in zip(image, patch, budget, strict=True):
        count = n - p + 1
        axes.append([[(a, b + p - 1)] for a, b in stretches(count, min(k, count))])
    return MaskSet(boxes_of(axes), image, patch, name="even_grid")


def stretches(
    count: int, parts: int, *, weights: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Splits ``range(count)`` into consecutive stretches ``(first, last + 1)``, exactly and evenly.

    Lengths differ by one at most, and the longer ones are spread: 28 into 3 is 9, 10, 9, and into 6
    is 5, 4, 5, 5, 4, 5. With ``weights`` they are in proportion to these, rounded at the borders.
    """
    shares = [1] * parts if weights is None else list(weights)
    sums = list(itertools.accumulate(shares, initial=0))
    edges = [(2 * done * count + sums[-1]) // (2 * sums[-1]) for done in sums]
    return list(itertools.pairwise(edges))


def tight_grid(image_size: Size, patch_size: Size, *, mask_size: Size) -> MaskSet:
    """The fewest masks of a given size: ``ceil(P / e)`` an axis (soundness: no cover has fewer).

    Masks stand at every multiple of e, the last one pulled back to the border.

    Raises:
      ValueError: unless patch <= mask <= image on both axes.
    """
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    mask = checked_mask_size(mask_size, image, patch)
    axes = []
    for n, p, q, count in zip(image, patch, mask, counts, strict=True):
        e = q - p + 1
        starts = sorted({min(start, n - q) for start in range(0, count, e)})
        axes.append([[(start, start + q)] for start in starts])
    return MaskSet(boxes_of(axes), image, patch, name="tight_grid")
