"""Whether a model is what it claims to be, found when it is made and not only when a run begins.

What is proved of local logits, and of maps of features, stands on the field that a model claims
for its cells. A run looks at it first of all, on the images and weights of the run. Here the model
alone is looked at: a package can do so in its own tests, and the programs do so with every model
with local logits that is not of this package.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax._own_settings import usual_promotion
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_program import check_local
from certmask_jax.inference.preprocessing import encoded_channels
from certmask_jax.inference.two_parts import check_parts
from certmask_jax.models.named_models import Model, Params

_ROUNDING = 2.0**-7
"""Of the largest mean: as much as numbers of 16 bits may lose on the way."""


def check_field(model: Model, params: Params | None = None) -> None:
    """Checks that cells see the field that the model claims for them, and nothing else.

    By derivatives. Of local logits this takes one small image, of 2x2 cells, and a derivative for
    each; and one whole image, of which the logits have to be the mean of the local ones. A model in
    two parts has images of one size, so it takes five derivatives of a whole one, and the head is
    given NaN in hidden cells. A model that claims no field passes.

    Args:
      model: with local logits (``Model.local``), or in two parts (``in_two_parts``).
      params: its variables. By default positive ones are drawn, and a positive image: nothing that
        a cell sees then cancels, or stays below a threshold, as it may with weights of its own.

    Raises:
      ValueError: naming a cell and a pixel that it is not to see; for logits of another shape, or
        that are no mean of the local ones; or for a model in two parts that cannot say which
        variables it has, without ``params``.
    """
    config = model.data_config
    channels = encoded_channels(model.encoding, config.channels)
    parts = model.kind.parts
    if parts is not None:
        check_parts(parts, _drawn(model) if params is None else params, channels)
        return
    local = model.local
    if local is None:
        return
    logits = model.apply_fn
    if params is None:
        local = dataclasses.replace(local, apply_fn=_of_positive(local.apply_fn))
        logits, params = _of_positive(logits), _drawn(model)
    side = local.field + local.stride
    check_local(local, params, (side, side, channels))
    _check_mean(logits, local, params, (1, *config.input_size, channels))


def _of_positive(apply_fn: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
    return lambda params, images: apply_fn(params, jnp.abs(images))


def _check_mean(
    apply_fn: Callable[[Any, Array], Any], local: LocalLogits, params: Params, shape: Sequence[int]
) -> None:
    """``ValueError`` unless the logits of one drawn image are the mean of its local logits.

    Masked images are told by that mean where only distinct fields are evaluated: a model that takes
    anything else, such as the largest, would have its certificates from another one.
    """

    @jax.jit
    def both(held: Params, images: Array) -> tuple[Array, Array]:
        with usual_promotion():
            return apply_fn(held, images), local.apply_fn(held, images).mean(axis=(1, 2))

    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    logits, means = (np.asarray(part, np.float64) for part in both(params, image))
    largest = np.abs(means).max(initial=0)
    if logits.shape != means.shape or not np.abs(logits - means).max() <= _ROUNDING * largest:
        raise ValueError(
            "local logits: expected logits that are the mean of the local logits, got "
            + (
                f"{list(logits.shape)} beside means {list(means.shape)}"
                if logits.shape != means.shape
                else f"{np.abs(logits - means).max():.3g} between them, where means are up to "
                f"{largest:.3g}"
            )
            + "; a model that does not take their mean has no local logits in this sense"
        )


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
