"""A guard that was exported, read with checks; ``jax.export.deserialize`` alone reads it too.

The file (``guard.stablehlo``) holds the weights and runs wherever JAX does; beside it a manifest
(``guard.json``) says what it is. ``exporting.export_guard`` writes both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from numpy.typing import ArrayLike, NDArray

from certmask_jax._text import json_of, words_of
from certmask_jax.files.local_paths import local_path
from certmask_jax.inference.preprocessing import check_images

FORMAT = 1
"""Of the manifest."""


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedGuard:
    """A guard that was read; call it on ``uint8[B, h, w, c]``.

    Attributes:
      manifest: what it is, as ``export_guard`` recorded it.
    """

    manifest: Mapping[str, Any]
    _call: Callable[[Any], Any]

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.manifest["image_shape"]))
        return f"ExportedGuard({self.manifest.get('defense', '?')}; images uint8 [B, {shape}])"

    def __call__(self, images: ArrayLike) -> tuple[NDArray[Any], ...]:
        """Labels ``int32[B]`` (-2 for an alert) and alerts ``bool[B]``, any B >= 1.

        A third ``int32[B]``, the labels that are certified (else -1), where it was exported so.

        Raises:
          ValueError: for images of another shape or dtype.
        """
        height, width, channels = self.manifest["image_shape"]
        check_images(np.asarray(images), (height, width), channels)
        return tuple(map(np.asarray, self._call(np.asarray(images))))


def manifest_of(file: Path) -> Path:
    """The manifest beside a file."""
    return file.with_suffix(".json")


def read_guard(path: str | os.PathLike[str]) -> ExportedGuard:
    """Reads a guard that ``export_guard`` wrote, and checks that it is whole and runs here.

    Raises:
      OSError: when one of the two files is not there, or cannot be read.
      ValueError: when they do not belong together or are damaged; when it was exported for other
        platforms than this process has.
    """
    file = local_path(path)
    beside = manifest_of(file)
    if beside == file:
        raise ValueError(f"{file}: expected a guard, which lies beside it, got its manifest")
    content = _content(file, "a guard that export_guard wrote")
    manifest = _manifest(beside, _content(beside, f"the manifest of {file.name} beside it"))
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise ValueError(
            f"{file}: is damaged, or not the file that {beside.name} is about: its "
            "SHA-256 is another; copy or export it again"
        )
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in manifest["platforms"]:
        raise ValueError(
            f"{file}: expected a guard that was exported for {here}, which runs here, got one for "
            f"{', '.join(manifest['platforms'])}; export it for {here} too"
        )
    try:
        program = jax_export.deserialize(bytearray(content))
        (images,) = program.in_avals
    except Exception as error:  # of any kind: nothing in JAX checks what it reads
        raise ValueError(
            f"{file}: expected a program that jax.export reads (here jax {jax.__version__}), but "
            f"it raised {type(error).__name__} ({words_of(error)}); export it again"
        ) from error
    if list(images.shape[1:]) != manifest["image_shape"]:
        takes = ", ".join(map(str, images.shape[1:]))
        raise ValueError(
            f"{beside}: expected image_shape [{takes}], which {file.name} takes, got "
            f"{manifest['image_shape']}; copy or export both again"
        )
    return ExportedGuard(manifest, jax.jit(program.call))


def _content(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file}: expected {what}, got no such file; copy the two files together, or export "
            "the guard again"
        ) from error


def _manifest(file: Path, text: bytes) -> dict[str, Any]:
    """What a manifest says; ``ValueError`` unless what is needed of it can be used."""
    try:
        manifest = json_of(text)
    except ValueError as error:
        raise ValueError(
            f"{file}: is damaged, or no manifest of a guard ({words_of(error)})"
        ) from error
    facts = manifest if isinstance(manifest, dict) else {}
    lacking = [name for name in _NEEDED if name not in facts]
    if lacking:
        raise ValueError(
            f"{file}: is damaged, or no manifest of a guard: it lacks {', '.join(lacking)}"
        )
    if facts["format"] != FORMAT:
        raise ValueError(
            f"{file}: expected format {FORMAT}, got {facts['format']!r}; read it with the version "
            "of the package that wrote it"
        )
    for name, (is_one, expected) in _NEEDED.items():
        if not is_one(facts[name]):
            raise ValueError(
                f"{file}: is damaged, or no manifest of a guard: expected {name} to be {expected}, "
                f"got {facts[name]!r}"
            )
    return facts


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(side) is int for side in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_NEEDED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: type(value) is int, "a number"),
    "image_shape": (_is_shape, "[height, width, channels]"),
    "sha256": (lambda value: isinstance(value, str), "text"),
    "platforms": (_is_names, "a list of names"),
}
"""What of a manifest is needed to call its guard: what it has to be, and that in words."""
