"""Boxes, patches and what hides what: exact integer work on pixels, in NumPy.

Sizes are ``(height, width)``. A *box* is ``(top, left, bottom, right)``, half-open, inside the
image; a *mask* is a union of up to R boxes, ``int32[R, 4]``, unused boxes all zero. A patch
*location* is the top-left corner of a patch that lies inside the image, so there are
``(h - ph + 1) * (w - pw + 1)`` of them.

Everything here is decided on pixels, but not pixel by pixel: the work grows with the number of
distinct edges (``edge_grids``): 3,750 masks on 40,000 locations are a matter of milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.masks.edge_grids import hides_on_grid, location_grid

Size = int | tuple[int, int]
"""A size in pixels: an int (square) or ``(height, width)``."""

# Few masks have few distinct edges, hence a small grid of their own.
_UNIONS_AT_ONCE = 64
# The papers print rounded percentages ("0.4%" is 2 px of 32, which is 0.39%), so a patch may fall
# short of the printed share by this factor and still be the one that is meant.
_PRINTED_SHARE_TOLERANCE = 0.025


def as_size(size: Size, what: str = "size") -> tuple[int, int]:
    """Returns ``(height, width)`` for an int or a pair; ``ValueError`` unless both are >= 1."""
    given: object = (size, size) if isinstance(size, int | np.integer) else size
    pair = tuple(given) if isinstance(given, Iterable) else ()
    if len(pair) != 2 or not all(isinstance(n, int | np.integer) and n >= 1 for n in pair):
        raise ValueError(
            f"{what}: expected a positive int or (height, width) in pixels, got {size!r}"
        )
    return int(pair[0]), int(pair[1])


def check_patch_fits(image_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """``ValueError`` unless the patch lies inside the image on both axes."""
    if patch_size[0] > image_size[0] or patch_size[1] > image_size[1]:
        raise ValueError(
            f"patch_size: expected a patch that fits the image of {_by(image_size)} pixels, got "
            f"{_by(patch_size)}; choose a smaller patch or a larger input size"
        )


def num_locations(image_size: Size, patch_size: Size) -> tuple[int, int]:
    """Number of patch locations on each axis, ``(h - ph + 1, w - pw + 1)``."""
    image, patch = as_size(image_size, "image_size"), as_size(patch_size, "patch_size")
    check_patch_fits(image, patch)
    return image[0] - patch[0] + 1, image[1] - patch[1] + 1


def checked_sizes(
    image_size: Size, patch_size: Size
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Image, patch and number of locations as ``(height, width)``; ``ValueError`` if none fit."""
    image, patch = as_size(image_size, "image_size"), as_size(patch_size, "patch_size")
    return image, patch, num_locations(image, patch)


def patch_size_from_percent(percent: float, image_size: Size) -> tuple[int, int]:
    """The square patch that the papers mean by "a patch of ``percent`` % of the pixels".

    It is the smallest square whose share of the pixels is at least ``percent``, where a shortfall
    of up to 2.5% of that share counts as met, because published percentages are rounded. On
    224 x 224: 1% = 23, 2% = 32, 3% = 39, 0.4% = 14, 2.4% = 35; on 32 x 32: 0.4% = 2, 2.4% = 5.
    (PatchCleanser, section 5.1; CertMask, section 5.) A run reports the pixels beside the percent.

    Raises:
      ValueError: unless 0 < percent <= 100 and the square fits the image.
    """
    image = as_size(image_size, "image_size")
    if not (math.isfinite(percent) and 0 < percent <= 100):
        raise ValueError(f"patch percent: expected a number in (0, 100], got {percent!r}")
    pixels = percent / 100 * image[0] * image[1] * (1 - _PRINTED_SHARE_TOLERANCE)
    side = math.ceil(math.sqrt(pixels))
    check_patch_fits(image, (side, side))
    return side, side


