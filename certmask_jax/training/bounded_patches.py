"""Training for interval bounds: the worst that patches at random places can be shown to do.

Chiang et al. (ICLR 2020) train on the bounds of a few patches of each image, drawn anew in each
step (their random patch training): the loss is that of the worst logits that bounds leave possible
at any of them.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.inference.bound_propagation import check_model, least_differences
from certmask_jax.inference.views import NONE
from certmask_jax.models import Model
from certmask_jax.training.masked_features import random_windows
from certmask_jax.training.recipes import Recipe


def check_bounds(model: Model, recipe: Recipe) -> None:
    """What a recipe or a model has that bounds are not trained with.

    Raises:
      ValueError: naming the field.
    """
    side = min(model.data_config.input_size)
    for name, is_there, expected in (
        ("bounds_patch", recipe.bounds_patch > side, f"at most {side} pixels"),
        ("train", recipe.train != "all", "all, where bounds are trained"),
        ("compute", recipe.compute != "float32", "float32, where bounds are trained"),
        ("views", recipe.views != NONE, "none, where bounds are trained"),
        ("feature_window", recipe.feature_window > 0, "0, where bounds are trained"),
    ):
        if is_there:
            raise ValueError(f"{name}: expected {expected}; got {getattr(recipe, name)}")
    if model.kind.parts is not None or model.encoding != "fill":
        raise ValueError(
            "bounds_patch: expected a model of whole images that is shown the fill, got "
            f"{model.name} {'in two parts' if model.kind.parts is not None else model.encoding}"
        )
    apply_fn: Any = model.module.apply
    shape = (*model.data_config.input_size, model.data_config.channels)
    try:
        check_model(apply_fn, model.param_shapes(), shape)
    except ValueError as error:
        text = str(error).removeprefix("interval bounds: ")
        raise ValueError(f"bounds_patch: {text}") from error


def worst_logits(
    model: Model,
    variables: Any,
    images: Array,
    labels: Array,
    key: Array,
    *,
    patch: int,
    places: int,
    width: Array | float = 1.0,
) -> Array:
    """By how much each class may be before the true one, at the worst of the places drawn.

    Args:
      model: its module is in eval mode: norms have stored statistics.
      variables: of it.
      images: ``float32[B, h, w, c]``, as it sees them.
      labels: ``int32[B]``.
      key: of the places.
      patch: side in pixels.
      places: how many an image has, each drawn by itself.
      width: of what they may do: 0 nothing, 1 anything between black and white.

    Returns:
      ``float32[B, K]``, 0 for the true class: as logits, their cross-entropy is at least that of
      every patch there.

    Raises:
      ValueError: as of ``interval_bounds``.
    """
    size = (images.shape[1], images.shape[2])
    config = model.data_config
    lowest, highest = (
        ((level - np.asarray(config.mean)) / np.asarray(config.std)).astype(np.float32)
        for level in (0.0, 1.0)
    )
    left = random_windows(key, places * len(images), grid=size, window=patch)
    covered = ~left.reshape(places, len(images), *size, 1)
    reach = jnp.where(covered, width, 0.0)
    lower, upper = (
        (images[None] + reach * (end.reshape(1, 1, 1, 1, -1) - images[None])).reshape(
            -1, *images.shape[1:]
        )
        for end in (lowest, highest)
    )
    apply_fn: Any = model.module.apply
    least = least_differences(apply_fn, variables, lower, upper)
    least = least.reshape(places, len(images), *least.shape[1:])
    own = jnp.take_along_axis(least, labels[None, :, None, None], axis=2)[:, :, 0]
    return (-own).max(axis=0)
