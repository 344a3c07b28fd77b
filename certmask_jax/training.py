"""Training with Cutout (DeVries and Taylor, 2017), so that a model bears masks.

PatchCleanser trains with two random squares an image, filled like its masks. Everything is a pure
function of a seed; the step is jitted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax.forward import check_images
from certmask_jax.models import Model, Params
from certmask_jax.prediction_table import check_labels


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
      epochs, batch_size, seed: passes over the data, images a step, of all randomness.
      learning_rate: peak of a cosine schedule with a tenth of the steps to warm up.
      weight_decay: of AdamW.
      cutout_size: side of the squares in pixels; 0 for none.
      cutout_squares: how many an image.
      shift: random shifts by up to this many pixels, edges repeated.
      label_smoothing: towards the uniform distribution.
      rotate: random rotations by up to this many degrees.
      zoom: random zooms by up to this fraction.
    """

    epochs: int = 500
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    cutout_size: int = 3
    cutout_squares: int = 2
    shift: int = 1
    label_smoothing: float = 0.1
    rotate: float = 6.0
    zoom: float = 0.06
    seed: int = 0


def train(
    model: Model,
    images: NDArray[np.uint8],
    labels: ArrayLike,
    *,
    recipe: Recipe,
    params: Params | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Params:
    """Trains a model.

    Args:
      model: what to train.
      images: ``uint8[T, h, w, c]`` of the model's input size.
      labels: ``int[T]``.
      recipe: how.
      params: variables to start from; random ones by default.
      progress: called after each epoch with (epochs done, mean loss).

    Returns:
      The variables after the last step.

    Raises:
      ValueError: for bad images or labels, or fewer images than a batch.
      FloatingPointError: when the loss is no longer finite.
    """
    check_images(images, model.data_config.input_size)
    true = check_labels(labels, len(images), model.num_classes)
    steps = len(images) // recipe.batch_size
    if steps < 1:
        raise ValueError(
            f"batch_size: expected at most the {len(images)} images, got {recipe.batch_size}"
        )
    variables = model.init(jax.random.key(recipe.seed)) if params is None else params
    total = steps * recipe.epochs
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, max(1, total // 10), total
    )
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)
    state = optimizer.init(variables["params"])
    epoch = _epoch(model, recipe, optimizer, steps)
    data = (jnp.asarray(images), jnp.asarray(true))
    for number in range(recipe.epochs):
        key = jax.random.fold_in(jax.random.key(recipe.seed + 1), number)
        variables, state, loss = epoch(variables, state, key, *data)
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {float(loss)} after {number + 1} epoch(s); try a smaller "
                "learning_rate"
            )
        if progress is not None:
            progress(number + 1, float(loss))
    return variables


def cutout(key: Array, images: Array, *, size: int, squares: int) -> Array:
    """Replaces random squares by 0, the mean colour after normalisation.

    Args:
      key: of the randomness.
      images: ``float32[B, h, w, c]``, normalised.
      size: side of a square in pixels; its centre is uniform over the image, so that squares may
        be cut by the border, as in the original.
      squares: how many an image.
    """
    height, width = images.shape[1:3]
    shape = (len(images), squares, 1, 1)
    keys = jax.random.split(key)
    top = jax.random.randint(keys[0], shape, 0, height) - size // 2
    left = jax.random.randint(keys[1], shape, 0, width) - size // 2
    rows, cols = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    hidden = (rows >= top) & (rows < top + size) & (cols >= left) & (cols < left + size)
    return jnp.where(hidden.any(axis=1)[..., None], 0.0, images)


def moved(key: Array, images: Array, *, shift: float, rotate: float, zoom: float) -> Array:
    """Random shift (pixels), rotation (degrees) and zoom (fraction) of ``float32[B, h, w, c]``."""
    height, width = images.shape[1:3]
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)

    def one(key: Array, image: Array) -> Array:
        keys = jax.random.split(key, 3)
        angle = jnp.deg2rad(jax.random.uniform(keys[0], minval=-rotate, maxval=rotate))
        scale = 1 + jax.random.uniform(keys[1], minval=-zoom, maxval=zoom)
        offset = jax.random.uniform(keys[2], (2,), minval=-shift, maxval=shift)
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        source = (grid - centre) @ (turn * scale) + centre + offset
        sample = functools.partial(
            jax.scipy.ndimage.map_coordinates,
            coordinates=[source[..., 0], source[..., 1]],
            order=1,
            mode="nearest",
        )
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def _epoch(model: Model, recipe: Recipe, optimizer: Any, steps: int) -> Any:
    """One jitted pass over the shuffled data."""
    config = model.data_config
    mean, std = (np.asarray(v, np.float32) for v in (config.mean, config.std))

    def loss_of(params: Any, rest: Any, images: Array, labels: Array) -> tuple[Array, Any]:
        logits, changed = model.train_module.apply(
            {"params": params, **rest}, images, mutable=list(rest)
        )
        target = optax.smooth_labels(
            jax.nn.one_hot(labels, model.num_classes), recipe.label_smoothing
        )
        return optax.softmax_cross_entropy(logits, target).mean(), changed

    @jax.jit
    def epoch(
        variables: Params, state: Any, key: Array, images: Array, labels: Array
    ) -> tuple[Params, Any, Array]:
        keys = jax.random.split(key, steps + 1)
        order = jax.random.permutation(keys[0], len(images))[: steps * recipe.batch_size]

        def step(carry: Any, work: Any) -> tuple[Any, Array]:
            variables, state = carry
            key, chosen = work
            move_key, cut_key = jax.random.split(key)
            batch = (images[chosen].astype(jnp.float32) / 255 - mean) / std
            batch = moved(
                move_key, batch, shift=recipe.shift, rotate=recipe.rotate, zoom=recipe.zoom
            )
            if recipe.cutout_size:
                batch = cutout(
                    cut_key, batch, size=recipe.cutout_size, squares=recipe.cutout_squares
                )
            rest = {name: value for name, value in variables.items() if name != "params"}
            (loss, changed), grads = jax.value_and_grad(loss_of, has_aux=True)(
                variables["params"], rest, batch, labels[chosen]
            )
            updates, state = optimizer.update(grads, state, variables["params"])
            params = optax.apply_updates(variables["params"], updates)
            return ({"params": params, **changed}, state), loss

        work = (keys[1:], order.reshape(steps, recipe.batch_size))
        (variables, state), losses = jax.lax.scan(step, (variables, state), work)
        return variables, state, losses.mean()

    return epoch
