"""From uint8 pixels and a mask to what the model sees: normalise, mask, and perhaps resize.

Masking is ``where(hidden, fill, pixel)`` and never a product, so that nothing of a hidden pixel is
left, NaN included.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

Precision = Literal["highest", "high", "default", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From uint8 pixels to what the model sees, and what a masked pixel is replaced by.

    Attributes:
      mean, std: per channel, of pixels scaled to [0, 1].
      fill: pixel value per channel in [0, 255] that masked pixels take before normalisation, or
        None for the mean colour (0 after normalisation, as PatchCleanser does).
      precision: of the products: ``"highest"`` (float32), ``"high"``, ``"default"`` (the
        backend's choice: bf16 on TPU, TF32 on recent NVIDIA), or ``"bfloat16"``, where parameters
        and inputs are cast to bfloat16.
      resize_to: ``(height, width)`` that the *masked* image is resized to, bicubic; None for none.
        Patch and masks then live in the original pixels: a patch that is put on before an
        upsampling spreads, by up to the width of the kernel, over pixels that masks of the
        resized image do not hide.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fill: tuple[float, ...] | None = None
    precision: Precision = "highest"
    resize_to: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("highest", "high", "default", "bfloat16"):
            raise ValueError(
                f"precision: expected highest, high, default or bfloat16, got {self.precision!r}"
            )
        if not all(s > 0 for s in self.std):
            raise ValueError(f"std: expected positive numbers, got {self.std}")
        if self.fill is not None and not all(0 <= v <= 255 for v in self.fill):
            raise ValueError(f"fill: expected pixel values in [0, 255], got {self.fill}")
        if self.resize_to is not None and not all(n >= 1 for n in self.resize_to):
            raise ValueError(f"resize_to: expected positive pixels, got {self.resize_to}")

    def check_channels(self, channels: int) -> None:
        """``ValueError`` unless mean, std and fill have one value, or one for each channel."""
        for name in ("mean", "std", "fill"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, channels):
                raise ValueError(
                    f"{name}: expected {channels} values (channels) or 1, got {values}"
                )

    def model_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """What the model sees of images of ``(h, w, c)``."""
        return image_shape if self.resize_to is None else (*self.resize_to, image_shape[2])


def model_input(image: Array, boxes: Array, preprocessing: Preprocessing) -> Array:
    """One masked image as the model sees it.

    Args:
      image: ``uint8[h, w, c]``.
      boxes: ``int32[R, 4]``, the union of boxes that is masked.
      preprocessing: how; a constant of the compiled program.

    Returns:
      ``float32[h, w, c]``, or of the size that it is resized to.
    """
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    fill = preprocessing.fill
    filled = np.zeros(1) if fill is None else (np.asarray(fill) / 255 - mean) / std
    pixels = (image.astype(jnp.float32) / 255 - mean) / std
    hidden = hidden_pixels(boxes, (image.shape[0], image.shape[1]))
    masked = jnp.where(hidden[:, :, None], jnp.asarray(filled, dtype=jnp.float32), pixels)
    if preprocessing.resize_to is None:
        return masked
    # The cubic kernel overshoots: each axis is cut to the range of pixels, columns before rows, as
    # Pillow does on uint8 (but for its rounding to whole grey levels).
    height, width = preprocessing.resize_to
    lowest, highest = (0 - mean) / std, (1 - mean) / std
    wide = jax.image.resize(masked, (masked.shape[0], width, masked.shape[2]), "bicubic")
    wide = jnp.clip(wide, lowest, highest)
    tall = jax.image.resize(wide, (height, width, masked.shape[2]), "bicubic")
    return jnp.clip(tall, lowest, highest)


def hidden_pixels(boxes: Array, image_size: tuple[int, int]) -> Array:
    """``bool[h, w]``: the pixels that one mask, ``int32[R, 4]``, hides."""
    rows, cols = (jnp.arange(n, dtype=jnp.int32) for n in image_size)
    top, left, bottom, right = boxes.T[..., None]  # each [R, 1]
    in_rows = (rows >= top) & (rows < bottom)  # [R, h]
    in_cols = (cols >= left) & (cols < right)  # [R, w]
    return (in_rows[:, :, None] & in_cols[:, None, :]).any(axis=0)


def check_images(images: NDArray[np.uint8], image_size: tuple[int, int]) -> None:
    """``ValueError`` unless images are ``uint8[T, h, w, c]`` of ``image_size``, T >= 1."""
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1:3] != tuple(image_size) or len(array) < 1:
        raise ValueError(
            f"images: expected shape [T, {image_size[0]}, {image_size[1]}, channels] with T >= 1 "
            f"(the size that the masks were built for), got {array.shape}"
        )
    if array.dtype != np.uint8:
        span = f" in [{array.min():g}, {array.max():g}]" if array.size else ""
        raise ValueError(
            f"images: expected uint8 pixels in 0..255, got {array.dtype}{span}; do not normalise "
            "them before, that is what preprocessing is for"
        )
