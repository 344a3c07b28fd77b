"""Weights for a model, from the files that people have.

``.npz`` (PyTorch's names, Google's ViT, Google's BiT), ``.safetensors`` (timm's), Orbax folders,
and PyTorch's files where PyTorch is installed. Strict: a file either is the model, entry by entry,
or one error lists what is missing, unexpected and misshapen, with the likely cause.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from certmask_jax.models import Model, Params
from certmask_jax.weights import google, reading, writing
from certmask_jax.weights.adaptation import can_resize_positions, resized_positions, with_new_head
from certmask_jax.weights.families import Shapes, likely_causes
from certmask_jax.weights.names import (
    Arrays,
    from_torch,
    torch_name,
    torch_shape,
    without_wrappers,
)
from certmask_jax.weights.writing import check_writable

__all__ = ["check_writable", "digest", "load", "save", "torch_name"]

_SHOWN = 8


def load(
    path: Path | str,
    model: Model,
    *,
    new_head: bool = False,
    resize_positions: bool = False,
    seed: int = 0,
) -> Params:
    """Reads a model's variables, ``float32``.

    ``module.`` in front of all names (DataParallel) is taken off; ``num_batches_tracked`` is
    ignored; Google's names are translated.

    Args:
      path: ``.npz``, ``.safetensors``, an Orbax folder, ``.pth``, ``.pt``, ``.th``, ``.tar`` or
        ``.bin``.
      model: what the weights are for.
      new_head: start a fresh head, whatever head the file has: for another task.
      resize_positions: resize a ViT's position embeddings to the model's input size, bicubically,
        the class token apart (Dosovitskiy et al., 2021, section 3.2). As many positions as the
        model has are taken as they are.
      seed: of the new head.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: when the file is of another kind, damaged, of another model (lists the missing,
        unexpected and misshapen entries), or holds what is not finite numbers.
    """
    path = Path(path)
    leaves, tree = jax.tree_util.tree_flatten_with_path(model.param_shapes())
    keys = {torch_name(key): key for key, _ in leaves}
    shapes: Shapes = {torch_name(key): torch_shape(key, leaf.shape) for key, leaf in leaves}
    if resize_positions and "pos_embed" not in shapes:
        raise ValueError(
            f"resize_positions: expected a model with position embeddings, got {model.name}, which "
            "has none; leave it out"
        )
    arrays = without_wrappers(google.translate(reading.read(path)))
    if new_head:
        arrays = with_new_head(arrays, model, seed=seed)
    if resize_positions:
        arrays = _with_resized_positions(arrays, shapes, model)
    _check(path, arrays, shapes, model)
    loaded = [jnp.asarray(from_torch(keys[n], arrays[n]), dtype=jnp.float32) for n in shapes]
    return jax.tree_util.tree_unflatten(tree, loaded)


def save(path: Path | str, params: Params) -> None:
    """Writes variables, whole or not at all; the suffix of ``path`` chooses the format.

    ``.npz`` and ``.safetensors`` get PyTorch's names and layouts (timm reads the latter),
    ``.orbax`` or no suffix gives an Orbax folder with the tree. An existing one is replaced;
    missing parent folders are made.

    Raises:
      ValueError: for another suffix.
      FileExistsError: when ``path`` is a folder but not Orbax's, or a file where a folder is meant.
      OSError: when it cannot be written.
    """
    writing.write(Path(path), params)


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
            f"others. {_listed('missing', missing)}{_listed('unexpected', unexpected)}"
            f"{_listed('misshapen', misshapen)}"
            f"{likely_causes(found, shapes, _resizable(found, shapes))}"
        )
    broken = [name for name in sorted(shapes) if not _is_finite(arrays[name])]
    if broken:
        raise ValueError(f"{path}: expected finite weights. {_listed('NaN or infinite', broken)}")


def _resizable(found: Shapes, shapes: Shapes) -> bool:
    old, new = found.get("pos_embed", ()), shapes.get("pos_embed", ())
    prefix = int("cls_token" in shapes)
    return len(old) == len(new) == 3 and old[2] == new[2] and can_resize_positions(old[1], prefix)


def _is_finite(array: Any) -> bool:
    try:
        return bool(np.isfinite(array).all())
    except TypeError:  # text, or numbers of a kind that NumPy does not know
        return False


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}. "
