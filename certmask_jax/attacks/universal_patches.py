"""One patch for many images: expectation over places, brightness and size.

What is lowered is the mean loss over images, places and transformations that are drawn anew in each
step (Athalye et al., ICML 2018; Brown et al., 2017). The patch is then one that works wherever it
is stuck, and need not know the image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible, usual_promotion
from certmask_jax.attacks.logit_tables import shown_logits
from certmask_jax.attacks.patch_search import PatchSearch, share_of_step, steps_of
from certmask_jax.attacks.search_objectives import margin_losses
from certmask_jax.attacks.stuck_patches import Transformations, pasted
from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import check_labels

_LEVELS = 255.0

STEPS_BETWEEN = 20
"""Steps in one program, but on CPUs; after so many ``progress`` is told and ``stop`` asked."""


class UniversalPatch(NamedTuple):
    """A patch for many images, and what is needed to go on with it.

    Attributes:
      pixels: ``uint8[height, width, c]``.
      losses: ``float32[steps]``, of the images that each step looked at; of fewer steps than were
        asked for if it was stopped.
      levels: ``float32[height, width, c]``, the pixels before they are rounded.
      motion: arrays, what the optimizer remembers.
    """

    pixels: NDArray[np.uint8]
    losses: NDArray[np.float32]
    levels: NDArray[np.float32]
    motion: tuple[NDArray[Any], ...]


@reproducible()
def universal_patch(
    apply_fn: ApplyFn,
    params: Any,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    threat: Threat,
    target: int | None = None,
    masked_images: MaskedImages | None = None,
    preprocessing: Preprocessing | None = None,
    search: PatchSearch | None = None,
    transformations: Transformations | None = None,
    images_a_step: int = 32,
    seed: int = 0,
    mesh: Mesh | None = None,
    begun: UniversalPatch | None = None,
    progress: Callable[[UniversalPatch], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> UniversalPatch:
    """One patch that is to change what a model says of many images, wherever it is.

    Args:
      apply_fn, params, preprocessing: the model, differentiable by JAX.
      images: ``uint8[B, h, w, c]``, without patches.
      labels: ``int[B]``, true classes.
      threat: one patch of one shape; where it may be.
      target: the label that is to be said; None: any that is not the true one.
      masked_images: the patch is to work under the masks of a defense too, of which one is drawn
        for each image, so it is aimed at the votes of many masks; None: on whole images.
      search: how.
      transformations: what happens to the patch; nothing by default.
      images_a_step: how many images a step looks at, rounded up to a multiple of the devices.
      seed: of all randomness.
      mesh: 1-D mesh; all devices of this process by default.
      begun: what came of it when it was stopped, or what ``progress`` was told; with all else equal
        it ends with the same patch as if it had never been stopped.
      progress: told every few steps what there is so far.
      stop: asked every few steps; if so, what there is so far is returned.

    Returns:
      The patch in whole levels. ``attacks.pasted`` puts it into an image.

    Raises:
      ValueError: for several patches or shapes, or images, labels or a target that do not fit.
    """
    if len(threat) != 1 or len(threat.shapes) != 1:
        raise ValueError(f"threat: expected one patch of one shape, got {threat}")
    pixels = np.asarray(images)
    if pixels.ndim != 4:
        raise ValueError(f"images: expected shape [B, h, w, c], got {list(pixels.shape)}")
    check_images(pixels, threat.image_size)
    if images_a_step < 1:
        raise ValueError(f"images_a_step: expected at least 1, got {images_a_step}")
    how = PatchSearch() if search is None else search
    shown = Preprocessing() if preprocessing is None else preprocessing
    on = device_mesh() if mesh is None else mesh
    held = computed_with(params, shown)
    classes = _classes(apply_fn, held, pixels[:1], shown)
    truth = check_labels(labels, len(pixels), classes)
    if target is not None and not 0 <= target < classes:
        raise ValueError(f"target: expected a class from 0 to {classes - 1}, got {target}")
    (shape,) = threat.shapes
    corners = np.argwhere(threat.allowed(shape)).astype(np.int32)
    boxes = np.zeros((1, 1, 4), np.int32) if masked_images is None else masked_images.boxes
    world = _World(*map(jnp.asarray, (pixels, truth, corners, boxes)))
    kind = _Kind(
        apply_fn, shown, how, Transformations() if transformations is None else transformations,
        -(-images_a_step // on.size), target,
    )  # fmt: skip
    first, key = jax.random.split(jax.random.key(seed))
    patch = jax.random.uniform(first, (*shape, pixels.shape[3]), jnp.float32, 0.0, _LEVELS)
    motion = steps_of(how).init(patch)
    is_cpu = on.devices.flat[0].platform == "cpu"
    losses, done = [np.zeros(0, np.float32)], 0
    if begun is not None:
        patch, losses, done = jnp.asarray(begun.levels), [begun.losses], len(begun.losses)
        kept = jax.tree.structure(motion)
        motion = jax.tree.unflatten(kept, [jnp.asarray(part) for part in begun.motion])

    def so_far() -> UniversalPatch:
        levels, remembered = jax.device_get((patch, jax.tree.leaves(motion)))
        pixels = np.rint(levels).astype(np.uint8)
        return UniversalPatch(pixels, np.concatenate(losses), levels, tuple(remembered))

    while done < how.steps:
        count = min(1 if is_cpu else STEPS_BETWEEN, how.steps - done)
        patch, motion, loss = _program(kind, count, on)(
            held, world, patch, motion, key, jnp.int32(done)
        )
        losses.append(np.atleast_1d(np.asarray(loss)))
        done += count
        if done % STEPS_BETWEEN == 0 and done < how.steps:
            if progress is not None:
                progress(so_far())
            if stop is not None and stop():
                break
    return so_far()


class _World(NamedTuple):
    """What is drawn from; a pytree."""

    images: Array  # uint8[B, h, w, c]
    labels: Array  # int32[B]
    corners: Array  # int32[P, 2]
    boxes: Array  # int32[V, R, 4]


@dataclasses.dataclass(frozen=True)
class _Kind:
    apply_fn: ApplyFn
    preprocessing: Preprocessing
    search: PatchSearch
    transformations: Transformations
    images: int  # that a device looks at in a step
    target: int | None


def _classes(
    apply_fn: ApplyFn, params: Any, images: NDArray[np.uint8], preprocessing: Preprocessing
) -> int:
    nothing, first = np.zeros((1, 1, 4), np.int32), np.zeros(1, np.int32)
    how = functools.partial(shown_logits, apply_fn, preprocessing=preprocessing)
    return int(jax.eval_shape(how, params, images, nothing, first).shape[-1])


@functools.lru_cache(maxsize=8)
def _program(kind: _Kind, count: int, mesh: Mesh) -> Any:
    how, update = kind.search, steps_of(kind.search).update
    low, high = zip(*(kind.transformations.brightness, kind.transformations.scale), strict=True)

    def loss_of(patch: Array, params: Any, world: _World, key: Array) -> Array:
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
        return jnp.maximum(lag + how.surplus, 0).mean()

    def moved(
        params: Any, world: _World, patch: Array, motion: Any, key: Array, done: Array
    ) -> tuple[Array, Any, Array]:
        own = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

        def one(now: tuple[Array, Any], number: Array) -> tuple[tuple[Array, Any], Array]:
            levels, memory = now
            loss, slope = jax.value_and_grad(loss_of)(
                levels, params, world, jax.random.fold_in(own, done + number)
            )
            loss, slope = jax.lax.pmean((loss, slope), AXIS)
            with usual_promotion():
                step, memory = update(jnp.where(jnp.isfinite(slope), slope, 0), memory)
            share = share_of_step(how, done + number)
            return (jnp.clip(levels + share * step, 0, _LEVELS), memory), loss

        if count == 1:
            (patch, motion), loss = one((patch, motion), jnp.int32(0))
            return patch, motion, loss
        (patch, motion), losses = jax.lax.scan(
            one, (patch, motion), jnp.arange(count, dtype=jnp.int32)
        )
        return patch, motion, losses

    everywhere = PartitionSpec()
    return jax.jit(
        jax.shard_map(
            moved,
            mesh=mesh,
            in_specs=(everywhere,) * 6,
            out_specs=everywhere,
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )
