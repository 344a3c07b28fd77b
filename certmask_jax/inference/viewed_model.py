"""A model function that averages its logits over views of an image; ``views`` chooses these."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax.inference.model_function import ApplyFn


class View(NamedTuple):
    """A fixed function of one masked, normalised image, and what it is called in results.

    A run is told from others by the name, so another function needs another name.
    """

    name: str
    function: Callable[[Array], Array]
    """``floating[h, w, c]`` -> the same shape. It is mapped over a batch, image by image."""


@dataclasses.dataclass(frozen=True)
class ViewedModel:
    """A model function that averages the logits over views; ``with_views`` makes it.

    Equal ones hash alike, so that what was compiled for one serves the other.

    Attributes:
      apply_fn: the model of one view.
      views: what it sees of an image, in the order of its batch.
    """

    apply_fn: ApplyFn
    views: tuple[View, ...]

    def __call__(self, params: Any, images: Array) -> Array:
        """``floating[B, h, w, c]`` -> mean logits ``float32[B, K]``, in one batch of all views."""
        copies = all_views(images, self.views)  # [views, B, h, w, c]
        logits = self.apply_fn(params, copies.reshape(-1, *images.shape[1:])).astype(jnp.float32)
        return logits.reshape(*copies.shape[:2], logits.shape[-1]).mean(axis=0)


def all_views(images: Array, views: Sequence[View]) -> Array:
    """``[views, B, h, w, c]`` of ``floating[B, h, w, c]``, of the same dtype; for ``jit``."""
    return jnp.stack([jax.vmap(view.function)(images).astype(images.dtype) for view in views])
