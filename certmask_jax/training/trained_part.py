"""Which parameters are trained: all of them, the head, or the last block with what follows it.

The others are frozen: the gradient is that of the trained ones alone, so that nothing is computed
backwards through the rest, and the optimiser keeps nothing of it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
from flax import traverse_util

from certmask_jax.models import Model
from certmask_jax.weights.families import is_head
from certmask_jax.weights.names import torch_name

_AFTER_BLOCKS = ("norm.", "fc_norm.")


@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """Some parameters of a model, by their paths below ``params``; None for all.

    Attributes:
      paths: of what is trained.
    """

    paths: frozenset[tuple[str, ...]] | None = None

    def split(self, params: Any) -> tuple[Any, Any]:
        """Parameters as (those that are trained, those that are frozen)."""
        if self.paths is None:
            return params, {}
        flat = _flat(params)
        trained = {path: leaf for path, leaf in flat.items() if path in self.paths}
        frozen = {path: leaf for path, leaf in flat.items() if path not in self.paths}
        return _nested(trained), _nested(frozen)

    def merged(self, trained: Any, frozen: Any) -> Any:
        """The inverse of ``split``."""
        if self.paths is None:
            return trained
        return _nested(_flat(frozen) | _flat(trained))


def head_of(model: Model) -> TrainedPart:
    """The layer that gives the logits.

    Raises:
      ValueError: for a model without one that is known by its name.
    """
    paths = frozenset(path for path, name in _names(model).items() if is_head(name))
    if not paths:
        raise ValueError(
            "train: expected a model whose last layer is called head, head.fc, fc, linear or "
            f"classifier, got {model.name}"
        )
    return TrainedPart(paths)


def last_block_of(model: Model) -> TrainedPart:
    """The last of the numbered blocks, the norm after it, and the head.

    Raises:
      ValueError: for a model without blocks in a row, or without a head.
    """
    names = _names(model)
    numbers = [int(match[1]) for n in names.values() if (match := re.match(r"blocks\.(\d+)\.", n))]
    if not numbers:
        raise ValueError(
            "train: expected a model of blocks in a row (a ViT, a ResMLP) for last_block, got "
            f"{model.name}; head works for any with one layer at its end"
        )
    starts = (f"blocks.{max(numbers)}.", *_AFTER_BLOCKS)
    chosen = {path for path, name in names.items() if name.startswith(starts)}
    paths = head_of(model).paths
    assert paths is not None
    return TrainedPart(frozenset(chosen) | paths)


def _flat(params: Any) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)  # type: ignore[no-untyped-call]
    return flat


def _nested(flat: dict[tuple[str, ...], Any]) -> Any:
    return traverse_util.unflatten_dict(flat)  # type: ignore[no-untyped-call]


def _names(model: Model) -> dict[tuple[str, ...], str]:
    """Path below ``params`` -> PyTorch's name."""
    leaves = jax.tree_util.tree_flatten_with_path({"params": model.param_shapes()["params"]})[0]
    return {tuple(entry.key for entry in key[1:]): torch_name(key) for key, _ in leaves}
