"""What a patch of given pixels does at many places: the objective there, for one pass each.

A masked image that hides a place is as it was without the patch. Wherever masks hide pixels, it is
looked at once, and not at each place that it hides.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_model import Showing
from certmask_jax.attacks.first_order import Pairs, in_batches
from certmask_jax.attacks.patched_pixels import corners_of, with_patches
from certmask_jax.attacks.search_objectives import (
    LabelsWanted,
    LookedAt,
    Objective,
    padded_boxes,
)
from certmask_jax.attacks.wanted_labels import ANY
from certmask_jax.inference.devices import AXIS, put_everywhere
from certmask_jax.inference.model_kinds import kind_of

_MOST_TRIED = 1024
_SHOWN_AT_ONCE = 128  # masked images, of all devices together


@reproducible()
def losses_tried(
    pairs: Pairs, ends: NDArray[np.uint8], places: NDArray[np.int64], *, showing: Showing
) -> NDArray[np.float32]:
    """The objective with a patch at each of some places: ``float32[R, P]``.

    Args:
      pairs: R of them.
      ends: ``uint8[R, h, w, c]``, the pixels of the patch wherever it is.
      places: ``int64[R, P, K, 4]``, P of each.
      showing: which masked images show a placement.
    """
    count, each = places.shape[:2]
    if not count * each:
        return np.zeros((count, each), np.float32)
    objective = pairs.asked.objective(pairs.search)
    if isinstance(objective, LabelsWanted) and kind_of(objective.apply_fn).hides_pixels:
        return _where_shown(objective, pairs, ends, places, showing)
    rows = np.repeat(np.arange(count), each)
    corners = corners_of(places).reshape(count * each, *places.shape[2:])
    parts = []
    for at in range(0, len(rows), _MOST_TRIED):  # images are repeated, so not all at once
        some = rows[at : at + _MOST_TRIED]
        more = (ends[some], corners[at : at + _MOST_TRIED])
        parts += in_batches(_losses_program(objective), pairs, some, more)
    return np.concatenate(parts).reshape(count, each)


def _where_shown(
    objective: LabelsWanted,
    pairs: Pairs,
    ends: NDArray[np.uint8],
    places: NDArray[np.int64],
    showing: Showing,
) -> NDArray[np.float32]:
    """The mean of the masked images of each place, of which those that hide it are the clean one's.

    The last place of each pair stands for none, with a patch of no pixels.
    """
    nowhere = np.zeros((len(places), 1, *places.shape[2:]), np.int32)
    corners = np.concatenate([corners_of(places), nowhere], axis=1)
    wanted = [np.flatnonzero(row != ANY) for row in pairs.wanted]
    looked_at = []
    for there, columns in zip(places, wanted, strict=True):
        shown = np.stack([showing(place) for place in there])[:, columns]
        hidden = (~shown).any(axis=0, keepdims=True)
        looked_at.append(np.concatenate([shown, hidden]))
    pair = np.concatenate([np.full(shown.sum(), n) for n, shown in enumerate(looked_at)])
    at, number = np.concatenate([np.argwhere(shown) for shown in looked_at]).T
    column = np.concatenate(wanted)[number + np.cumsum([0, *map(len, wanted[:-1])])[pair]]
    loss_of_each = _of_each(objective, pairs, ends, (pair, column, corners[pair, at]))
    losses = []
    for own, shown in enumerate(looked_at):
        values = np.zeros(shown.shape, np.float32)
        values[shown] = loss_of_each[pair == own]
        losses.append(np.where(shown, values, values[-1])[:-1].mean(axis=1))
    return np.stack(losses)


def _of_each(
    objective: LabelsWanted,
    pairs: Pairs,
    ends: NDArray[np.uint8],
    chosen: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]],
) -> NDArray[np.float32]:
    """The loss of each of W masked images with a patch: ``float32[W]``.

    Args:
      objective, pairs, ends: as of ``losses_tried``.
      chosen: ``int[W]``, the pair and the masked image of each, and ``int32[W, K, 4]``, the boxes
        of its patch.
    """
    mesh = pairs.asked.mesh
    params = put_everywhere(pairs.asked.params, mesh)
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    program = _each_program(objective, mesh)
    boxes = padded_boxes(pairs.asked.boxes)
    at_once = -(-_SHOWN_AT_ONCE // mesh.size) * mesh.size
    parts = []
    for start in range(0, len(chosen[0]), at_once):
        pairs.go_on()
        pair, column, corners = (part[start : start + at_once] for part in chosen)
        some = (pairs.images[pair], ends[pair], corners, boxes[column],
                pairs.wanted[pair, column], pairs.targets[pair] == ANY)  # fmt: skip
        more = at_once - len(pair)
        filled = [np.pad(a, ((0, more), *((0, 0),) * (a.ndim - 1))) for a in some]
        parts.append(np.asarray(program(params, *jax.device_put(filled, split)))[: len(pair)])
    return np.concatenate(parts)


@functools.lru_cache(maxsize=16)
def _losses_program(objective: Objective) -> Any:
    def losses(
        params: Any, images: Array, looked_at: LookedAt, ends: Array, corners: Array
    ) -> tuple[Array]:
        patched = jax.vmap(with_patches)(images, ends, corners)
        return (objective.losses(params, looked_at, patched),)

    return jax.jit(losses)


@functools.lru_cache(maxsize=16)
def _each_program(objective: LabelsWanted, mesh: Mesh) -> Any:
    def each(
        params: Any,
        images: Array,
        ends: Array,
        corners: Array,
        boxes: Array,
        wanted: Array,
        avoided: Array,
    ) -> Array:
        patched = jax.vmap(with_patches)(images, ends, corners)
        own = jnp.arange(len(images), dtype=jnp.int32)
        return objective.each(params, patched, boxes, own, wanted, avoided)

    split = PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            each,
            mesh=mesh,
            in_specs=(PartitionSpec(), *(split,) * 6),
            out_specs=split,
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )
