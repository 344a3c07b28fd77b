"""Which pixels of an image a cell sees, also where images are resized before the model sees them.

Of what the model sees, cell i of an axis sees the pixels from ``i * stride`` to ``i * stride +
field``. Where that was resized, each of these is made of several pixels of the image: those that
the bicubic kernel reaches. A cell sees all that any of them is made of, so that a patch in the
image's own pixels reaches the cells which see one of its pixels (soundness, 12.9).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_KERNEL = 2.0  # how far the cubic kernel reaches (Keys, 1981), in pixels of the coarser image
_ROUNDING = 1 / 64  # pixels more, as places are computed in float32


def cell_pixels(
    size: int, *, field: int, stride: int, seen_size: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel, and one past the last, that each cell of an axis sees: ``int64[n]`` twice.

    Both grow from cell to cell. After a resize they may hold a pixel or two more than a cell sees,
    and never fewer.

    Args:
      size: pixels of the image.
      field, stride: of a cell, in pixels of what the model sees.
      seen_size: pixels of what the model sees; None, or ``size``: the image itself. Others are made
        as ``jax.image.resize(..., "bicubic")`` makes them, with antialiasing where they are fewer.

    Raises:
      ValueError: for a field that is larger than what the model sees.
    """
    seen = size if seen_size is None else seen_size
    if field > seen:
        raise ValueError(f"field: expected at most {seen} pixels, got {field}")
    begin = np.arange((seen - field) // stride + 1, dtype=np.int64) * stride
    if seen == size:
        return begin, begin + field
    scale = size / seen
    reach = _KERNEL * max(1.0, scale) + _ROUNDING

    def middle(pixels: NDArray[np.int64]) -> NDArray[np.floating]:
        return (pixels + 0.5) * scale - 0.5

    first = np.ceil(middle(begin) - reach).astype(np.int64)
    last = np.floor(middle(begin + field - 1) + reach).astype(np.int64)
    return np.clip(first, 0, size - 1), np.clip(last, 0, size - 1) + 1
