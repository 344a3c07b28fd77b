"""Weights from files: ``.npz`` and ``.safetensors`` with PyTorch's names and layouts.

Strict: a file either is the model, entry by entry, or one error lists what is missing, unexpected
and misshapen.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax.models import Model, Params

Arrays = dict[str, NDArray[Any]]

_SUFFIXES = (".npz", ".safetensors")
_SHOWN = 8

# Flax module names that stand for two of PyTorch's; numbers at the end are nested too.
_NESTED = {"patch_embed_proj": "patch_embed.proj", "mlp_fc1": "mlp.fc1", "mlp_fc2": "mlp.fc2"}
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def load(path: Path | str, model: Model) -> Params:
    """Reads a model's variables, ``float32``, from a file with PyTorch names.

    ``module.`` in front of all names (DataParallel) is taken off; ``num_batches_tracked`` is
    ignored.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: when the file is of another kind, damaged, of another model (lists the missing,
        unexpected and misshapen entries), or holds numbers that are not finite.
    """
    path = Path(path)
    arrays = _without_prefix(_read(path))
    shapes, tree = jax.tree_util.tree_flatten_with_path(model.param_shapes())
    wanted = {_torch_name(key): (key, leaf.shape) for key, leaf in shapes}
    missing = sorted(set(wanted) - set(arrays))
    unexpected = sorted(set(arrays) - set(wanted))
    misshapen = [
        f"{name} {arrays[name].shape} instead of {_torch_shape(key, shape)}"
        for name, (key, shape) in sorted(wanted.items())
        if name in arrays and arrays[name].shape != _torch_shape(key, shape)
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path}: expected the weights of {model.name} with {model.num_classes} classes, got "
            f"others. {_listed('missing', missing)}{_listed('unexpected', unexpected)}"
            f"{_listed('misshapen', misshapen)}{_likely_cause(model, arrays, missing, misshapen)}"
        )
    broken = sorted(name for name in wanted if not np.isfinite(arrays[name]).all())
    if broken:
        raise ValueError(f"{path}: expected finite weights. {_listed('NaN or infinite', broken)}")
    leaves = [
        jnp.asarray(_from_torch(wanted[name][0], arrays[name]), dtype=jnp.float32)
        for name in wanted
    ]
    return jax.tree_util.tree_unflatten(tree, leaves)


def save(path: Path | str, params: Params) -> None:
    """Writes variables under PyTorch's names and layouts, whole or not at all.

    The suffix of ``path`` chooses the format; an existing file is replaced.

    Raises:
      ValueError: for another suffix than ``.npz`` or ``.safetensors``.
    """
    path = Path(path)
    arrays = {
        _torch_name(key): _to_torch(key, np.asarray(leaf))
        for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    unfinished = path.with_name(f"{path.name}.unfinished{path.suffix}")
    if path.suffix == ".npz":
        np.savez_compressed(unfinished, **arrays)  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, unfinished)
    else:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    os.replace(unfinished, path)


def digest(params: Params) -> str:
    """SHA-256 of the parameters themselves (names, shapes, dtypes, numbers), in hexadecimal."""
    found = hashlib.sha256()
    for key, leaf in sorted(
        (
            (_torch_name(key), np.asarray(leaf))
            for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        ),
        key=lambda item: item[0],
    ):
        found.update(f"{key} {leaf.shape} {leaf.dtype}\n".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a weights file, found none")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path}: expected weights in {' or '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        from safetensors.numpy import load_file

        return dict(load_file(path))
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    except Exception as error:  # safetensors raises a class of its own; zlib too
        if type(error).__name__ not in ("SafetensorError", "error"):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: expected a readable {path.suffix} file, but it is truncated or damaged "
        f"({error}); fetch it again"
    )


def _without_prefix(arrays: Arrays) -> Arrays:
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return {n: a for n, a in arrays.items() if not n.endswith("num_batches_tracked")}


def _torch_name(key: Any) -> str:
    _, *parts = (entry.key for entry in key)  # without the collection
    *modules, leaf = parts
    named = [_NESTED.get(m, re.sub(r"_(\d+)$", r".\1", m)) for m in modules]
    return ".".join([*named, _LEAVES.get(leaf, leaf)])


def _is_kernel(key: Any) -> bool:
    return bool(key[-1].key == "kernel")


def _torch_shape(key: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not _is_kernel(key):
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _from_torch(key: Any, array: NDArray[Any]) -> NDArray[Any]:
    if not _is_kernel(key):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_torch(key: Any, array: NDArray[Any]) -> NDArray[Any]:
    if _is_kernel(key):
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}. "


def _likely_cause(model: Model, arrays: Arrays, missing: list[str], misshapen: list[str]) -> str:
    head = [m for m in misshapen if m.startswith(("linear.", "head."))]
    if misshapen and len(head) == len(misshapen) and not missing:
        got = next(arrays[m.split()[0]].shape[0] for m in head)
        return f"Likely another number of classes: try --num-classes {got}"
    if missing:
        return f"Likely another model than {model.name}, or a file that is cut short"
    return f"Likely another variant than {model.name}"
