"""Reading PyTorch's files, where PyTorch is installed; nothing is executed that they hold."""

from __future__ import annotations

import functools
import importlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import encodable
from certmask_jax.weights import kinds
from certmask_jax.weights.stored import Entry, WeightsFile

_DEPTH = 6  # of nesting that is looked into


CPU_INDEX = "--index-url https://download.pytorch.org/whl/cpu"
"""What is said to pip for a PyTorch without CUDA, which is what it has for Linux otherwise."""


class TorchMissingError(ValueError):
    """A file that only PyTorch reads, where there is none; it may be converted elsewhere."""


def read(path: Path) -> WeightsFile:
    """The tensors of a file, wherever in it they are nested.

    Raises:
      OSError: when the system cannot read it.
      TorchMissingError: a ``ValueError``, where PyTorch is not installed.
      ValueError: when it is damaged, holds more than weights, or has no tensors.
    """
    kinds.check_content(path, "torch")  # which takes no PyTorch: it would not help
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise TorchMissingError(
            f"{path}: a {path.suffix} file is read with PyTorch, which is missing ({error}). "
            f"pip install torch {CPU_INDEX}, or convert it once where PyTorch is"
        ) from error
    content = _loaded(torch, path)
    entries: dict[str, Entry] = {}
    others: dict[str, str] = {}
    if isinstance(content, Mapping):
        _collect(torch, content, "", entries, others, _DEPTH)
    if not entries:
        got = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            got = ", ".join(_described(*item) for item in list(content.items())[:8]) or "nothing"
        raise no_tensors(path, got)
    return WeightsFile(path, entries, others, nested=True)


def of_tensors(path: Path, tensors: Mapping[str, Any]) -> WeightsFile:
    """A model's ``state_dict()`` that is in memory, as if it had been read from a file.

    Args:
      path: what errors call it.
      tensors: PyTorch's, by name.
    """
    entries: dict[str, Entry] = {}
    _collect(importlib.import_module("torch"), tensors, "", entries, {}, 0)
    return WeightsFile(path, entries)


def no_tensors(path: Path, got: str, among: str = "") -> ValueError:
    """What to say of a file without tensors by name, or with something else among them."""
    return ValueError(
        f"{path}: expected tensors by name, at the top or under a name such as state_dict or "
        f"model, and nothing else among them{f' ({among})' if among else ''}, got {got}; save its "
        "state_dict() alone"
    )


def _described(name: Any, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{name} (with {', '.join(map(str, list(value)[:4])) or 'nothing'})"
    return f"{name} ({type(value).__name__})"


def _loaded(torch: Any, path: Path) -> Any:
    how: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, of which the error below tells
            if encodable(str(path)) != str(path):  # PyTorch takes names in UTF-8 only
                with open(path, "rb") as file:
                    return torch.load(file, **how)
            # A file of today is mapped, so that only what is used is read.
            return torch.load(path, **how, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)|(TorchScript)", str(error))
        forbidden = forbidden or re.search(r"Unsupported (?:class|type) ([\w.]+)", str(error))
        if forbidden:
            what = next(group for group in forbidden.groups() if group)
            raise kinds.more_than_weights(path, what) from error
        if isinstance(error, pickle.UnpicklingError):  # its text advises to load it unsafely
            raise kinds.damaged(path, EOFError("not what PyTorch saves")) from error
        raise kinds.damaged(path, error) from error
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise kinds.damaged(path, error) from error  # a pickle that was cut in the middle


def _collect(
    torch: Any,
    content: Mapping[Any, Any],
    place: str,
    entries: dict[str, Entry],
    others: dict[str, str],
    depth: int,
) -> None:
    for key, value in content.items():
        name = f"{place}{key}"
        if torch.is_tensor(value):
            read = functools.partial(_to_numpy, torch, value)
            entries[name] = Entry(_shape(value), _kind(torch, value), read)
        elif value is not None:
            others[name] = type(value).__name__
            if isinstance(value, Mapping) and depth:
                _collect(torch, value, f"{name}/", entries, others, depth - 1)


def _shape(tensor: Any) -> tuple[int, ...]:
    try:
        return tuple(map(int, tensor.shape))
    except RuntimeError:  # of an uninitialised parameter, or a nested tensor
        return ()


def _kind(torch: Any, tensor: Any) -> str:
    """NumPy's name of the dtype of a plain tensor, else words."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if torch.nn.parameter.is_lazy(tensor):
        return f"{dtype} without content"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"{dtype} {type(tensor).__name__}"
    if tensor.is_quantized:
        return dtype
    if tensor.is_nested:
        return f"{dtype} nested"
    if tensor.layout != torch.strided:
        return f"{dtype} {str(tensor.layout).removeprefix('torch.')}"
    if tensor.device.type == "meta":
        return f"{dtype} without content"
    return dtype


def _to_numpy(torch: Any, tensor: Any) -> NDArray[Any]:
    tensor = tensor.detach().resolve_neg()
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        tensor = tensor.float()
    return np.asarray(tensor.numpy())
