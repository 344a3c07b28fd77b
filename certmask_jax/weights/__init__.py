"""Weights for a model, from the files that people have.

``.npz`` (PyTorch's names, Google's ViT, Google's BiT), ``.safetensors`` (timm's), Orbax folders,
and PyTorch's files where PyTorch is installed. Strict: a file either is the model, entry by entry,
or one error lists what is missing, unexpected and misshapen, with the likely cause.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from certmask_jax.models import Model, Params
from certmask_jax.storage import local_path
from certmask_jax.weights import families, google, reading, writing
from certmask_jax.weights.adaptation import can_resize_positions, resized_positions, with_new_head
from certmask_jax.weights.families import Shapes, likely_causes
from certmask_jax.weights.gate import as_float32, listed
from certmask_jax.weights.names import (
    Arrays,
    common_word,
    complete_prefixes,
    from_torch,
    torch_name,
    torch_shape,
    without_wrappers,
)
from certmask_jax.weights.writing import check_writable

__all__ = ["WeightsFile", "check_writable", "digest", "load", "num_classes", "read", "save",
           "torch_name"]  # fmt: skip

AnyFile = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsFile:
    """A file of weights that was read once.

    Attributes:
      path: absolute.
      arrays: name -> array, Google's names translated to PyTorch's.
      entry: the set of weights that was taken of several, else None; ``others`` were not.
      asked: whether the caller said which.
    """

    path: Path
    arrays: Mapping[str, Any] = dataclasses.field(repr=False)
    entry: str | None = None
    others: tuple[str, ...] = ()
    asked: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided about the file, in lines to show."""
        if self.entry is None or self.entry == self.asked:
            return ()
        return (f"{self.path.name}: took {self.entry!r}, not {', '.join(map(repr, self.others))}",)


def read(path: AnyFile, *, entry: str | None = None) -> WeightsFile:
    """Reads a file, or an Orbax folder, for :func:`num_classes` and :func:`load`.

    Args:
      path: see :func:`load`.
      entry: which set of weights, where the file has several.

    Raises:
      FileNotFoundError, ValueError, OSError: see :func:`load`.
    """
    where = local_path(path)
    found = reading.read(where, entry)
    return WeightsFile(where, google.translate(found.arrays), found.entry, found.others, entry)


def num_classes(file: WeightsFile) -> int | None:
    """How many outputs the head in a file has, or None where no head is known."""
    arrays: Mapping[str, Any] = without_wrappers(file.arrays)
    while arrays:
        found = families.num_classes({n: tuple(np.shape(a)) for n, a in arrays.items()})
        word = common_word(arrays)
        if found is not None or word is None:
            return found
        arrays = {name[len(word) + 1 :]: array for name, array in arrays.items()}
    return None


def load(
    path: AnyFile | WeightsFile,
    model: Model,
    *,
    entry: str | None = None,
    new_head: bool = False,
    resize_positions: bool = False,
    seed: int = 0,
) -> Params:
    """Reads a model's variables, ``float32``.

    What wrappers put in front of all names (``module.``, ``_orig_mod.``, ``model.``) is taken off;
    ``num_batches_tracked`` and ``n_averaged`` are ignored; Google's names are translated.

    Args:
      path: ``.npz``, ``.safetensors``, an Orbax folder, ``.pth``, ``.pt``, ``.th``, ``.tar``,
        ``.bin`` or ``.ckpt``; or one that was read (:func:`read`).
      model: what the weights are for.
      entry: which set of weights, where the file has several: its name there (``state_dict_ema``),
        or what stands in front of its names (``ema_model.``). Without it several are an error
        unless they are equal; of this package's own training states the average is taken.
      new_head: start a fresh head, whatever head the file has: for another task.
      resize_positions: resize a ViT's position embeddings to the model's input size, bicubically,
        the class token apart (Dosovitskiy et al., 2021, section 3.2). As many positions as the
        model has are taken as they are.
      seed: of the new head.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: when the file is of another kind, damaged, of another model (lists the missing,
        unexpected and misshapen entries), holds several sets of weights, or what is not finite
        floating numbers.
      OSError: when it cannot be read.
    """
    prefix = entry if entry is not None and entry.endswith(".") else None
    file = path
    if not isinstance(file, WeightsFile):
        file = read(file, entry=None if prefix else entry)
    leaves, tree = jax.tree_util.tree_flatten_with_path(model.param_shapes())
    keys = {torch_name(key): key for key, _ in leaves}
    shapes: Shapes = {torch_name(key): torch_shape(key, leaf.shape) for key, leaf in leaves}
    if resize_positions and "pos_embed" not in shapes:
        raise ValueError(
            f"resize_positions: expected a model with position embeddings, got {model.name}, which "
            "has none; leave it out"
        )
    arrays = _of_model(file, shapes, new_head=new_head, prefix=prefix)
    if new_head:
        arrays = with_new_head(arrays, model, seed=seed)
    if resize_positions:
        arrays = _with_resized_positions(arrays, shapes, model)
    _check(file.path, arrays, shapes, model)
    numbers = as_float32(file.path, arrays, list(shapes))
    loaded = [jnp.asarray(from_torch(keys[n], numbers[n])) for n in shapes]
    return jax.tree_util.tree_unflatten(tree, loaded)


