"""Opening weights: ``.npz``, ``.safetensors``, Orbax folders, and PyTorch's own files.

Nothing is executed that a file holds: arbitrary pickles are refused, NumPy's and PyTorch's. Files
whose format allows it give their names and shapes first, and the numbers when they are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from certmask_jax.weights import efficientnet_names, kinds, orbax_folders, torch_files
from certmask_jax.weights.stored import Entry, WeightsFile, kind_of

_SAFETENSORS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def read(path: Path) -> WeightsFile:
    """The arrays of a file or an Orbax folder, under the names and in the layouts that it has.

    Names of EfficientNets that number all blocks through become timm's.

    Raises:
      FileNotFoundError: when there is nothing.
      OSError: when the system cannot read it.
      ValueError: for another kind of file, one that is damaged, holds more than weights, or needs
        PyTorch where it is missing.
    """
    file = _read(path)
    return dataclasses.replace(file, entries=efficientnet_names.renamed(file.entries))


def _read(path: Path) -> WeightsFile:
    suffix = path.suffix.lower()
    if kinds.check_there(path):
        return orbax_folders.read(path)
    if suffix in kinds.TORCH_SUFFIXES:
        return torch_files.read(path)
    if suffix == ".npz":
        return _npz(path)
    if suffix == ".safetensors":
        return _safetensors(path)
    raise kinds.other_suffix(path)


def _npz(path: Path) -> WeightsFile:
    kinds.check_content(path, "npz")
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle
        raise kinds.damaged(path, zipfile.BadZipFile("not a zip archive"))
    entries = {}
    try:
        with zipfile.ZipFile(path) as file:
            members = [name for name in file.namelist() if name.endswith(".npy")]
            for member in members:
                with file.open(member) as opened:
                    shape, dtype = _header(opened)
                name = member.removesuffix(".npy")
                # NumPy reads bfloat16 (Google's) as two bytes without a type.
                kind = "bfloat16" if dtype == np.dtype("V2") else kind_of(dtype)
                entries[name] = Entry(shape, kind, functools.partial(_npz_array, path, name))
    except _NPZ_ERRORS as error:
        raise kinds.damaged(path, error) from error
    if any(entry.kind == "object" for entry in entries.values()):
        raise kinds.more_than_weights(path, "pickled Python objects")
    return WeightsFile(path, entries)


_NPZ_ERRORS = (
    ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, SyntaxError,
    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _header(opened: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(opened)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(opened)
    return shape, dtype


def _npz_array(path: Path, name: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            array: NDArray[Any] = file[name]
    except _NPZ_ERRORS as error:
        raise kinds.damaged(path, error) from error
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _safetensors(path: Path) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    kinds.check_content(path, "safetensors")
    try:
        entries = {}
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_slice(name)
                stored = part.get_dtype()
                read_it = functools.partial(_safetensors_array, path, name)
                kind = _SAFETENSORS.get(stored, stored)
                entries[name] = Entry(tuple(part.get_shape()), kind, read_it)
    except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
        raise kinds.damaged(path, error) from error
    return WeightsFile(path, entries)


def _safetensors_array(path: Path, name: str) -> NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return np.asarray(file.get_tensor(name))
    except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
        raise kinds.damaged(path, error) from error
