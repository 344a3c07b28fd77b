"""Whether a model sees what it claims, found when it is made and not only when a run begins.

What is proved of local logits, and of maps of features, stands on the field that a model claims
for its cells. A run looks at it first of all, on the images and weights of the run. Here the model
alone is looked at: a package can do so in its own tests, and the programs do so with every model
with local logits that is not of this package.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.inference.evidence_program import check_local
from certmask_jax.inference.preprocessing import encoded_channels
from certmask_jax.inference.two_parts import TwoParts, check_parts
from certmask_jax.models.named_models import Model, Params


def check_field(model: Model, params: Params | None = None) -> None:
    """That cells see the field that the model claims for them, and nothing else.

    By derivatives. Of local logits this takes one small image, of 2x2 cells, and a derivative for
    each. A model in two parts has images of one size, so it takes five derivatives of a whole one,
    and the head is given NaN in hidden cells. A model that claims no field passes.

    Args:
      model: with local logits (``Model.local``), or in two parts (``in_two_parts``).
      params: its variables. By default positive ones are drawn, and a positive image: nothing that
        a cell sees then cancels, or stays below a threshold, as it may with weights of its own.

    Raises:
      ValueError: naming a cell and a pixel that it is not to see; for logits of another shape; or
        for a model in two parts that cannot say which variables it has, without ``params``.
    """
    config = model.data_config
    channels = encoded_channels(model.encoding, config.channels)
    parts = model.apply_fn
    if isinstance(parts, TwoParts):
        check_parts(parts, _drawn(model) if params is None else params, channels)
        return
    local = model.local
    if local is None:
        return
    if params is None:
        apply_fn = local.apply_fn

        def of_positive(drawn: Any, images: Array) -> Any:
            return apply_fn(drawn, jnp.abs(images))

        local, params = dataclasses.replace(local, apply_fn=of_positive), _drawn(model)
    side = local.field + local.stride
    check_local(local, params, (side, side, channels))


def _drawn(model: Model) -> Params:
    """Positive variables, under which the numbers of a net stay of one size from layer to layer."""
    random = np.random.default_rng(0)

    def leaf(path: Any, shaped: jax.ShapeDtypeStruct) -> Any:
        name = str(getattr(path[-1], "key", ""))
        if str(getattr(path[0], "key", "")) == "batch_stats":
            return np.full(shaped.shape, float(name == "var"), shaped.dtype)
        inputs = math.prod(shaped.shape[:-1]) if len(shaped.shape) > 1 else 1
        return (random.uniform(0.5, 1.5, shaped.shape) / inputs).astype(shaped.dtype)

    return jax.tree_util.tree_map_with_path(leaf, model.param_shapes())