def save(path: AnyFile, params: Params) -> None:
    """Writes variables, whole or not at all; the suffix of ``path`` chooses the format.

    ``.npz`` and ``.safetensors`` get PyTorch's names and layouts (timm reads the latter),
    ``.orbax`` or no suffix gives an Orbax folder with the tree. An existing one is replaced;
    missing parent folders are made.

    Raises:
      ValueError: for another suffix.
      FileExistsError: when ``path`` is a folder but not Orbax's, or a file where a folder is meant.
      OSError: when it cannot be written.
    """
    writing.write(local_path(path), params)


def digest(params: Params) -> str:
    """SHA-256 of the parameters themselves (names, shapes, dtypes, numbers), in hexadecimal."""
    found = hashlib.sha256()
    for key, leaf in sorted(
        (
            (torch_name(key), np.asarray(leaf))
            for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        ),
        key=lambda item: item[0],
    ):
        found.update(f"{key} {leaf.shape} {leaf.dtype}\n".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _with_resized_positions(arrays: Arrays, shapes: Shapes, model: Model) -> Arrays:
    table, wanted = arrays.get("pos_embed"), shapes["pos_embed"]
    if table is None or table.shape == wanted:
        return arrays
    patch = shapes["patch_embed.proj.weight"][2:]
    height, width = model.data_config.input_size
    grid = (height // patch[0], width // patch[1])
    prefix = wanted[1] - grid[0] * grid[1]
    resized = resized_positions(table, grid=grid, prefix_tokens=prefix)
    return {**arrays, "pos_embed": resized}


def _check(path: Path, arrays: Arrays, shapes: Shapes, model: Model) -> None:
    """Raises unless ``arrays`` are the model's, by name and shape, and finite numbers."""
    missing = sorted(set(shapes) - set(arrays))
    unexpected = sorted(set(arrays) - set(shapes))
    misshapen = [
        f"{name} {arrays[name].shape} instead of {shape}"
        for name, shape in sorted(shapes.items())
        if name in arrays and arrays[name].shape != shape
    ]
    if missing or unexpected or misshapen:
        found = {name: array.shape for name, array in arrays.items()}
        raise ValueError(
            f"{path}: expected the weights of {model.name} with {model.num_classes} classes, got "
            f"others. {listed('missing', missing)}{listed('unexpected', unexpected)}"
            f"{listed('misshapen', misshapen)}"
            f"{likely_causes(found, shapes, _resizable(found, shapes))}"
        )


def _of_model(
    file: WeightsFile, shapes: Shapes, *, new_head: bool, prefix: str | None
) -> dict[str, Any]:
    """The entries of a file under the model's names, if only words in front differ."""
    wanted = [name for name in shapes if not (new_head and families.is_head(name))]
    if prefix is not None:
        chosen = {n[len(prefix) :]: a for n, a in file.arrays.items() if n.startswith(prefix)}
        if not chosen:
            raise ValueError(f"{file.path}: expected names that begin with {prefix}, found none")
        return without_wrappers(chosen, wanted)
    arrays = without_wrappers(file.arrays, wanted)
    if set(wanted) <= set(arrays):
        return arrays
    fronts = complete_prefixes(arrays, wanted)
    if len(fronts) > 1:
        raise ValueError(
            f"{file.path}: expected one set of weights, got {len(fronts)}, whose names begin with "
            f"{', '.join(fronts)}. Say which one is meant (entry={fronts[0]!r})"
        )
    if fronts:  # others beside them are then named as unexpected
        front = fronts[0]
        return {name.removeprefix(front): array for name, array in arrays.items()}
    return arrays


def _resizable(found: Shapes, shapes: Shapes) -> bool:
    old, new = found.get("pos_embed", ()), shapes.get("pos_embed", ())
    prefix = int("cls_token" in shapes)
    return len(old) == len(new) == 3 and old[2] == new[2] and can_resize_positions(old[1], prefix)