def as_boxes(boxes: ArrayLike, image_size: Size) -> NDArray[np.int32]:
    """Checks masks and returns them as ``int32[N, R, 4]``.

    Args:
      boxes: integers ``[N, 4]`` (one box a mask) or ``[N, R, 4]``.
      image_size: the image that they lie in.

    Raises:
      ValueError: naming the first box that is not ``0 <= top <= bottom <= h`` (and likewise for
        the columns), or a wrong shape or dtype.
    """
    image = as_size(image_size, "image_size")
    array = np.asarray(boxes)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"boxes: expected integers, got dtype {array.dtype}")
    if array.ndim == 2:
        array = array[:, None, :]
    if array.ndim != 3 or array.shape[0] < 1 or array.shape[1] < 1 or array.shape[2] != 4:
        raise ValueError(
            "boxes: expected shape [N, R, 4] (top, left, bottom, right) with N, R >= 1, got "
            f"{np.shape(boxes)}"
        )
    top, left, bottom, right = np.moveaxis(array, -1, 0)
    good = (top >= 0) & (top <= bottom) & (bottom <= image[0])
    good &= (left >= 0) & (left <= right) & (right <= image[1])
    if not good.all():
        mask, box = np.argwhere(~good)[0]
        raise ValueError(
            f"boxes: expected 0 <= top <= bottom <= {image[0]} and 0 <= left <= right <= "
            f"{image[1]}, got {array[mask, box].tolist()} for mask {mask}, box {box}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def hides(boxes: ArrayLike, image_size: Size, patch_size: Size) -> NDArray[np.bool_]:
    """Whether each mask hides the patch at each location.

    Args:
      boxes: ``int[N, R, 4]`` or ``int[N, 4]``; a mask is the union of its R boxes.
      image_size, patch_size: pixels.

    Returns:
      ``bool[N, h - ph + 1, w - pw + 1]``: true where every pixel of the patch is masked
      (PatchCleanser, Definition 1).
    """
    image, patch = as_size(image_size, "image_size"), as_size(patch_size, "patch_size")
    counts = num_locations(image, patch)
    checked = as_boxes(boxes, image)
    locations = location_grid(checked, image, patch)
    hidden = hides_on_grid(checked, image, patch, locations)
    return hidden[:, _stretch_of(locations.rows, counts[0])][
        :, :, _stretch_of(locations.cols, counts[1])
    ]


def coverage(boxes: ArrayLike, image_size: Size, patch_size: Size) -> NDArray[np.int32]:
    """How many masks hide the patch at each location: ``int32[h - ph + 1, w - pw + 1]``.

    A mask that is listed twice counts twice.
    """
    image, patch = as_size(image_size, "image_size"), as_size(patch_size, "patch_size")
    counts = num_locations(image, patch)
    checked = as_boxes(boxes, image)
    empty = (checked[..., 0] >= checked[..., 2]) | (checked[..., 1] >= checked[..., 3])
    is_box = (~empty).sum(1) == 1
    covered = _coverage_of_boxes(checked[is_box][~empty[is_box]], counts, patch)
    unions = checked[(~empty).sum(1) > 1]
    for start in range(0, len(unions), _UNIONS_AT_ONCE):
        part = unions[start : start + _UNIONS_AT_ONCE]
        locations = location_grid(part, image, patch)
        hiding = hides_on_grid(part, image, patch, locations).sum(0, dtype=np.int32)
        rows, cols = _stretch_of(locations.rows, counts[0]), _stretch_of(locations.cols, counts[1])
        covered += hiding[np.ix_(rows, cols)]
    return covered


def _coverage_of_boxes(
    boxes: NDArray[np.int32], counts: tuple[int, int], patch: tuple[int, int]
) -> NDArray[np.int32]:
    """Coverage by masks of one box each, ``int32[M, 4]``, by adding up their corners.

    A box hides a rectangle of locations: +1 at its first corner, -1 past its last.
    """
    top, left, bottom, right = boxes.T
    bottom, right = bottom - patch[0] + 1, right - patch[1] + 1
    hiding = (bottom > top) & (right > left)
    top, left, bottom, right = top[hiding], left[hiding], bottom[hiding], right[hiding]
    corners = np.zeros((counts[0] + 1, counts[1] + 1), dtype=np.int32)
    np.add.at(corners, (top, left), 1)
    np.add.at(corners, (bottom, right), 1)
    np.add.at(corners, (top, right), -1)
    np.add.at(corners, (bottom, left), -1)
    return corners.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)[:-1, :-1]


def _stretch_of(firsts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.searchsorted(firsts, np.arange(count), side="right") - 1


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
