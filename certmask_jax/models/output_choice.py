"""What of a model's outputs is looked at: some of them only, or their mean over views."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.inference.views import Views, with_views
from certmask_jax.models.named_models import Model


def restricted(model: Model, outputs: tuple[int, ...]) -> Model:
    """The model whose logits are those of ``outputs`` alone, in that order.

    Its parameters are those of the whole model, whose weights load as ever.

    Args:
      model: of K outputs.
      outputs: each once, in ``[0, K)``.

    Raises:
      ValueError: for outputs that the model does not have, or one twice.
    """
    if len(set(outputs)) != len(outputs) or not all(0 <= o < model.num_classes for o in outputs):
        raise ValueError(
            f"outputs: expected each once, from 0 to {model.num_classes - 1}, got {outputs}"
        )
    local = model.local
    if local is not None:
        local = LocalLogits(_chosen(local.apply_fn, outputs), local.field, local.stride)
    dropping = model.dropping
    if dropping is not None:
        kept_logits: Any = dropping.apply_fn
        dropping = TokenDropping(_chosen(kept_logits, outputs), dropping.token)
    return dataclasses.replace(
        model,
        num_classes=len(outputs),
        apply_fn=_chosen(model.apply_fn, outputs),
        local=local,
        dropping=dropping,
    )


def viewed(model: Model, views: Views | None) -> Model:
    """The model whose logits are means over views of an image, see ``with_views``.

    It has no local logits: a mean over views is no mean over the fields of one image. Nor can it
    drop tokens: a view moves what a mask hides to other tokens.

    Raises:
      ValueError: see ``with_views``.
    """
    apply_fn = with_views(model.apply_fn, views)
    if apply_fn is model.apply_fn:
        return model
    return dataclasses.replace(model, apply_fn=apply_fn, local=None, dropping=None)


@functools.lru_cache(maxsize=64)  # equal ones are one function, so that JAX compiles once
def _chosen(apply_fn: Any, outputs: tuple[int, ...]) -> Any:
    kind = kind_of(apply_fn)
    if kind.numpy_function is not None:
        return dataclasses.replace(kind.numpy_function, outputs=outputs)
    at = np.asarray(outputs, np.int32)
    if kind.parts is not None:
        whole = kind.parts.head

        def head(params: Any, features: Any, hidden: Any) -> Any:
            return whole(params, features, hidden)[..., at]

        parts: dict[str, Any] = {**vars(kind.parts), "head": head}
        return TwoParts(parts.pop("stem"), parts.pop("head"), **parts)

    def chosen(params: Any, images: Any, *more: Any, **how: Any) -> Any:
        return apply_fn(params, images, *more, **how)[..., at]

    return chosen
