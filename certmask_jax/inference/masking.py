"""Masks on pixels: which ones a union of boxes hides, and images with these replaced by the fill.

Pure functions of arrays, for ``jit``, ``vmap`` and ``grad``. A hidden pixel is chosen away
(``where``) and never multiplied by zero, so that nothing of it is left, NaN and infinity included.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def masked_images(images: ArrayLike, boxes: ArrayLike, fill: ArrayLike) -> Array:
    """Images in which the pixels of one mask are replaced by the fill.

    The derivative with respect to a hidden pixel is exactly 0, and to any other one 1.

    Args:
      images: ``[..., h, w, c]``, floating or ``uint8``.
      boxes: ``int32[R, 4]``, the union of boxes that is hidden: top, left, bottom, right, the last
        two exclusive. A box of zeros hides nothing. For many masks, ``jax.vmap`` over this one.
      fill: what hidden pixels become, in the unit of the images: a number, or ``[c]``.

    Returns:
      ``[..., h, w, c]`` of the dtype of the images.

    Raises:
      ValueError: for images without rows, columns and channels, boxes of another shape, or a fill
        of another number of channels.
    """
    pixels, corners = jnp.asarray(images), jnp.asarray(boxes)
    if pixels.ndim < 3:
        raise ValueError(f"images: expected shape [..., h, w, c], got {list(pixels.shape)}")
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(
            f"boxes: expected one mask of shape [R, 4], got {list(corners.shape)}; for many masks "
            "use jax.vmap over them"
        )
    height, width, channels = pixels.shape[-3:]
    values = jnp.asarray(fill, dtype=pixels.dtype).reshape(-1)
    if values.shape[0] not in (1, channels):
        raise ValueError(f"fill: expected 1 value or {channels} (channels), got {values.shape[0]}")
    outer = (1,) * (pixels.ndim - 3)  # ranks are equal, whatever JAX is set to allow
    hidden = hidden_pixels(corners, (height, width)).reshape(*outer, height, width, 1)
    return jnp.where(hidden, values.reshape(*outer, 1, 1, -1), pixels)


def hidden_pixels(boxes: Array, image_size: tuple[int, int]) -> Array:
    """``bool[h, w]``: the pixels that one mask, ``int32[R, 4]``, hides."""
    rows, cols = (jnp.arange(n, dtype=jnp.int32)[None] for n in image_size)  # each [1, n]
    top, left, bottom, right = boxes.T[..., None]  # each [R, 1]
    in_rows = (rows >= top) & (rows < bottom)  # [R, h]
    in_cols = (cols >= left) & (cols < right)  # [R, w]
    return (in_rows[:, :, None] & in_cols[:, None, :]).any(axis=0)
