"""Weights made to fit another task: a fresh head, positions for another size, a net cut short.

The first two are what fine-tuning does (Dosovitskiy et al., 2021, section 3.2; Kolesnikov et al.,
2020, section 3.3), and only on request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.models import Model
from certmask_jax.weights.families import is_before_head, is_head
from certmask_jax.weights.names import to_torch, torch_name
from certmask_jax.weights.stored import Entry


@reproducible()
def with_new_head(entries: Mapping[str, Entry], model: Model, *, seed: int) -> dict[str, Entry]:
    """The head of a file replaced by a fresh one of ``model``, drawn as ``model.init`` draws it.

    A hidden layer before the head (``pre_logits``, ImageNet-21k) goes with it.
    """

    def head(key: jax.Array) -> list[jax.Array]:
        leaves = jax.tree_util.tree_flatten_with_path(model.init(key))[0]
        return [leaf for path, leaf in leaves if is_head(torch_name(path))]

    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(model.param_shapes())[0]]
    heads = [path for path in paths if is_head(torch_name(path))]
    # Compiled, so that the rest of the model is not even drawn.
    leaves = jax.jit(head)(jax.random.key(seed))
    fresh = {
        torch_name(path): Entry.of(to_torch(path, np.asarray(leaf)))
        for path, leaf in zip(heads, leaves, strict=True)
    }
    kept = {n: e for n, e in entries.items() if not (is_head(n) or is_before_head(n))}
    return {**kept, **fresh}


def without_cut_off(entries: Mapping[str, Entry], model: Model) -> dict[str, Entry]:
    """Entries without those of layers behind the cut of a model that is the beginning of a net."""
    is_cut_off = getattr(model.module, "is_cut_off", lambda name: False)
    return {name: entry for name, entry in entries.items() if not is_cut_off(name)}


def can_resize_positions(old: int, prefix_tokens: int) -> bool:
    """Whether ``old`` positions are a square grid after ``prefix_tokens`` others."""
    grid = old - prefix_tokens
    return grid > 0 and math.isqrt(grid) ** 2 == grid


@reproducible()
def resized_positions(
    table: NDArray[Any], *, grid: tuple[int, int], prefix_tokens: int, how: str = "antialiased"
) -> NDArray[np.float32]:
    """Position embeddings for another grid of tokens (Dosovitskiy et al., 2021, section 3.2).

    Args:
      table: ``[1, prefix_tokens + s * s, D]``, row by row from the top left; a square grid.
      grid: ``(rows, columns)`` of tokens that are wanted.
      prefix_tokens: 1 if there is a position for the class token, which has no place in the image
        and is kept; else 0.
      how: ``"antialiased"``: bicubic (Keys, a = -0.5), a smaller grid smoothed first, as timm's
        ``resample_abs_pos_embed`` and as DINOv2's own code with registers. ``"dinov2"``: as
        DINOv2's own code without registers (``interpolate_pos_encoding``, offset 0.1), with which
        its weights were trained at other sizes than 518.

    Returns:
      ``float32[1, prefix_tokens + rows * columns, D]``, each column of D for itself.

    Raises:
      ValueError: when the old grid is not a square.
    """
    if table.ndim != 3 or not can_resize_positions(table.shape[1], prefix_tokens):
        raise ValueError(
            f"pos_embed: expected [1, {prefix_tokens} + a square number, D] to resize, got "
            f"{list(table.shape)}"
        )
    side = math.isqrt(table.shape[1] - prefix_tokens)
    width = table.shape[2]
    old = np.asarray(table[:, prefix_tokens:], np.float32).reshape(side, side, width)
    if how == "dinov2":
        rows, columns = (_dinov2_weights(side, count) for count in grid)
        new = np.einsum("ri,cj,ijd->rcd", rows, columns, old, optimize=True)
    else:
        whole = (1, *grid, width)
        new = np.asarray(jax.image.resize(jnp.asarray(old[None]), whole, "bicubic", antialias=True))
    kept = np.asarray(table[:, :prefix_tokens], np.float32)
    return np.concatenate([kept, new.reshape(1, -1, width).astype(np.float32)], axis=1)


def _dinov2_weights(side: int, count: int) -> NDArray[np.float64]:
    """``[count, side]``: what each old position gives to each new one along one axis.

    PyTorch's bicubic (a = -0.75, no smoothing, the border repeated) with a scale that is not
    ``count / side`` but ``(count + 0.1) / side``: the 0.1 was to save the size from rounding, and
    moves every position a little.
    """
    scale = (count + 0.1) / side
    source = (np.arange(count) + 0.5) / scale - 0.5
    first = np.floor(source).astype(int)
    weights = np.zeros((count, side))
    for step in range(-1, 3):
        far = np.abs(source - (first + step))
        near = (1.25 * far - 2.25) * far * far + 1
        outer = ((-0.75 * far + 3.75) * far - 6) * far + 3
        at = np.clip(first + step, 0, side - 1)
        np.add.at(weights, (np.arange(count), at), np.where(far <= 1, near, outer))
    return weights
