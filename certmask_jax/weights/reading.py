"""Reading weights: ``.npz``, ``.safetensors``, Orbax folders, and PyTorch's own files.

Nothing is executed that a file holds: arbitrary pickles are refused, NumPy's and PyTorch's.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from certmask_jax.weights.gate import NotNumbers
from certmask_jax.weights.names import to_arrays

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")

# Where the variables are in an Orbax training state of this package, the first that is there: the
# average is the result of the training.
_OWN_STATE = ("average", "variables")
_COLLECTIONS = ("params", "batch_stats")
_ITEMS = ("default", "state")
ORBAX_MARK = "_METADATA"
"""The file that makes a folder an Orbax checkpoint."""
_READ = f"expected weights in .npz or .safetensors, an Orbax folder, or {', '.join(TORCH_SUFFIXES)}"


class Contents(NamedTuple):
    """What a file of weights holds.

    Attributes:
      arrays: name -> array, in the file's own layouts; ``NotNumbers`` for what is none.
      entry: the set of weights that was taken, where there were several.
      others: the sets that were not taken.
    """

    arrays: dict[str, Any]
    entry: str | None = None
    others: tuple[str, ...] = ()


def read(path: Path, entry: str | None = None) -> Contents:
    """The arrays of a file or an Orbax folder, under the names and in the layouts that it has.

    Flax's variables in an Orbax folder get PyTorch's (:func:`names.to_arrays`).

    Args:
      path: absolute.
      entry: which set of weights, where there are several, such as ``state_dict_ema``.

    Raises:
      FileNotFoundError: when there is nothing.
      ValueError: for another kind of file, one that is damaged, holds more than weights, or needs
        PyTorch where it is missing; for several sets of weights, or one that is not there.
      OSError: for what cannot be read.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _read_orbax(path, entry)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a weights file, found none")
    with path.open("rb") as file:  # for the system's own error
        start = file.read(64)
    if suffix in (".npz", ".safetensors", *TORCH_SUFFIXES):
        _check_content(path, start)
    if suffix in TORCH_SUFFIXES:
        return _read_torch(path, entry)
    if suffix == ".npz":
        return Contents(_read_npz(path))
    if suffix == ".safetensors":
        return Contents(_read_safetensors(path))
    raise ValueError(f"{path}: {_READ}")


def _check_content(path: Path, start: bytes) -> None:
    """``ValueError`` for what a download leaves in place of a file."""
    plain = start.lstrip().lower()
    if not start:
        raise _damaged(path, EOFError("it is empty"))
    if plain.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path}: expected a readable {path.suffix} file, but it is a pointer of Git LFS; "
            "fetch the file itself (git lfs pull)"
        )
    if plain.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path}: expected a readable {path.suffix} file, but it is a web page; fetch the file "
            "itself"
        )


def _read_npz(path: Path) -> dict[str, Any]:
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


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, Any] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                try:
                    found[name] = file.get_tensor(name)
                except (TypeError, AttributeError, KeyError, ValueError):  # no dtype of NumPy's
                    part = file.get_slice(name)
                    found[name] = NotNumbers(str(part.get_dtype()), tuple(part.get_shape()))
    except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return found


