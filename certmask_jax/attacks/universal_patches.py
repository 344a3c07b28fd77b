"""One patch for many images: expectation over places, brightness and size.

What is lowered is the mean loss over images, places and transformations that are drawn anew in each
step (Athalye et al., ICML 2018; Brown et al., 2017). The patch is then one that works wherever it
is stuck, and need not know the image. As each step sees but some of them, the last patch need not
be the best: every few steps it is judged on one draw, the same each time, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.followed_slopes import Followed, check_slopes, some_of
from certmask_jax.attacks.patch_search import PatchSearch, steps_of
from certmask_jax.attacks.stuck_patches import Transformations
from certmask_jax.attacks.universal_steps import (
    LEVELS,
    Kind,
    World,
    classes_of,
    drawn_program,
    steps_program,
)
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import check_labels

STEPS_BETWEEN = 20
"""Steps in one program, but on CPUs; after so many the patch is judged, ``progress`` told and
``stop`` asked."""

DRAWS_JUDGED = 4
"""Draws on which a patch is judged, each of as many images as a step."""


class UniversalPatch(NamedTuple):
    """A patch for many images, and what is needed to go on with it.

    Attributes:
      pixels: ``uint8[height, width, c]``, the best so far of those that were judged.
      losses: ``float32[steps]``, of the images that each step looked at; of fewer steps than were
        asked for if it was stopped.
      levels: ``float32[height, width, c]``, where the search is, before it is rounded.
      motion: arrays, what the optimizer remembers.
      judged: ``float32[C]``, what the rounded patch came to after every ``STEPS_BETWEEN`` steps and
        at the end: its mean loss on ``DRAWS_JUDGED`` draws, which are the same each time.
    """

    pixels: NDArray[np.uint8]
    losses: NDArray[np.float32]
    levels: NDArray[np.float32]
    motion: tuple[NDArray[Any], ...]
    judged: NDArray[np.float32]


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
      The patch in whole levels, the best of those that were judged. ``attacks.pasted`` puts it into
      an image.

    Raises:
      ValueError: for several patches or shapes, images, labels or a target that do not fit, or a
        model without a gradient, see ``check_slopes``.
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
    classes = classes_of(apply_fn, held, pixels[:1], shown)
    truth = check_labels(labels, len(pixels), classes)
    if target is not None and not 0 <= target < classes:
        raise ValueError(f"target: expected a class from 0 to {classes - 1}, got {target}")
    check_slopes(Followed(apply_fn, shown), held, some_of(pixels))
    (shape,) = threat.shapes
    corners = np.argwhere(threat.allowed(shape)).astype(np.int32)
    boxes = np.zeros((1, 1, 4), np.int32) if masked_images is None else masked_images.boxes
    world = World(*map(jnp.asarray, (pixels, truth, corners, boxes)))
    kind = Kind(
        apply_fn, shown, how, Transformations() if transformations is None else transformations,
        -(-images_a_step // on.size), target,
    )  # fmt: skip
    first, key = jax.random.split(jax.random.key(seed))
    patch = jax.random.uniform(first, (*shape, pixels.shape[3]), jnp.float32, 0.0, LEVELS)
    motion = steps_of(how).init(patch)
    is_cpu = on.devices.flat[0].platform == "cpu"
    losses, done = [np.zeros(0, np.float32)], 0
    judged, best = np.zeros(0, np.float32), np.zeros(patch.shape, np.uint8)
    if begun is not None:
        patch, losses, done = jnp.asarray(begun.levels), [begun.losses], len(begun.losses)
        judged, best = begun.judged, begun.pixels
        kept = jax.tree.structure(motion)
        motion = jax.tree.unflatten(kept, [jnp.asarray(part) for part in begun.motion])
    one_draw, of_draws = drawn_program(kind, on), jax.random.fold_in(first, 1)

    def so_far() -> UniversalPatch:
        levels, remembered = jax.device_get((patch, jax.tree.leaves(motion)))
        return UniversalPatch(best, np.concatenate(losses), levels, tuple(remembered), judged)

    while done < how.steps:
        count = min(1 if is_cpu else STEPS_BETWEEN, how.steps - done)
        patch, motion, loss = steps_program(kind, count, on)(
            held, world, patch, motion, key, jnp.int32(done)
        )
        losses.append(np.atleast_1d(np.asarray(loss)))
        done += count
        if done % STEPS_BETWEEN and done < how.steps:
            continue
        rounded = jnp.round(patch)
        each = [one_draw(held, world, rounded, of_draws, jnp.int32(n)) for n in range(DRAWS_JUDGED)]
        came_to = np.float32(np.mean([float(one) for one in each]))
        if not len(judged) or came_to < judged.min():
            best = np.asarray(rounded).astype(np.uint8)
        judged = np.append(judged, came_to)
        if done < how.steps:
            if progress is not None:
                progress(so_far())
            if stop is not None and stop():
                break
    return so_far()
