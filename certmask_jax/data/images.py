"""One image made ready for a model: Pillow on uint8, as the weights' authors did it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.models import DataConfig


def preprocess(image: Any, config: DataConfig, image_id: str = "image") -> NDArray[np.uint8]:
    """An image ``uint8[h, w, c]`` (or a Pillow image) as ``uint8`` of the model's input size.

    Resizes the shorter side and crops the centre if the config says so, whatever the image's size,
    as the published evaluations do; else straight to the input size.
    """
    from PIL import Image

    height, width = config.input_size
    mode = "RGB" if config.channels == 3 else "L"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"{image_id}: expected uint8 pixels [h, w, c], got {image.dtype} {image.shape}"
            )
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    image = image.convert(mode)
    how = Image.Resampling[config.interpolation.upper()]
    if config.resize is None:
        image = image.resize((width, height), how)
    else:
        # The longer side is cut to whole pixels, as torchvision does (exact in integers).
        short = min(image.size)
        image = image.resize(tuple(config.resize * side // short for side in image.size), how)
        left = round((image.size[0] - width) / 2)
        top = round((image.size[1] - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, dtype=np.uint8).reshape(height, width, config.channels)


def image_size(image: Any) -> tuple[int, int]:
    """Height and width of an array or a Pillow image."""
    if isinstance(image, np.ndarray):
        return int(image.shape[0]), int(image.shape[1])
    return int(image.size[1]), int(image.size[0])
