"""How far pixels can move a goal, to first order: where a patch is worth searching for.

The gradient of an objective at the image without a patch, times the way that each pixel can go. A
patch at a place gains the sum over its pixels; no more than a guess, as models are not linear. So
patches of pixels at the ends of these ways can be tried at many places, for one pass each.
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
from certmask_jax.attacks.patched_pixels import Placement, corners_of, with_patches
from certmask_jax.attacks.search_objectives import Goals, Objective
from certmask_jax.attacks.wanted_labels import ANY

_AT_ONCE = 8
_MOST_TRIED = 1024


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
        program = _ways_program(self.asked.objective(self.search))
        return Ways(*_in_batches(program, self.asked, self[2:]))

    @reproducible()
    def losses_tried(
        self, ends: NDArray[np.uint8], places: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The objective with a patch at each of some places: ``float32[R, P]``.

        Args:
          ends: ``uint8[R, h, w, c]``, the pixels of the patch wherever it is.
          places: ``int64[R, P, K, 4]``, P of each.
        """
        count, each = places.shape[:2]
        if not count * each:
            return np.zeros((count, each), np.float32)
        row = np.repeat(np.arange(count), each)
        corners = corners_of(places).reshape(count * each, *places.shape[2:])
        program = _losses_program(self.asked.objective(self.search))
        parts = []
        for at in range(0, len(row), _MOST_TRIED):  # images are repeated, so not all at once
            rows = row[at : at + _MOST_TRIED]
            own = [part[rows] for part in (*self[2:], ends)]
            parts += _in_batches(program, self.asked, (*own, corners[at : at + _MOST_TRIED]))
        return np.concatenate(parts).reshape(count, each)


def gain_at(gains: NDArray[np.floating], place: Placement) -> float:
    """The sum over the pixels of a placement."""
    return float(
        sum(gains[row : row + height, column : column + width].sum()
            for height, width, row, column in place.tolist())
    )  # fmt: skip


def _in_batches(
    program: Any, asked: Attacked, arrays: Sequence[NDArray[Any]]
) -> list[NDArray[Any]]:
    """A program on rows of arrays, always as many at once: each of what it gives, joined."""
    parts = []
    boxes = jnp.asarray(asked.boxes)
    for at in range(0, len(arrays[0]), _AT_ONCE):
        some = [a[at : at + _AT_ONCE] for a in arrays]
        rows = len(some[0])
        filled = [np.pad(a, ((0, _AT_ONCE - rows), *((0, 0),) * (a.ndim - 1))) for a in some]
        found = program(asked.params, boxes, *map(jnp.asarray, filled))
        parts.append([np.asarray(one)[:rows] for one in found])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@functools.lru_cache(maxsize=16)
def _ways_program(objective: Objective) -> Any:
    def ways(
        params: Any, boxes: Array, images: Array, labels: Array, targets: Array, wanted: Array
    ) -> tuple[Array, Array]:
        pixels = images.astype(jnp.float32)
        corners = jnp.zeros((len(images), 1, 4), jnp.int32)
        goals, keys = _goals_of(images, corners, labels, targets, wanted)

        def loss(shown: Array) -> Array:
            return objective.losses(params, boxes, goals, shown, keys).sum()

        slope = jax.grad(loss)(pixels)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        way = jnp.where(slope > 0, slope * pixels, slope * (pixels - 255))
        ends = jnp.where(slope == 0, images, jnp.where(slope > 0, 0, 255).astype(jnp.uint8))
        return way.sum(axis=-1), ends

    return jax.jit(ways)


@functools.lru_cache(maxsize=16)
def _losses_program(objective: Objective) -> Any:
    def losses(
        params: Any,
        boxes: Array,
        images: Array,
        labels: Array,
        targets: Array,
        wanted: Array,
        ends: Array,
        corners: Array,
    ) -> tuple[Array]:
        goals, keys = _goals_of(images, corners, labels, targets, wanted)
        patched = jax.vmap(with_patches)(images, ends, corners)
        return (objective.losses(params, boxes, goals, patched, keys),)

    return jax.jit(losses)


def _goals_of(
    images: Array, corners: Array, labels: Array, targets: Array, wanted: Array
) -> tuple[Goals, Array]:
    """Goals, and keys that are all one: what is compared is to be drawn alike."""
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
    return goals, jnp.repeat(jax.random.key(0)[None], many, axis=0)
