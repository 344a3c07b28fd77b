"""A patch as it is stuck into an image: where, how bright, how large."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

_LEVELS = 255.0


@dataclasses.dataclass(frozen=True)
class Transformations:
    """What may happen to a patch on its way into an image.

    Attributes:
      brightness: least and most; its levels are multiplied by a number between them.
      scale: least and most, in (0, 1]; a smaller patch begins at the same corner.
    """

    brightness: tuple[float, float] = (1.0, 1.0)
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.brightness
        if not 0 < low <= high < math.inf:
            raise ValueError(
                f"brightness: expected finite 0 < least <= most, got {self.brightness}"
            )
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale: expected 0 < least <= most <= 1, got {self.scale}")


def pasted(
    image: ArrayLike,
    patch: ArrayLike,
    corner: ArrayLike,
    *,
    brightness: ArrayLike = 1.0,
    scale: ArrayLike = 1.0,
) -> Array:
    """An image with a patch in it, differentiable by the patch.

    Args:
      image: ``[h, w, c]``, levels in 0..255.
      patch: ``[height, width, c]``, in levels.
      corner: ``int32[2]``, its row and column.
      brightness, scale: as of ``Transformations``; pixels of a smaller patch are the nearest ones.

    Returns:
      ``float32[h, w, c]``.
    """
    shown, levels = (jnp.asarray(a).astype(jnp.float32) for a in (image, patch))
    where = jnp.asarray(corner)
    index, inside = [], []
    for axis in (0, 1):
        away = jnp.arange(shown.shape[axis], dtype=jnp.int32) - where[axis]
        at = jnp.floor((away.astype(jnp.float32) + 0.5) / jnp.float32(scale)).astype(jnp.int32)
        inside.append((away >= 0) & (at < levels.shape[axis]))
        index.append(jnp.clip(at, 0, levels.shape[axis] - 1))
    there = levels[index[0]][:, index[1]] * jnp.float32(brightness)
    both = inside[0][:, None] & inside[1][None, :]
    return jnp.where(both[:, :, None], jnp.clip(there, 0, _LEVELS), shown)
