"""Images as data URIs, so that a page is one file: small ones as they are, photographs smaller."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALL = 64
"""Images of at most so many pixels a side are kept pixel by pixel."""

_STEPS = ((192, 72), (160, 68), (128, 64), (112, 60), (96, 55), (80, 50), (64, 45), (48, 40))
_TRIED = 24  # images, to find what fits


def data_uris(images: Sequence[NDArray[np.uint8] | None], *, budget: int) -> list[str | None]:
    """Each image as a ``data:`` address, all together about ``budget`` characters or fewer.

    Args:
      images: ``uint8[h, w, c]``, of 1 or 3 channels (of more the first three are shown); None
        where one is not at hand, which stays None.
      budget: characters. Photographs are made as small as that takes, down to 48 pixels a side.
    """
    there = [image for image in images if image is not None]
    if not there:
        return [None] * len(images)
    encode = _encoder(there[:: max(1, len(there) // _TRIED)], len(there), budget)
    return [None if image is None else encode(image) for image in images]


def first_data_uris(
    read: Callable[[int], NDArray[np.uint8] | None], count: int, *, budget: int
) -> tuple[dict[int, str], int]:
    """As ``data_uris``, of as many of the first images as fit; others are not read.

    Args:
      read: the image of a number below ``count``, or None where it is not there.
      count: how many images there are; about two dozen of them tell how small they are made.
      budget: characters, which are not exceeded.

    Returns:
      Addresses by number, and how many of the images that were read in their turn are not there.
    """
    tried = [read(number) for number in range(0, count, max(1, count // _TRIED))]
    there = [image for image in tried if image is not None]
    made: dict[int, str] = {}
    encode = _encoder(there, count, budget) if there else _png
    used = gone = 0
    for number in range(count):
        image = read(number)
        if image is None:
            gone += 1
            continue
        address = encode(image)
        used += len(address)
        if used > budget:
            break
        made[number] = address
    return made, gone


def _encoder(
    tried: Sequence[NDArray[np.uint8]], count: int, budget: int
) -> Callable[[NDArray[np.uint8]], str]:
    """How images are written of which some are given, all ``count`` within the budget."""
    if max(tried[0].shape[:2]) <= SMALL:
        return _png
    for side, quality in _STEPS:
        mean = sum(len(_jpeg(image, side, quality)) for image in tried) / len(tried)
        if mean * count <= budget:
            break
    return functools.partial(_jpeg, side=side, quality=quality)


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
