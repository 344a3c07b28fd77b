"""The head of a model as a model of its own, of the features that the frozen rest gives.

What the head sees is found by listening to its call, so that any Linen model whose last layer sees
one vector of each image will do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from certmask_jax._own_settings import usual_promotion
from certmask_jax.models import Model, Params
from certmask_jax.training.trained_part import head_of


@dataclasses.dataclass(frozen=True)
class HeadAlone:
    """A head where a Linen module is expected: features ``float32[B, D]`` -> logits ``[B, K]``.

    Attributes:
      head: the layer, without its place in the model.
      path: that place, below ``params``.
      shape: of what it sees of an image, D numbers.
    """

    head: nn.Module
    path: tuple[str, ...]
    shape: tuple[int, ...]

    def apply(self, variables: Params, features: Array, mutable: Any = False) -> Any:
        """As ``nn.Module.apply``; there is nothing that it changes."""
        params = variables["params"]
        for name in self.path:
            params = params[name]
        seen = features.reshape(features.shape[0], *self.shape)
        logits = self.head.apply({"params": params}, seen).reshape(features.shape[0], -1)  # type: ignore[union-attr]
        return logits if mutable is False else (logits, {})


def head_alone(model: Model) -> Model:
    """The head of a model.

    Raises:
      ValueError: for a model without a head that is known by its name, or whose head does not see
        one vector of each image.
    """
    config = model.data_config
    images = jax.ShapeDtypeStruct((1, *config.input_size, config.channels), np.float32)
    heads: list[tuple[nn.Module, tuple[int, ...]]] = []

    def shapes(params: Params, images: Array) -> Array:
        seen, head, logits = seen_by_head(model, model.module, params, images)
        heads.append((head, seen.shape[1:]))
        return logits

    jax.eval_shape(shapes, model.param_shapes(), images)
    head, shape = heads[-1]
    if int(np.prod(shape)) != shape[-1]:
        raise ValueError(
            f"train: expected a model whose head sees one vector of each image, got {model.name}, "
            f"whose head sees {'x'.join(map(str, shape))}; train all of it"
        )
    alone: Any = HeadAlone(head, _path(model), shape)
    return dataclasses.replace(
        model, module=alone, train_module=alone, apply_fn=alone.apply, local=None, dropping=None
    )


def head_variables(model: Model, params: Params) -> Params:
    """The head's own variables among a model's."""
    return {"params": head_of(model).split(params["params"])[0]}


def with_head(model: Model, params: Params, head: Params) -> Params:
    """A model's variables with the head of ``head_variables`` in place of theirs."""
    part = head_of(model)
    return {**params, "params": part.merged(head["params"], part.split(params["params"])[1])}


def seen_by_head(
    model: Model, module: nn.Module, params: Params, images: Array
) -> tuple[Array, nn.Module, Array]:
    """What the head is called with, the head without its place, and the logits.

    ``module`` is the model's, in any precision.
    """
    path = _path(model)
    seen: list[tuple[Array, nn.Module]] = []

    def listen(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__" and context.module.path == path:
            seen.append((args[0], context.module.clone(parent=None, name=None)))
        return next_fun(*args, **kwargs)

    with usual_promotion(), nn.intercept_methods(listen):
        logits: Any = module.apply(params, images)
    features, head = seen[-1]
    return features, head, logits


def _path(model: Model) -> tuple[str, ...]:
    """Where the head is, below ``params``."""
    paths = {path[:-1] for path in head_of(model).paths or ()}
    if len(paths) != 1:
        listed = ", ".join("/".join(path) for path in sorted(paths))
        raise ValueError(f"train: expected a model with one head, got {model.name} with {listed}")
    return paths.pop()
