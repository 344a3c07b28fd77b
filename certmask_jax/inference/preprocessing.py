"""From pixels and a mask to what the model sees: normalise, mask, and perhaps resize."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax.inference.masking import masked_images
from certmask_jax.masks import geometry

_LEAST_STD = 1e-6  # whose inverse float32 still tells pixels apart by
Precision = Literal["highest", "high", "default", "bfloat16"]
Encoding = Literal["fill", "complement", "mask_channel"]
ENCODINGS: dict[Encoding, str] = {
    "fill": "normalised pixels, hidden ones the fill",
    "complement": "a channel x and one 1 - x for each of the image, in [0, 1], hidden pixels 0 in "
    "both (De-Randomized Smoothing)",
    "mask_channel": "normalised pixels and one channel more that is 1 where they are seen, hidden "
    "pixels 0 in all (smoothed ViTs)",
}
"""How a model is told what is hidden, and a line about each."""


def encoded_channels(encoding: Encoding, channels: int) -> int:
    """How many channels a model sees of images with so many; see ``Preprocessing.encoding``."""
    return {"complement": 2 * channels, "mask_channel": channels + 1}.get(encoding, channels)


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
      encoding: what a model is given of a pixel. ``"fill"``: c channels, normalised, and the fill
        where it is hidden. ``"complement"``: 2c channels, x and then 1 - x with x in [0, 1], and 0
        in all of them where it is hidden, which no pixel is; mean and std stay as they are by
        default. ``"mask_channel"``: c + 1 channels, normalised, and 1 where it is seen, and 0 in
        all of them where it is hidden.

    Raises:
      ValueError: for a value that cannot be, or one that the encoding has no use for.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fill: tuple[float, ...] | None = None
    precision: Precision = "highest"
    resize_to: tuple[int, int] | None = None
    encoding: Encoding = "fill"

    def __post_init__(self) -> None:
        for name in ("mean", "std", "fill"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _as_tuple(getattr(self, name), name))
        if self.precision not in ("highest", "high", "default", "bfloat16"):
            raise ValueError(
                f"precision: expected highest, high, default or bfloat16, got {self.precision!r}"
            )
        if not all(0 <= m <= 1 for m in self.mean):
            raise ValueError(
                f"mean: expected numbers in [0, 1], as pixels are scaled to that, got {self.mean}; "
                "divide means of pixels in 0..255 by 255"
            )
        if not all(_LEAST_STD <= s <= 1 for s in self.std):
            raise ValueError(
                "std: expected numbers above 0 and at most 1, as pixels are scaled to [0, 1], got "
                f"{self.std}; divide those of pixels in 0..255 by 255"
            )
        if self.fill is not None and not all(0 <= v <= 255 for v in self.fill):
            raise ValueError(f"fill: expected pixel values in [0, 255], got {self.fill}")
        if self.resize_to is not None:
            object.__setattr__(self, "resize_to", geometry.as_size(self.resize_to, "resize_to"))
        self._check_encoding()

    def _check_encoding(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(
                f"encoding: expected one of {', '.join(ENCODINGS)}, got {self.encoding!r}"
            )
        if self.encoding != "fill" and self.fill is not None:
            raise ValueError(
                f"fill: expected none beside the encoding {self.encoding}, which has hidden pixels "
                f"0 in every channel, got {self.fill}"
            )
        if self.encoding == "complement" and (any(self.mean) or {*self.std} != {1.0}):
            raise ValueError(
                f"mean: expected 0, and std 1, beside the encoding complement, which shows pixels "
                f"in [0, 1], got {self.mean} and {self.std}"
            )

    def facts(self) -> dict[str, Any]:
        """Its fields, for the record of a run; the encoding where it is not the usual one."""
        facts = dataclasses.asdict(self)
        if self.encoding == "fill":  # as in records from before there were others
            del facts["encoding"]
        return facts

    @classmethod
    def of_encoding(
        cls,
        encoding: Encoding,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        **more: Any,
    ) -> Preprocessing:
        """That of a model whose pixels are normalised by ``mean`` and ``std``, unless ``encoding``
        shows them in [0, 1]; ``more`` as of the class.
        """
        if encoding == "complement":
            return cls(encoding=encoding, **more)
        return cls(mean=mean, std=std, encoding=encoding, **more)

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
        height, width = image_shape[:2] if self.resize_to is None else self.resize_to
        return height, width, encoded_channels(self.encoding, image_shape[2])

    def products(self) -> AbstractContextManager[None]:
        """A context in which products have the precision that was chosen."""
        # What is bfloat16 already has nothing more to choose.
        chosen = "default" if self.precision == "bfloat16" else self.precision
        context: AbstractContextManager[None] = jax.default_matmul_precision(chosen)
        return context

    @property
    def model_dtype(self) -> Any:
        """What the numbers are that the model sees: float32, or bfloat16 at that precision."""
        return jnp.dtype(jnp.bfloat16 if self.precision == "bfloat16" else jnp.float32)


def model_input(image: Array, boxes: Array, preprocessing: Preprocessing) -> Array:
    """One masked image as the model sees it.

    Args:
      image: ``[h, w, c]``, levels in 0..255, ``uint8`` or floating.
      boxes: ``int32[R, 4]``, the union of boxes that is masked.
      preprocessing: how; a constant of the compiled program.

    Returns:
      ``float32[h, w, C]``, or of the size that it is resized to; C as of ``encoded_channels``.
    """
    # Each [1, 1, channels], or [1, 1, 1]: ranks are equal, whatever JAX is set to allow.
    mean, std = (
        np.asarray(v, np.float32).reshape(1, 1, -1) for v in (preprocessing.mean, preprocessing.std)
    )
    fill = preprocessing.fill
    filled = np.zeros((1, 1, 1)) if fill is None else (_pixel(fill) / 255 - mean) / std
    pixels = (image.astype(jnp.float32) / 255 - mean) / std
    lowest, highest = (0 - mean) / std, (1 - mean) / std
    channels = image.shape[2]
    if preprocessing.encoding == "complement":
        pixels = jnp.concatenate([pixels, 1 - pixels], axis=2)
    elif preprocessing.encoding == "mask_channel":
        seen = jnp.ones((*image.shape[:2], 1), jnp.float32)
        pixels = jnp.concatenate([pixels, seen], axis=2)
        lowest, highest = (
            np.append(np.broadcast_to(of, (1, 1, channels)), one).reshape(1, 1, -1)
            for of, one in ((lowest, np.float32(0)), (highest, np.float32(1)))
        )
    masked = masked_images(pixels, boxes, filled.reshape(-1))
    if preprocessing.resize_to is None:
        return masked
    # The cubic kernel overshoots: each axis is cut to the range of pixels, columns before rows, as
    # Pillow does on uint8 (but for its rounding to whole grey levels).
    height, width = preprocessing.resize_to
    wide = jax.image.resize(masked, (masked.shape[0], width, masked.shape[2]), "bicubic")
    wide = jnp.clip(wide, lowest, highest)
    tall = jax.image.resize(wide, (height, width, masked.shape[2]), "bicubic")
    return jnp.clip(tall, lowest, highest)


def check_images(
    images: NDArray[np.uint8],
    image_size: tuple[int, int],
    channels: int | None = None,
    *,
    may_be_unit: bool = False,
) -> None:
    """``ValueError`` unless images are ``uint8[T, h, w, c]`` of ``image_size``, T >= 1.

    ``channels`` is c where it is known. With ``may_be_unit`` the caller has ``pixels='unit'``, and
    the error says so.
    """
    array = np.asarray(images)
    height, width = image_size
    if array.ndim != 4 or array.shape[1:3] != (height, width) or len(array) < 1:
        raise ValueError(
            f"images: expected shape [T, {height}, {width}, {channels or 'channels'}] with T >= 1 "
            f"(the size that the masks were built for), got {list(array.shape)}"
            f"{_hint(array.shape, (height, width), channels)}"
        )
    if channels is not None and array.shape[3] != channels:
        hint = "; repeat a grey channel three times" if array.shape[3] == 1 else ""
        raise ValueError(
            f"images: expected {channels} channels, as the model was given with, got "
            f"{array.shape[3]}{hint}"
        )
    if array.dtype != np.uint8:
        is_number = np.issubdtype(array.dtype, np.number) and array.size
        span = f" in [{array.min():g}, {array.max():g}]" if is_number else ""
        if may_be_unit:
            unit = "pixels='unit' takes floats in [0, 1]"
        else:
            unit = "floats in [0, 1] become levels by np.rint(images * 255).astype(np.uint8)"
        raise ValueError(
            f"images: expected uint8 pixels in 0..255, got {array.dtype}{span}; do not normalise "
            f"them before, that is what preprocessing is for ({unit})"
        )


def from_unit(images: ArrayLike) -> NDArray[np.uint8]:
    """Pixels in [0, 1] as the nearest of the 256 levels, ``uint8``.

    A certificate about levels holds for any pixels in [0, 1] then: each level depends on one pixel
    alone, so an image with a patch differs from the one without only where the patch is.

    Raises:
      ValueError: for pixels outside [0, 1], NaN among them, or no floating numbers.
    """
    array = np.asarray(images)
    if not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 too
        raise ValueError(
            f"images: expected floating pixels in [0, 1] (pixels='unit'), got {array.dtype}; uint8 "
            "images go without it"
        )
    array = array.astype(np.float64)
    if not ((array >= 0) & (array <= 1)).all():
        outside = array[~((array >= 0) & (array <= 1))]
        raise ValueError(
            f"images: expected pixels in [0, 1] (pixels='unit'), got {outside.flat[0]:g} among them"
        )
    return np.rint(array * 255).astype(np.uint8)


def _hint(shape: tuple[int, ...], image_size: tuple[int, int], channels: int | None) -> str:
    """What may have been meant by images of another shape, of ``channels`` where that is known."""
    grey = "grey images have one channel: images[..., None]"
    if len(shape) == 4 and shape[2:] == image_size:
        return "; channels come last: np.moveaxis(images, 1, -1)"
    if len(shape) == 3 and shape[0] in (1, 3) and shape[1:] == image_size and channels != 1:
        one = "one image is a batch of one, channels last: np.moveaxis(images, 0, -1)[None]"
        return f"; {one}" if channels else f"; {one}; {grey}"
    if len(shape) == 3 and shape[:2] == image_size and shape[2] in (1, 3):
        return "; one image is a batch of one: images[None]"
    if shape == image_size:
        return "; one grey image is a batch of one with one channel: images[None, :, :, None]"
    if len(shape) == 3 and shape[1:] == image_size:
        return f"; {grey}"
    return ""


def _as_tuple(values: Any, name: str) -> tuple[float, ...]:
    """Numbers, one for all channels or one for each, as a tuple that can be hashed."""
    try:
        kind = np.asarray(values).dtype
        if kind == np.bool_ or not np.issubdtype(kind, np.number):
            raise TypeError("no numbers")
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected numbers, one for each channel, got {values!r}"
        ) from error
    if array.ndim > 1 or array.size < 1:
        raise ValueError(f"{name}: expected numbers, one for each channel, got {values!r}")
    return tuple(array.ravel().tolist())


def _pixel(values: tuple[float, ...]) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(1, 1, -1)
