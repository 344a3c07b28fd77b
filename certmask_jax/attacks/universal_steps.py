"""The programs of a patch for many images: its steps, and what it comes to on one draw.

What is drawn are images, places, masked images, brightness and size, each anew.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import usual_promotion
from certmask_jax.attacks.logit_tables import shown_logits
from certmask_jax.attacks.patch_search import PatchSearch, share_of_step, steps_of
from certmask_jax.attacks.search_objectives import margin_losses
from certmask_jax.attacks.stuck_patches import Transformations, pasted
from certmask_jax.inference.devices import AXIS
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing

LEVELS = 255.0


class World(NamedTuple):
    """What is drawn from; a pytree."""

    images: Array  # uint8[B, h, w, c]
    labels: Array  # int32[B]
    corners: Array  # int32[P, 2]
    boxes: Array  # int32[V, R, 4]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What decides the programs."""

    apply_fn: ApplyFn
    preprocessing: Preprocessing
    search: PatchSearch
    transformations: Transformations
    images: int  # that a device looks at in a step
    target: int | None


def classes_of(
    apply_fn: ApplyFn, params: Any, images: NDArray[np.uint8], preprocessing: Preprocessing
) -> int:
    nothing, first = np.zeros((1, 1, 4), np.int32), np.zeros(1, np.int32)
    how = functools.partial(shown_logits, apply_fn, preprocessing=preprocessing)
    return int(jax.eval_shape(how, params, images, nothing, first).shape[-1])


def _loss(kind: Kind, patch: Array, params: Any, world: World, key: Array) -> Array:
    """What is lowered, on one draw."""
    low, high = zip(*(kind.transformations.brightness, kind.transformations.scale), strict=True)
    keys = jax.random.split(key, 4)
    many = (kind.images,)
    chosen, places, masks = (
        jax.random.randint(keys[n], many, 0, len(some), jnp.int32)
        for n, some in enumerate((world.images, world.corners, world.boxes))
    )
    drawn = jax.random.uniform(keys[3], (2, *many), jnp.float32)
    least, most = (np.asarray(a, np.float32)[:, None] for a in (low, high))
    brightness, scale = least + drawn * (most - least)
    stuck = jax.vmap(
        lambda image, corner, b, s: pasted(image, patch, corner, brightness=b, scale=s)
    )(world.images[chosen], world.corners[places], brightness, scale)
    logits = shown_logits(
        kind.apply_fn,
        params,
        stuck,
        world.boxes[masks],
        jnp.arange(kind.images, dtype=jnp.int32),
        preprocessing=kind.preprocessing,
    )
    wanted = world.labels[chosen]
    if kind.target is not None:
        wanted = jnp.full_like(wanted, kind.target)
    lag = margin_losses(logits, wanted, jnp.asarray(kind.target is None))
    return jnp.maximum(lag + kind.search.surplus, 0).mean()


@functools.lru_cache(maxsize=8)
def steps_program(kind: Kind, count: int, mesh: Mesh) -> Any:
    """``(params, world, patch, motion, key, steps done) -> patch, motion, losses``."""
    how, update = kind.search, steps_of(kind.search).update

    def moved(
        params: Any, world: World, patch: Array, motion: Any, key: Array, done: Array
    ) -> tuple[Array, Any, Array]:
        own = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

        def one(now: tuple[Array, Any], number: Array) -> tuple[tuple[Array, Any], Array]:
            levels, memory = now
            loss, slope = jax.value_and_grad(functools.partial(_loss, kind))(
                levels, params, world, jax.random.fold_in(own, done + number)
            )
            loss, slope = jax.lax.pmean((loss, slope), AXIS)
            with usual_promotion():
                step, memory = update(jnp.where(jnp.isfinite(slope), slope, 0), memory)
            share = share_of_step(how, done + number, jnp.int32(how.steps))
            return (jnp.clip(levels + share * step, 0, LEVELS), memory), loss

        if count == 1:
            (patch, motion), loss = one((patch, motion), jnp.int32(0))
            return patch, motion, loss
        (patch, motion), losses = jax.lax.scan(
            one, (patch, motion), jnp.arange(count, dtype=jnp.int32)
        )
        return patch, motion, losses

    return _everywhere(moved, mesh, 6)


@functools.lru_cache(maxsize=8)
def drawn_program(kind: Kind, mesh: Mesh) -> Any:
    """``(params, world, patch, key, number) -> loss``: what a patch comes to on one draw."""

    def drawn(params: Any, world: World, patch: Array, key: Array, number: Array) -> Array:
        own = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        loss = _loss(kind, patch, params, world, jax.random.fold_in(own, number))
        return jax.lax.pmean(loss, AXIS)

    return _everywhere(drawn, mesh, 5)


def _everywhere(function: Any, mesh: Mesh, count: int) -> Any:
    """Compiled for all devices, each of which is given all of the arguments."""
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(PartitionSpec(),) * count,
            out_specs=PartitionSpec(),
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )
