"""Writing weights, whole or not at all: ``.npz``, ``.safetensors`` and Orbax folders."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from certmask_jax._text import encodable
from certmask_jax.files import file_systems, whole_files
from certmask_jax.files.local_paths import in_utf8
from certmask_jax.weights import kept_cards
from certmask_jax.weights.cards import Card
from certmask_jax.weights.kinds import CARD, ORBAX_MARK
from certmask_jax.weights.names import to_arrays


def check_writable(path: Path) -> None:
    """Finds out what ``write`` would refuse, before the work whose result it is to write.

    Raises:
      ValueError: for a suffix.
      FileExistsError: for a folder where a file is meant, or the other way round.
      OSError: when nothing can be written there.
    """
    if path.suffix not in ("", ".npz", ".safetensors", ".orbax"):
        raise ValueError(
            f"{path}: expected a name that ends in .npz or .safetensors, or in .orbax or without a "
            "dot for an Orbax folder"
        )
    is_orbax = path.suffix in ("", ".orbax")
    if path.exists() and path.is_dir() != is_orbax:
        kind = "an Orbax folder" if is_orbax else "a file"
        raise FileExistsError(f"{path}: expected {kind} or nothing to replace; give another name")
    if path.is_dir() and not (path / ORBAX_MARK).is_file():
        raise FileExistsError(
            f"{path}: expected an Orbax folder or nothing to replace, found another folder, which "
            "is left as it is; give another name"
        )
    try:
        whole_files.try_folder(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def write(path: Path, variables: Any, card: Card | None = None) -> None:
    """Writes Flax's variables; the suffix chooses the format, as ``check_writable`` says.

    Files get PyTorch's names and layouts, Orbax folders the tree. Missing parents are made. A card
    is kept with them (``kept_cards``).

    Raises:
      ValueError, FileExistsError, OSError: as ``check_writable``, or when the disk fills up;
        nothing is left behind then.
    """
    check_writable(path)
    unfinished = path.with_name(encodable(f"{path.name}.unfinished"))  # Orbax takes only UTF-8
    try:
        if path.suffix in ("", ".orbax"):
            _write_orbax(path, unfinished, variables, card)
        else:
            _write_file(path, unfinished, variables, card)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OSError:
    why = error.strerror or str(error)
    return OSError(f"{path}: expected a place that can be written ({why}); give another")


def _write_file(path: Path, unfinished: Path, variables: Any, card: Card | None) -> None:
    arrays = to_arrays(variables)
    kept = {} if card is None else {CARD: kept_cards.as_text(card)}
    try:
        with open(unfinished, "w+b") as file:
            if path.suffix == ".npz":
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
                for name, text in kept.items():
                    with zipfile.ZipFile(file, "a") as members:
                        members.writestr(name, text)
            else:
                from safetensors.numpy import save

                file.write(save(arrays, metadata={"format": "pt", **kept}))
            file.flush()
            file_systems.sync_handle(
                file.fileno()
            )  # else a power cut may leave the new name without the bytes
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_orbax(path: Path, unfinished: Path, variables: Any, card: Card | None) -> None:
    import orbax.checkpoint as ocp

    replaced = path.with_name(f"{path.name}.replaced")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        with file_systems.orbax_in(path.parent), ocp.StandardCheckpointer() as checkpointer:
            # NumPy leaves restore on any devices.
            checkpointer.save(in_utf8(unfinished.absolute()), jax.tree.map(np.asarray, variables))
        if card is not None:
            whole_files.write_text(unfinished / CARD, kept_cards.as_text(card))
        if path.exists():
            path.rename(replaced)
        unfinished.rename(path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
