"""How far pixels can move a goal, to first order: where a patch is worth searching for.

The gradient of an objective at the image without a patch, times the way that each pixel can go. A
patch at a place gains the sum over its pixels; no more than a guess, as models are not linear.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import Placement
from certmask_jax.attacks.search_objectives import Goals, Objective
from certmask_jax.attacks.wanted_labels import ANY

_AT_ONCE = 8


@reproducible()
def pixel_gains(
    asked: Attacked,
    search: PatchSearch,
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    targets: NDArray[np.int32],
    *,
    wanted: NDArray[np.int32],
) -> NDArray[np.float32]:
    """By how much each pixel alone can lower an objective: ``float32[R, h, w]``, 0 or more.

    Args:
      asked: what is attacked.
      search: whose objective.
      images: ``uint8[R, h, w, c]``.
      labels: ``int32[R]``, true ones.
      targets: ``int32[R]``; ``ANY`` to leave the true label for any other.
      wanted: ``int32[R, V]``, of the masked images whose labels are wanted, else ``ANY``.
    """
    program = _program(asked.objective(search))
    parts, count = [], len(images)
    for at in range(0, count, _AT_ONCE):
        some = [a[at : at + _AT_ONCE] for a in (images, labels, targets, wanted)]
        rows = len(some[0])
        filled = [np.pad(a, ((0, _AT_ONCE - rows), *((0, 0),) * (a.ndim - 1))) for a in some]
        gains = program(asked.params, jnp.asarray(asked.boxes), *map(jnp.asarray, filled))
        parts.append(np.asarray(gains)[:rows])
    return np.concatenate([np.zeros((0, *images.shape[1:3]), np.float32), *parts])


def gain_at(gains: NDArray[np.floating], place: Placement) -> float:
    """The sum over the pixels of a placement."""
    return float(
        sum(gains[row : row + height, column : column + width].sum()
            for height, width, row, column in place.tolist())
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _program(objective: Objective) -> Any:
    def gains(
        params: Any, boxes: Array, images: Array, labels: Array, targets: Array, wanted: Array
    ) -> Array:
        pixels = images.astype(jnp.float32)
        many = len(images)
        goals = Goals(
            images,
            jnp.zeros((many, 1, 4), jnp.int32),
            wanted,
            wanted != ANY,
            jnp.ones(wanted.shape, jnp.float32),
            targets == ANY,
            labels,
            jnp.maximum(targets, 0),
        )
        keys = jax.random.split(jax.random.key(0), many)

        def loss(shown: Array) -> Array:
            return objective.losses(params, boxes, goals, shown, keys).sum()

        slope = jax.grad(loss)(pixels)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        way = jnp.where(slope > 0, slope * pixels, slope * (pixels - 255))
        return way.sum(axis=-1)

    return jax.jit(gains)
