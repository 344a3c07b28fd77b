"""Reading weights: ``.npz``, ``.safetensors``, Orbax folders, and PyTorch's own files.

Nothing is executed that a file holds: arbitrary pickles are refused, NumPy's and PyTorch's.
"""

from __future__ import annotations

import importlib
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from certmask_jax.weights.names import Arrays, to_arrays

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".bin")

# Where training programs put the weights in what they save: PyTorch's tutorials, PatchCleanser,
# PatchGuard, timm, DeiT.
_NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")
# Where the variables are in an Orbax training state: the average, if there is one, is the result.
_STATE_UNDER = ("average", "variables", "params")
_COLLECTIONS = ("params", "batch_stats")
_ITEMS = ("default", "state")
ORBAX_MARK = "_METADATA"
"""The file that makes a folder an Orbax checkpoint."""
_READ = f"expected weights in .npz or .safetensors, an Orbax folder, or {', '.join(TORCH_SUFFIXES)}"


def read(path: Path) -> Arrays:
    """The arrays of a file or an Orbax folder, under the names and in the layouts that it has.

    Flax's variables in an Orbax folder get PyTorch's (:func:`names.to_arrays`).

    Raises:
      FileNotFoundError: when there is nothing.
      ValueError: for another kind of file, one that is damaged, holds more than weights, or needs
        PyTorch where it is missing.
    """
    if path.is_dir():
        return _read_orbax(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a weights file, found none")
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise ValueError(f"{path}: {_READ}")


def _read_npz(path: Path) -> Arrays:
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle
        raise _damaged(path, zipfile.BadZipFile("not a zip archive"))
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _from_raw(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, TypeError) as error:
        if "allow_pickle" in str(error):
            raise _more_than_weights(path, "pickled Python objects") from error
        raise _damaged(path, error) from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _from_raw(array: NDArray[Any]) -> NDArray[Any]:
    """NumPy reads bfloat16 (Google's) as two bytes without a type."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _read_orbax(path: Path) -> Arrays:
    tree = _restored(path, _orbax_folder(path))
    is_flat = isinstance(tree, Mapping) and all(isinstance(v, np.ndarray) for v in tree.values())
    if is_flat and not any("/" in name for name in tree):
        return dict(tree)  # PyTorch's names
    if is_flat:
        tree = _nested(tree)
    if isinstance(tree, Mapping):
        states = (tree.get(name) for name in _STATE_UNDER)
        for found in (tree, *states):
            if isinstance(found, Mapping) and isinstance(found.get("params"), Mapping):
                if "params" in found["params"]:
                    continue  # a state: its variables are one level down
                return to_arrays({c: found[c] for c in _COLLECTIONS if c in found})
    got = ", ".join(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
    raise ValueError(
        f"{path}: expected {{'params': ..., 'batch_stats': ...}}, or arrays under PyTorch's names, "
        f"got {got or 'nothing'}"
    )


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _orbax_folder(path: Path) -> Path:
    """Where in ``path`` the arrays are; Orbax's managers put them one folder down."""
    for folder in (path, *(path / name for name in _ITEMS)):
        if (folder / ORBAX_MARK).is_file():
            return folder
    steps = sorted((int(step.name), step) for step in path.iterdir() if step.name.isdecimal())
    hint = f"; give one of its steps, such as {steps[-1][1]}" if steps else ""
    raise ValueError(f"{path}: {_READ}; this folder has no Orbax checkpoint in it{hint}")


def _restored(path: Path, folder: Path) -> Any:
    import orbax.checkpoint as ocp

    try:
        check_store(folder)
        with ocp.PyTreeCheckpointer() as checkpointer:
            saved = checkpointer.metadata(folder.absolute()).item_metadata
            if saved is None:
                raise ValueError("its list of arrays cannot be read")
            # As NumPy, whatever devices it was saved on.
            how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
            return checkpointer.restore(folder.absolute(), restore_args=how)
    except Exception as error:  # Orbax and TensorStore raise many kinds, some of their own
        raise _damaged(path, error) from error


def check_store(folder: Path) -> None:
    """Reads all values of an Orbax folder's store, one by one, so that the first error is the last.

    Orbax reads them at once, and what it leaves running at an error prints tracebacks of its own.

    Raises:
      OSError: for a part that is not there.
      Exception: TensorStore's, of many kinds, for a part that cannot be read.
    """
    import tensorstore

    if not json.loads((folder / ORBAX_MARK).read_text(encoding="utf-8")).get("use_ocdbt"):
        return  # of the older layout: a folder for each array
    if not (folder / "manifest.ocdbt").is_file():
        raise FileNotFoundError("no manifest.ocdbt")
    base = {"driver": "file", "path": f"{folder.absolute()}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for name in store.list().result():
        if not store.read(name).result().value:  # what TensorStore gives for a file that is gone
            raise FileNotFoundError(f"no file has {name.decode()}")


def _read_torch(path: Path) -> Arrays:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ValueError(
            f"{path}: a {path.suffix} file is read with PyTorch, which is missing ({error}). "
            "pip install torch, or convert it once where PyTorch is: "
            "python -m experiments.convert_weights IN OUT.safetensors --model NAME"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)|(TorchScript)", str(error))
        if forbidden:
            raise _more_than_weights(path, forbidden[1] or forbidden[2]) from error
        if isinstance(error, pickle.UnpicklingError):  # its text advises to load it unsafely
            raise _damaged(path, EOFError("not what PyTorch saves")) from error
        raise _damaged(path, error) from error
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error  # a pickle that was cut in the middle
    is_tensor: Callable[[Any], bool] = torch.is_tensor
    return {name: _to_numpy(torch, tensor) for name, tensor in _state(path, found, is_tensor)}


def _state(path: Path, found: Any, is_tensor: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """The names and tensors in what ``torch.load`` gave."""
    if isinstance(found, Mapping):
        for key in _NESTED_UNDER:
            if isinstance(found.get(key), Mapping):
                found = found[key]
                break
        if found and all(isinstance(n, str) and is_tensor(t) for n, t in found.items()):
            return list(found.items())
        keys = ", ".join(str(key) for key in list(found)[:8]) or "nothing"
    else:
        keys = f"a {type(found).__name__}"
    raise ValueError(
        f"{path}: expected tensors by name, at the top or under one of {', '.join(_NESTED_UNDER)}, "
        f"got {keys}; save its state_dict() alone"
    )


def _to_numpy(torch: Any, tensor: Any) -> NDArray[Any]:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        tensor = tensor.float()
    return np.asarray(tensor.numpy())


def _damaged(path: Path, error: Exception) -> ValueError:
    why = (str(error) or type(error).__name__).strip().split("\n")[0][:200]
    what = "Orbax folder" if path.is_dir() else f"{path.suffix} file"
    return ValueError(
        f"{path}: expected a readable {what}, but it is truncated or damaged ({why}); fetch it "
        "again"
    )


def _more_than_weights(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: expected weights only, got {what} too, which may run code on loading. Where you "
        "trust the file, convert it once: python -c \"import torch; found = torch.load('IN', "
        "weights_only=False, map_location='cpu'); torch.save(found['state_dict'], 'OUT.pth')\" "
        "(a pickled model: found.state_dict())"
    )
