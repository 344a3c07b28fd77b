"""How Flax's nested variables are named and laid out in PyTorch, and back.

The models name their submodules so that three rules give timm's names (and those of the other
published files): dots where Flax nests, a number at the end of a module's name is nested too, and
four leaves have other words. Layouts differ for kernels only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
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
# What torch's wrappers for several devices, compilation and recomputation put into names, anywhere.
_ANYWHERE = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What others put in front of all names: DataParallel, Lightning, training programs.
_IN_FRONT = ("module", "model", "net", "network")
# Counters that stand beside weights: batch normalisation's, and those of averages.
_COUNTERS = ("num_batches_tracked", "n_averaged")


def torch_name(key: KeyPath) -> str:
    """PyTorch's name of a leaf.

    ``params/blocks_0/attn/qkv/kernel`` is ``blocks.0.attn.qkv.weight``:

    - The collection (``params``, ``batch_stats``) is left out; nesting becomes dots.
    - ``_<int>`` at the end of a module's name becomes ``.<int>``: ``layer1_0`` is ``layer1.0``,
      ``downsample_1`` is ``downsample.1``.
    - ``kernel`` and ``scale`` are ``weight``, ``mean`` is ``running_mean``, ``var`` is
      ``running_var``; other leaves (``bias``, ``alpha``, ``cls_token``) keep their names.
    """
    _, *modules, leaf = (entry.key for entry in key)
    named = [_NESTED.get(module, re.sub(r"_(\d+)$", r".\1", module)) for module in modules]
    return ".".join([*named, _LEAVES.get(leaf, leaf)])


def torch_shape(key: KeyPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a leaf has in PyTorch's layout."""
    return tuple(shape[axis] for axis in _torch_axes(key, len(shape)))


def to_torch(key: KeyPath, array: NDArray[Any]) -> NDArray[Any]:
    """A leaf in PyTorch's layout: dense ``[in, out]`` -> ``[out, in]``, HWIO -> OIHW."""
    return np.ascontiguousarray(array.transpose(_torch_axes(key, array.ndim)))


def from_torch(key: KeyPath, array: NDArray[Any]) -> NDArray[Any]:
    """The inverse of :func:`to_torch`."""
    return array.transpose(np.argsort(_torch_axes(key, array.ndim)))


def to_arrays(variables: Any) -> Arrays:
    """Flax's nested variables under PyTorch's names, in PyTorch's layouts."""
    return {
        torch_name(key): to_torch(key, np.asarray(leaf))
        for key, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }


def without_wrappers(arrays: Mapping[str, Any], wanted: Collection[str] = ()) -> dict[str, Any]:
    """Takes off what wrappers put in front of all names, in any order and number.

    ``_orig_mod.`` (torch.compile) and the like go wherever they are; counters
    (``num_batches_tracked``, ``n_averaged``) are dropped: no forward pass in eval mode uses them.
    A word that all names begin with goes if the rest are then the names that are wanted, whatever
    the word, or if it is one that wrappers are known to use (``module.``, Lightning's ``model.``)
    and no wanted name begins with it.
    """
    plain = {
        _ANYWHERE.sub(r"\1", name): array
        for name, array in arrays.items()
        if name.rpartition(".")[2] not in _COUNTERS
    }
    needed = set(wanted)
    first_words = {name.split(".", 1)[0] for name in needed}
    known = stripped = plain
    are_known = True
    while stripped:
        if needed and needed <= set(stripped):
            return stripped
        word = common_word(stripped)
        if word is None:
            break
        stripped = {name[len(word) + 1 :]: array for name, array in stripped.items()}
        are_known = are_known and word in _IN_FRONT and word not in first_words
        if are_known:
            known = stripped
    return known


def complete_prefixes(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """What stands in front of all wanted names, with a dot at its end: one for each whole set."""
    there, one = set(names), min(wanted, default="")
    ends = [name[: -len(one)] for name in there if name.endswith(f".{one}")]
    return sorted(front for front in ends if all(front + name in there for name in wanted))


def common_word(names: Collection[str]) -> str | None:
    """The first word of all names, before a dot, if they share one."""
    words = {name.split(".", 1)[0] if "." in name else "" for name in names}
    return words.pop() if len(words) == 1 and "" not in words else None


def _torch_axes(key: KeyPath, rank: int) -> tuple[int, ...]:
    if key[-1].key != "kernel":
        return tuple(range(rank))
    return (3, 2, 0, 1) if rank == 4 else tuple(range(rank))[::-1]
