"""Whether cells keep their bits when pixels change that they do not see.

Proofs on local evidence, and on maps of features, take it that a patch leaves every cell alone
whose field it does not meet. In exact arithmetic that is what a field is. On a machine it takes
that each cell is computed from its field alone, in one order: a convolution that transforms tiles
of an image (Winograd's, or Fourier's) mixes last bits of pixels into cells that do not see them.
So it is tried, on the devices and in the batch that will be used.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing, model_input

_MOST_BYTES = 1 << 28  # of images at once


def cells_keep_bits(
    function: ApplyFn,
    params: Any,
    image_shape: tuple[int, int, int],
    *,
    field: tuple[int, int],
    stride: tuple[int, int],
    preprocessing: Preprocessing,
    images: int,
) -> bool:
    """Whether patches of noise, at many places, leave the bits of all other cells alone.

    A trial and no proof: it finds an algorithm that mixes tiles, which does so at most places.

    Args:
      function: ``(params, normalised images [B, h, w, c]) -> [B, H, W, ...]``.
      params: its parameters.
      image_shape: ``(height, width, channels)`` of ``uint8`` images.
      field, stride: what cells see, in pixels: (height, width).
      preprocessing: without a resize.
      images: B, as many as are evaluated at once on a device.
    """
    height, width, _ = image_shape
    random = np.random.default_rng(0)
    count = max(1, min(images, _MOST_BYTES // (4 * int(np.prod(image_shape)))))
    clean = np.repeat(random.integers(0, 256, (1, *image_shape), np.uint8), count, axis=0)
    patched, meets = clean.copy(), []
    for image in patched:
        side = (max(1, height // 4), max(1, width // 4))
        top, left = (
            int(random.integers(n - s + 1)) for n, s in zip(image_shape, side, strict=False)
        )
        where = (slice(top, top + side[0]), slice(left, left + side[1]))
        image[where] = random.choice(np.array([0, 255], np.uint8), image[where].shape)
        meets.append((top, left, top + side[0], left + side[1]))

    @jax.jit
    def cells(parameters: Any, pixels: Array) -> Array:
        nothing = jnp.zeros((1, 4), jnp.int32)
        seen = jax.vmap(lambda image: model_input(image, nothing, preprocessing))(pixels)
        is_bfloat16 = preprocessing.precision == "bfloat16"
        precision = "default" if is_bfloat16 else preprocessing.precision
        with jax.default_matmul_precision(precision):
            return function(parameters, seen.astype(preprocessing.model_dtype))

    with unguarded():
        before, after = (np.asarray(cells(params, jnp.asarray(p))) for p in (clean, patched))
    same = (before == after) | ((before != before) & (after != after))
    same = same.reshape(*same.shape[:3], -1).all(axis=-1)
    met = np.stack([_met(box, same.shape[1:], field, stride) for box in meets])
    return bool((same | met).all())


def _met(
    box: tuple[int, int, int, int],
    grid: tuple[int, ...],
    field: tuple[int, int],
    stride: tuple[int, int],
) -> NDArray[np.bool_]:
    """``bool[H, W]``: the cells whose fields meet a box of pixels."""
    on_axes = []
    for axis in (0, 1):
        first = np.arange(grid[axis]) * stride[axis]
        on_axes.append((first < box[axis + 2]) & (first + field[axis] > box[axis]))
    return on_axes[0][:, None] & on_axes[1][None, :]
