"""Bands: masks that leave one band of an image to be seen, as (De)Randomized Smoothing has them.

Levine and Feizi (NeurIPS 2020) classify an image by the votes of a model that sees one band of
columns at a time, each of b columns, one starting at every s-th column, round the border. Here a
band is told by what is hidden: the mask is everything else. A location of the patch is hidden by
the mask of every band that it does not meet; of bands at every column a patch of p columns meets
p + b - 1. Votes over such masks (``defenses.plurality``) are their smoothing, and its exact worst
case knows which votes the patch reaches where the paper's certificate counts the most there can be.
"""

from __future__ import annotations

import numpy as np

from certmask_jax.masks import geometry
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.mask_set import MaskSet


def column_bands(image_size: Size, patch_size: Size, *, width: int, stride: int = 1) -> MaskSet:
    """Masks that each leave ``width`` columns in a row to be seen, round the border.

    A band that begins near the right border goes on at the left one, so all have the same width.

    Args:
      image_size, patch_size: in pixels.
      width: b, columns that are seen.
      stride: s, columns from one band to the next; the last step may be shorter.

    Returns:
      ``ceil(w / s)`` masks, from left to right.

    Raises:
      CoverageError: where a patch meets every band.
      ValueError: unless 1 <= b < w and 1 <= s <= w.
    """
    image, patch, _ = geometry.checked_sizes(image_size, patch_size)
    height, columns = image
    for name, value, most in (("width", width, columns - 1), ("stride", stride, columns)):
        if not isinstance(value, int | np.integer) or not 1 <= value <= most:
            raise ValueError(
                f"{name}: expected columns from 1 to {most}, of an image of {columns}, got {value}"
            )
    boxes = np.zeros((-(-columns // stride), 2, 4), np.int32)
    for mask, first in zip(boxes, range(0, columns, stride), strict=True):
        last = first + width
        hidden = [(0, first), (last, columns)] if last <= columns else [(last - columns, first)]
        parts = [(0, left, height, right) for left, right in hidden if left < right]
        mask[: len(parts)] = parts
    return MaskSet(boxes, image, patch, name="column_bands")
