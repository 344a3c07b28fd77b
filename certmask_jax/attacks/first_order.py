"""How far pixels can move a goal, to first order: where a patch is worth searching for.

The gradient of an objective at the image without a patch, times the way that each pixel can go. A
patch at a place gains the sum over its pixels; no more than a guess, as models are not linear.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.goals_in_time import StoppedChoosing
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import Placement
from certmask_jax.attacks.search_objectives import LookedAt, Objective, padded_boxes
from certmask_jax.attacks.wanted_labels import ANY

_AT_ONCE = 8


class Ways(NamedTuple):
    """How far pixels move the goals of R images.

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
      wanted: ``int32[R, V]``, of the masked images whose labels are wanted, of each pair no more
        than a step looks at, else ``ANY``.
      stop: asked between programs; if so, ``StoppedChoosing`` is raised.
    """

    asked: Attacked
    search: PatchSearch
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    targets: NDArray[np.int32]
    wanted: NDArray[np.int32]
    stop: Callable[[], bool] | None = None

    def go_on(self) -> None:
        """``StoppedChoosing`` if it is to stop."""
        if self.stop is not None and self.stop():
            raise StoppedChoosing

    @reproducible()
    def ways(self) -> Ways:
        """How far each pixel alone can lower the objective."""
        if not len(self.images):
            return Ways(np.zeros(self.images.shape[:3], np.float32), self.images)
        program = _ways_program(self.asked.objective(self.search))
        return Ways(*in_batches(program, self, np.arange(len(self.images))))


def gain_at(gains: NDArray[np.floating], place: Placement) -> float:
    """The sum over the pixels of a placement."""
    return float(
        sum(gains[row : row + height, column : column + width].sum()
            for height, width, row, column in place.tolist())
    )  # fmt: skip


def in_batches(
    program: Any,
    pairs: Pairs,
    rows: NDArray[np.intp],
    more: Sequence[NDArray[Any]] = (),
) -> list[NDArray[Any]]:
    """A program on rows of pairs, always as many at once: each of what it gives, joined.

    Args:
      program: of ``params``, images, what is looked at, and ``more``.
      pairs: whose rows are taken.
      rows: ``int[N]``.
      more: arrays of N rows.
    """
    parts = []
    for at in range(0, len(rows), _AT_ONCE):
        pairs.go_on()
        own = rows[at : at + _AT_ONCE]
        filled = np.pad(own, (0, _AT_ONCE - len(own)), mode="edge")
        others = [a[np.minimum(np.arange(at, at + _AT_ONCE), len(rows) - 1)] for a in more]
        looked_at = _looked_at(pairs, filled)
        given = jax.tree.map(jnp.asarray, (pairs.images[filled], looked_at, *others))
        outcomes = program(pairs.asked.params, *given)
        parts.append([np.asarray(one)[: len(own)] for one in outcomes])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _looked_at(pairs: Pairs, rows: NDArray[np.intp]) -> LookedAt:
    """All masked images whose labels are wanted: nothing is drawn, for what is to be compared."""
    boxes, targets = padded_boxes(pairs.asked.boxes), pairs.targets[rows]
    columns = np.zeros((len(rows), min(pairs.search.masks_a_step, len(boxes))), np.intp)
    counts = np.zeros(columns.shape, np.bool_)
    for number, row in enumerate(rows):
        own = np.flatnonzero(pairs.wanted[row] != ANY)[: columns.shape[1]]
        columns[number, : len(own)], counts[number, : len(own)] = own, True
    wanted = np.take_along_axis(pairs.wanted[rows], columns, axis=1)
    nothing = np.zeros_like(counts)
    avoided, target = targets == ANY, np.maximum(targets, 0)
    return LookedAt(*map(jnp.asarray, (boxes[columns], wanted, counts, nothing, avoided, target)))


@functools.lru_cache(maxsize=16)
def _ways_program(objective: Objective) -> Any:
    def ways(params: Any, images: Array, looked_at: LookedAt) -> tuple[Array, Array]:
        pixels = images.astype(jnp.float32)

        def loss(shown: Array) -> Array:
            return objective.losses(params, looked_at, shown).sum()

        slope = jax.grad(loss)(pixels)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        way = jnp.where(slope > 0, slope * pixels, slope * (pixels - 255))
        ends = jnp.where(slope == 0, images, jnp.where(slope > 0, 0, 255).astype(jnp.uint8))
        return way.sum(axis=-1), ends

    return jax.jit(ways)
