"""What masks are made of on each axis: stretches of pixels, cut at the border or going round it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import geometry
from certmask_jax.masks.geometry import Size

Interval = tuple[int, int]
"""The first pixel, and the one after the last."""


def checked_mask_size(
    mask_size: Size, image: tuple[int, int], patch: tuple[int, int]
) -> tuple[int, int]:
    """``(height, width)`` of masks; ``ValueError`` unless patch <= mask <= image."""
    mask = geometry.as_size(mask_size, "mask_size")
    if any(not p <= q <= n for p, q, n in zip(patch, mask, image, strict=True)):
        raise ValueError(
            f"mask_size: expected at least the patch ({_by(patch)}) and at most the image "
            f"({_by(image)}), got {_by(mask)}"
        )
    return mask


def clipped(start: int, length: int, n: int) -> Interval:
    """The part of ``[start, start + length)`` inside ``[0, n)``; (0, 0) if there is none."""
    first, last = max(start, 0), min(start + length, n)
    return (first, last) if first < last else (0, 0)


def wrapped(start: int, length: int, n: int) -> list[Interval]:
    """``[start, start + length)`` on a circle of n pixels, as one or two intervals."""
    if length >= n:
        return [(0, n)]
    first = start % n
    if first + length <= n:
        return [(first, first + length)]
    return [(first, n), (0, first + length - n)]


def boxes_of(axes: Sequence[Sequence[Sequence[Interval]]]) -> NDArray[np.int32]:
    """Every row entry with every column entry, rows outer; an entry is a union of intervals."""
    masks = [
        [
            (top, left, bottom, right)
            for top, bottom in rows
            for left, right in cols
            if top < bottom and left < right
        ]
        for rows, cols in itertools.product(*axes)
    ]
    boxes = np.zeros((len(masks), max(1, *map(len, masks)), 4), dtype=np.int32)
    for mask, parts in zip(boxes, masks, strict=True):
        mask[: len(parts)] = parts
    return boxes


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
