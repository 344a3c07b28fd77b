"""Images on the devices: how many are uploaded together.

They are filled up to few numbers, as each is a shape that has programs of its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jax import Array

_BYTES_AT_ONCE = 1 << 26
_MOST = 512
_SIZES = (1, 4, 16, 64, 256)  # or as many as may be
_LEAST_BYTES = 1 << 17  # less takes as long


@dataclasses.dataclass(frozen=True, eq=False)
class Uploaded:
    """Images on every device, for several calls; ``len`` is how many.

    Attributes:
      on_devices: ``uint8[N, h, w, c]``, filled up to one of few N, as each has programs of its own;
        or the features of a stem, ``[N, H, W, ...]``.
    """

    on_devices: Array
    count: int

    def __len__(self) -> int:
        return self.count


def most_images(image_shape: tuple[int, int, int]) -> int:
    """How many images ``uint8[h, w, c]`` one upload holds at most."""
    return int(np.clip(_BYTES_AT_ONCE // int(np.prod(image_shape)), 1, _MOST))


def rooms(images: int, most: int) -> int:
    """The least of few numbers that is at least ``images``, at most ``most``."""
    return next((n for n in _SIZES if images <= n < most), most)


def room_for(images: int, image_shape: tuple[int, int, int]) -> int:
    """For how many images ``uint8[h, w, c]`` the upload is that has room for so many."""
    size, most = int(np.prod(image_shape)), most_images(image_shape)
    sizes = (n for n in _SIZES if n * size >= _LEAST_BYTES and images <= n < most)
    return next(sizes, most)