def _read_orbax(path: Path, entry: str | None) -> Contents:
    tree = _restored(path, _orbax_folder(path))
    is_flat = isinstance(tree, Mapping) and all(isinstance(v, np.ndarray) for v in tree.values())
    if is_flat and not any("/" in name for name in tree):
        return Contents(dict(tree))  # PyTorch's names
    if is_flat:
        tree = _nested(tree)
    sets = _variables(tree) if isinstance(tree, Mapping) else {}
    if not sets:
        got = ", ".join(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
        raise ValueError(
            f"{path}: expected {{'params': ..., 'batch_stats': ...}}, or arrays under PyTorch's "
            f"names, got {got or 'nothing'}"
        )
    own = next((name for name in _OWN_STATE if name in sets), None)
    arrays = {name: to_arrays(variables) for name, variables in sets.items()}
    return _one_of(path, arrays, entry, own)


def _variables(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The sets of Flax's variables in a tree, by where they are."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(value, Mapping):
            continue
        if name in _OWN_STATE or (name == "params" and isinstance(value.get("params"), Mapping)):
            if isinstance(value.get("params"), Mapping):  # a state: variables are one level down
                found[name] = {c: value[c] for c in _COLLECTIONS if c in value}
        elif name == "params" or name.endswith("_params") or name.startswith("params_"):
            beside = name.replace("params", "batch_stats")
            stats = tree.get(beside, tree.get("batch_stats"))
            found[name] = {"params": value} | ({} if stats is None else {"batch_stats": stats})
    return found


def _one_of(
    path: Path, sets: Mapping[str, dict[str, Any]], entry: str | None, own: str | None = None
) -> Contents:
    """The set of weights that is asked for, or the only one.

    Args:
      own: the one to take unasked, of the package's own training states.
    """
    if entry is not None:
        if entry not in sets:
            raise ValueError(
                f"{path}: expected a set of weights called {entry!r}, found {', '.join(sets)}"
            )
        chosen = entry
    else:
        chosen = own or next(iter(sets))
        rest = [tensors for name, tensors in sets.items() if name != chosen]
        if own is None and not all(_are_equal(sets[chosen], tensors) for tensors in rest):
            raise ValueError(
                f"{path}: expected one set of weights, got {len(sets)} that differ: "
                f"{', '.join(sets)}. Say which one is meant (entry={list(sets)[-1]!r})"
            )
    others = tuple(name for name in sets if name != chosen)
    return Contents(sets[chosen], chosen if others else None, others)


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, NotNumbers) or isinstance(b, NotNumbers):
            return False
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


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


def _read_torch(path: Path, entry: str | None) -> Contents:
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
    except Exception as error:  # a pickle that was cut in the middle, or one of an odd kind
        raise _damaged(path, error) from error
    sets = {
        name: {n: _to_numpy(torch, tensor) for n, tensor in tensors.items()}
        for name, tensors in _states(path, found, torch.is_tensor).items()
    }
    return _one_of(path, sets, entry)


def _states(path: Path, found: Any, is_tensor: Callable[[Any], bool]) -> dict[str, dict[str, Any]]:
    """The sets of tensors in what ``torch.load`` gave, by where they are; "" is the top."""

    def tensors(value: Any) -> dict[str, Any] | None:
        """A mapping of names to tensors, without what is None; None if it is none."""
        if not isinstance(value, Mapping):
            return None
        kept = {name: tensor for name, tensor in value.items() if tensor is not None}
        ok = kept and all(isinstance(n, str) and is_tensor(t) for n, t in kept.items())
        return dict(kept) if ok else None

    top = tensors(found)
    if top is not None:
        return {"": top}
    sets: dict[str, dict[str, Any]] = {}
    if isinstance(found, Mapping):
        for name, value in found.items():
            inner = tensors(value)
            if inner is None and isinstance(value, Mapping):  # such as {"ema": {"module": ...}}
                deeper = [tensors(one) for one in value.values()]
                whole = [one for one in deeper if one is not None]
                inner = whole[0] if len(whole) == 1 else None
            if inner is not None and not _is_no_model(str(name)):
                sets[str(name)] = inner
    if sets:
        return sets
    if isinstance(found, Mapping):
        got = ", ".join(_described(*one) for one in list(found.items())[:8]) or "nothing"
    else:
        got = f"a {type(found).__name__}"
    raise ValueError(
        f"{path}: expected tensors by name, at the top or under a name such as state_dict or "
        f"model, got {got}; save its state_dict() alone"
    )


def _described(name: Any, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{name} (with {', '.join(map(str, list(value)[:4])) or 'nothing'})"
    return f"{name} ({type(value).__name__})"


def _is_no_model(name: str) -> bool:
    """Whether an entry of a training state is something else than weights."""
    return re.search(r"optim|sched|scaler|rng|callback|loop|metric|loss", name.lower()) is not None


def _to_numpy(torch: Any, tensor: Any) -> NDArray[Any] | NotNumbers:
    """A tensor as an array; what NumPy has no numbers for is only described."""
    try:
        plain = tensor.detach()
        if plain.dtype == torch.bfloat16:  # NumPy has none
            plain = plain.float()
        return np.asarray(plain.numpy())
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
        layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
        where = " without content" if tensor.is_meta else ""
        dtype = f"{tensor.dtype}{layout}{where}".replace("torch.", "")
        try:
            return NotNumbers(dtype, tuple(tensor.shape))
        except (RuntimeError, ValueError):  # an uninitialised parameter has none
            return NotNumbers(f"{dtype}, uninitialised")


def _damaged(path: Path, error: Exception) -> Exception:
    """What to raise for a file that a reader could not read: the system's error, or damage."""
    text = str(error)
    number = getattr(error, "errno", None)
    code = re.search(r"os_error_code='(\d+)'", text)
    if code is not None and number is None:
        number = int(code[1])
    if number is not None and number != errno.ENOENT:
        return OSError(number, f"{path}: expected to read it ({os.strerror(number)})")
    why = (text or type(error).__name__).strip().split("\n")[0][:200]
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
