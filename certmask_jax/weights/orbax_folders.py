"""Reading Orbax folders, by Orbax and TensorStore."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from certmask_jax._text import json_of
from certmask_jax.files.local_paths import in_utf8, local_path
from certmask_jax.files.quiet_logs import errors_alone
from certmask_jax.weights import kinds
from certmask_jax.weights.kinds import ORBAX_MARK
from certmask_jax.weights.stored import Entry, WeightsFile, kind_of

_ITEMS = ("default", "state")


def read(path: Path) -> WeightsFile:
    """The arrays of an Orbax folder, with ``/`` between the names of its tree.

    Raises:
      OSError: when the system cannot read a file of it.
      ValueError: when it is no Orbax checkpoint, is damaged, or has no arrays.
    """
    tree = _restored(path, _orbax_folder(path))
    entries: dict[str, Entry] = {}
    others: dict[str, str] = {}
    for key, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        if isinstance(leaf, np.ndarray):
            entries[name] = Entry(tuple(leaf.shape), kind_of(leaf.dtype), _constant(leaf))
        elif leaf is not None:
            others[name] = type(leaf).__name__
    if not entries:
        got = ", ".join(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
        raise no_variables(path, got or "nothing")
    return WeightsFile(path, entries, others, nested=any("/" in name for name in entries))


def no_variables(path: Path, got: str) -> ValueError:
    """What to say of a tree in which no model's variables are."""
    return ValueError(
        f"{path}: expected {{'params': ..., 'batch_stats': ...}}, or arrays under PyTorch's names, "
        f"got {got}"
    )


def check_store(folder: Path) -> None:
    """Reads all values of an Orbax folder's store, one by one, so that the first error is the last.

    Orbax reads them at once, and what it leaves running at an error prints tracebacks of its own.

    Raises:
      OSError: for a part that is not there, or that the system cannot read (it has an ``errno``).
      Exception: TensorStore's, of many kinds, for a part that cannot be read.
    """
    import tensorstore

    if not json_of((folder / ORBAX_MARK).read_text(encoding="utf-8")).get("use_ocdbt"):
        return  # of the older layout: a folder for each array
    if not (folder / "manifest.ocdbt").is_file():
        raise FileNotFoundError("no manifest.ocdbt")
    base = {"driver": "file", "path": f"{in_utf8(local_path(folder))}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    for name in store.list().result():
        if not store.read(name).result().value:  # what TensorStore gives for a file that is gone
            raise FileNotFoundError(f"no file has {name.decode()}")


def _constant(array: Any) -> Any:
    return lambda: array


def _orbax_folder(path: Path) -> Path:
    """Where in ``path`` the arrays are; Orbax's managers put them one folder down."""
    try:
        items = [name for name in sorted(os.listdir(path)) if (path / name / ORBAX_MARK).is_file()]
        if (path / ORBAX_MARK).is_file():
            return path
        if len(items) == 1 and not items[0].isdecimal():
            return path / items[0]
        for name in _ITEMS:
            if items and set(items) <= {name}:
                return path / name
        raise kinds.other_folder(path)
    except OSError as error:
        raise kinds.unreadable(path, error) from error


def _restored(path: Path, folder: Path) -> Any:
    import orbax.checkpoint as ocp

    _check_files(folder)
    folder = in_utf8(local_path(folder))
    try:
        check_store(folder)
        with errors_alone(), ocp.PyTreeCheckpointer() as checkpointer:
            saved = checkpointer.metadata(folder).item_metadata
            if saved is None:
                raise ValueError("its list of arrays cannot be read")
            # As NumPy, whatever devices it was saved on; what is no array stays what it is.
            how = jax.tree.map(_as_numpy, saved.tree)
            return checkpointer.restore(folder, restore_args=how)
    except Exception as error:  # Orbax and TensorStore raise many kinds, some of their own
        raise kinds.damaged(path, error) from error


def _as_numpy(saved: Any) -> Any:
    import orbax.checkpoint as ocp

    is_array = getattr(saved, "shape", None) is not None
    return ocp.RestoreArgs(restore_type=np.ndarray) if is_array else ocp.RestoreArgs()


def _check_files(folder: Path) -> None:
    """``OSError`` for a file that the system does not open, which is no damage."""
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                with open(os.path.join(parent, name), "rb"):
                    pass
            except OSError as error:
                raise kinds.unreadable(Path(parent) / name, error) from error
