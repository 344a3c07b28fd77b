"""The share of what a model sees that objects cover: boxes of a file, through its resize and crop.

``images.preprocess`` resizes the shorter side and crops the centre, or resizes straight to the
input size. The same is done here to the edges of boxes, and their union is measured, so that a
pixel that two boxes cover counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.data.object_boxes import Box, Objects
from certmask_jax.models import DataConfig

_SLACK = 1.0
"""Pixels by which a box may leave its image: annotators count from 0 or 1, and round."""


def resized(size: tuple[float, float], config: DataConfig) -> tuple[float, float, float, float]:
    """How an image of ``(height, width)`` is resized and cropped before a model sees it.

    Returns:
      ``(height, width, top, left)``: its size after the resize, and where the crop of
      ``config.input_size`` begins in it.
    """
    height, width = config.input_size
    if config.resize is None:
        return height, width, 0, 0
    short = min(size)
    down, across = (config.resize * side // short for side in size)
    return down, across, round((down - height) / 2), round((across - width) / 2)


def placed(
    boxes: Sequence[Box], size: tuple[float, float], config: DataConfig
) -> NDArray[np.float64]:
    """Boxes of an image where the model sees them.

    Args:
      boxes: ``(left, top, right, bottom)`` in pixels of the file, n of them.
      size: ``(height, width)`` of the file.
      config: how the model wants its images.

    Returns:
      ``float64[n, 4]`` in pixels of the input, in the same order of edges, cut to it: a box outside
      the crop has no area.

    Raises:
      ValueError: for a box that leaves its image by more than a pixel.
    """
    height, width = size
    given = np.asarray(boxes, np.float64).reshape(-1, 4)
    ends = np.array([width, height, width, height], np.float64)
    outside = ((given < -_SLACK) | (given > ends + _SLACK)).any(axis=1)
    if outside.any():
        left, top, right, bottom = given[outside.argmax()].tolist()
        raise ValueError(
            f"expected boxes inside the image of {height:g}x{width:g} (height, width) pixels, got "
            f"x {left:g} to {right:g}, y {top:g} to {bottom:g}; are they of another size of it?"
        )
    down, across, top, left = resized(size, config)
    scale = np.array([across / width, down / height] * 2)
    begin = np.array([left, top] * 2)
    seen = np.array([*config.input_size[::-1]] * 2, np.float64)
    return np.clip(np.clip(given, 0, ends) * scale - begin, 0, seen)


def covered_share(boxes: NDArray[np.float64], size: tuple[int, int]) -> float:
    """The share of ``size`` (height, width) that the union of boxes covers, exact.

    Args:
      boxes: ``float64[n, 4]``, ``(left, top, right, bottom)`` inside the image.
      size: in the same pixels.
    """
    across, down = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    widths, heights = np.diff(across), np.diff(down)
    covered = np.zeros((len(heights), len(widths)), np.bool_)
    for left, top, right, bottom in boxes:
        rows = (down[:-1] >= top) & (down[1:] <= bottom)
        columns = (across[:-1] >= left) & (across[1:] <= right)
        covered |= rows[:, None] & columns[None, :]
    share = float(heights @ covered @ widths) / (size[0] * size[1])
    return min(1.0, share)  # the sum of rounded differences may be a little more


def shares(
    objects: Mapping[str, Objects],
    sizes: Mapping[str, tuple[int, int]],
    config: DataConfig,
) -> dict[str, float]:
    """The share of what the model sees of each image that its objects cover.

    Args:
      objects: id -> what ``object_boxes.read`` found of it.
      sizes: id -> ``(height, width)`` of its file, where ``objects`` does not say.
      config: how the model wants its images.

    Raises:
      ValueError: for a box outside its image; names it.
    """
    made = {}
    for one, (boxes, own) in objects.items():
        size = sizes.get(one) if own is None else own
        if size is None:
            raise ValueError(f"{one}: expected the size of its file, or the file, got neither")
        try:
            made[one] = covered_share(placed(boxes, size, config), config.input_size)
        except ValueError as error:
            raise ValueError(f"{one}: {error}") from error
    return made
