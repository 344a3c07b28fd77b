"""Images as data URIs, so that a page is one file: small ones as they are, photographs smaller."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALL = 64
"""Images of at most so many pixels a side are kept pixel by pixel."""

_STEPS = ((192, 72), (160, 68), (128, 64), (112, 60), (96, 55), (80, 50), (64, 45), (48, 40))
_TRIED = 24  # images, to find what fits


def data_uris(images: Sequence[NDArray[np.uint8]], *, budget: int) -> list[str]:
    """Each image as a ``data:`` address, all together about ``budget`` characters or fewer.

    Args:
      images: ``uint8[h, w, c]``, of 1 or 3 channels (of more the first three are shown).
      budget: characters. Photographs are made as small as that takes, down to 48 pixels a side.
    """
    if not images:
        return []
    if max(images[0].shape[:2]) <= SMALL:
        return [_png(image) for image in images]
    tried = images[:: max(1, len(images) // _TRIED)]
    for side, quality in _STEPS:
        mean = sum(len(_jpeg(image, side, quality)) for image in tried) / len(tried)
        if mean * len(images) <= budget:
            break
    return [_jpeg(image, side, quality) for image in images]


def _of(image: NDArray[np.uint8]) -> Image.Image:
    pixels = image[..., 0] if image.shape[-1] < 3 else image[..., :3]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    _of(image).save(file, "png", optimize=True)
    return _address("png", file)


def _jpeg(image: NDArray[np.uint8], side: int, quality: int) -> str:
    picture, file = _of(image), io.BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(file, "jpeg", quality=quality, optimize=True)
    return _address("jpeg", file)


def _address(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
