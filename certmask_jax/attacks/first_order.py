"""How far pixels can move a goal, to first order: where a patch is worth searching for.

The gradient of an objective at the image without a patch, times the way that each pixel can go. A
patch at a place gains the sum over its pixels; no more than a guess, as models are not linear.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import Placement
from certmask_jax.attacks.search_objectives import Goals, LookedAt, Objective
from certmask_jax.attacks.wanted_labels import ANY

_AT_ONCE = 8


class Ways(NamedTuple):
    """Of R images with a goal each.

    Attributes:
      gains: ``float32[R, h, w]``, by how much each pixel alone can lower the objective, 0 or more.
      ends: ``uint8[R, h, w, c]``, the level where it does: 0 or 255; its own where it does nothing.
    """

    gains: NDArray[np.float32]
    ends: NDArray[np.uint8]


class Pairs(NamedTuple):
    """R images with a goal each, in which something is to be lowered.

    Attributes:
      asked: what is attacked.
      search: whose objective.
      images: ``uint8[R, h, w, c]``.
      labels: ``int32[R]``, true ones.
      targets: ``int32[R]``; ``ANY`` to leave the true label for any other.
      wanted: ``int32[R, V]``, of the masked images whose labels are wanted, else ``ANY``.
    """

    asked: Attacked
    search: PatchSearch
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    targets: NDArray[np.int32]
    wanted: NDArray[np.int32]

    @reproducible()
    def ways(self) -> Ways:
        """How far each pixel alone can lower the objective."""
        if not len(self.images):
            return Ways(np.zeros(self.images.shape[:3], np.float32), self.images)
        objective = self.asked.objective(self.search)
        return Ways(*in_batches(objective, _ways_program(objective), self.asked, self[2:]))


def gain_at(gains: NDArray[np.floating], place: Placement) -> float:
    """The sum over the pixels of a placement."""
    return float(
        sum(gains[row : row + height, column : column + width].sum()
            for height, width, row, column in place.tolist())
    )  # fmt: skip


def in_batches(
    objective: Objective,
    program: Any,
    asked: Attacked,
    arrays: Sequence[NDArray[Any]],
    *,
    corners: NDArray[np.int32] | None = None,
) -> list[NDArray[Any]]:
    """A program on rows of arrays, always as many at once: each of what it gives, joined.

    What is looked at is drawn by one key for all rows: what is compared is to be drawn alike.

    Args:
      objective: that draws.
      program: of ``params``, images, places, what is looked at, and the arrays after the fourth.
      asked: what is attacked.
      arrays: images, labels, targets and wanted labels, as of ``Pairs``, and more.
      corners: ``int32[R, K, 4]``, of a patch; none by default.
    """
    parts = []
    boxes, drawn = jnp.asarray(asked.boxes), _drawing_program(objective)
    places = np.zeros((len(arrays[0]), 1, 4), np.int32) if corners is None else corners
    for at in range(0, len(arrays[0]), _AT_ONCE):
        some = [a[at : at + _AT_ONCE] for a in (places, *arrays)]
        rows = len(some[0])
        filled = [np.pad(a, ((0, _AT_ONCE - rows), *((0, 0),) * (a.ndim - 1))) for a in some]
        there, images, labels, targets, wanted, *more = map(jnp.asarray, filled)
        looked_at = drawn(boxes, images, there, labels, targets, wanted)
        found = program(asked.params, images, there, looked_at, *more)
        parts.append([np.asarray(one)[:rows] for one in found])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@functools.lru_cache(maxsize=16)
def _drawing_program(objective: Objective) -> Any:
    def looked_at(
        boxes: Array, images: Array, corners: Array, labels: Array, targets: Array, wanted: Array
    ) -> LookedAt:
        many = len(images)
        goals = Goals(
            images,
            corners,
            wanted,
            wanted != ANY,
            jnp.ones(wanted.shape, jnp.float32),
            targets == ANY,
            labels,
            jnp.maximum(targets, 0),
        )
        return objective.looked_at(boxes, goals, jnp.repeat(jax.random.key(0)[None], many, axis=0))

    return jax.jit(looked_at)


@functools.lru_cache(maxsize=16)
def _ways_program(objective: Objective) -> Any:
    def ways(
        params: Any, images: Array, corners: Array, looked_at: LookedAt
    ) -> tuple[Array, Array]:
        del corners
        pixels = images.astype(jnp.float32)

        def loss(shown: Array) -> Array:
            return objective.losses(params, looked_at, shown).sum()

        slope = jax.grad(loss)(pixels)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        way = jnp.where(slope > 0, slope * pixels, slope * (pixels - 255))
        ends = jnp.where(slope == 0, images, jnp.where(slope > 0, 0, 255).astype(jnp.uint8))
        return way.sum(axis=-1), ends

    return jax.jit(ways)
