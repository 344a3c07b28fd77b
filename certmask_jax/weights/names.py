"""How Flax's nested variables are named and laid out in PyTorch, and back.

The models name their submodules so that three rules give timm's names (and those of the other
published files): dots where Flax nests, a number at the end of a module's name is nested too, and
four leaves have other words. Layouts differ for kernels only.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
"""PyTorch name -> array in PyTorch's layout."""

KeyPath = tuple[Any, ...]
"""Where a leaf is, as ``jax.tree_util`` says it; its first entry is Flax's collection."""

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# Flax module names that stand for two of PyTorch's; the models that have them keep them, since
# parameter trees were saved under them.
_NESTED = {"patch_embed_proj": "patch_embed.proj", "mlp_fc1": "mlp.fc1", "mlp_fc2": "mlp.fc2"}


def torch_name(key: KeyPath) -> str:
    """PyTorch's name of a leaf.

    ``params/blocks_0/attn/qkv/kernel`` is ``blocks.0.attn.qkv.weight``:

    - The collection (``params``, ``batch_stats``) is left out; nesting becomes dots.
    - ``_<int>`` at the end of a module's name becomes ``.<int>``: ``layer1_0`` is ``layer1.0``,
      ``downsample_1`` is ``downsample.1``.
    - ``kernel`` and ``scale`` are ``weight``, ``mean`` is ``running_mean``, ``var`` is
      ``running_var``; other leaves (``bias``, ``alpha``, ``cls_token``) keep their names.
    """
    return from_path(flax_path(key), 0)[0]


def flax_path(key: KeyPath) -> str:
    """A leaf's path below its collection, such as ``blocks_0/attn/qkv/kernel``."""
    return "/".join(entry.key for entry in key[1:])


def torch_shape(key: KeyPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a leaf has in PyTorch's layout."""
    return tuple(shape[axis] for axis in _torch_axes(key, len(shape)))


def to_torch(key: KeyPath, array: NDArray[Any]) -> NDArray[Any]:
    """A leaf in PyTorch's layout: dense ``[in, out]`` -> ``[out, in]``, HWIO -> OIHW."""
    return np.ascontiguousarray(array.transpose(_torch_axes(key, array.ndim)))


def from_torch(key: KeyPath, array: NDArray[Any]) -> NDArray[Any]:
    """The inverse of ``to_torch``."""
    return array.transpose(np.argsort(_torch_axes(key, array.ndim)))


def to_arrays(variables: Any) -> Arrays:
    """Flax's nested variables under PyTorch's names, in PyTorch's layouts."""
    return {
        torch_name(key): to_torch(key, np.asarray(leaf))
        for key, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }


def from_path(path: str, rank: int) -> tuple[str, tuple[int, ...]]:
    """PyTorch's name of a leaf of a Flax tree, and the axes that ``transpose`` puts in its order.

    Args:
      path: from below the collection, as ``blocks_0/attn/qkv/kernel``.
      rank: of the leaf.
    """
    *modules, leaf = path.split("/")
    named = [_NESTED.get(module, re.sub(r"_(\d+)$", r".\1", module)) for module in modules]
    return ".".join([*named, _LEAVES.get(leaf, leaf)]), _axes(leaf, rank)


def _torch_axes(key: KeyPath, rank: int) -> tuple[int, ...]:
    return _axes(key[-1].key, rank)


def _axes(leaf: str, rank: int) -> tuple[int, ...]:
    if leaf != "kernel":
        return tuple(range(rank))
    return (3, 2, 0, 1) if rank == 4 else tuple(range(rank))[::-1]
