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

from certmask_jax._text import json_of
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
      OSError: when one of the two files cannot be read.
      ValueError: when they do not belong together or are damaged; when it was exported for other
        platforms than this process has.
    """
    file = local_path(path)
    content, text = file.read_bytes(), manifest_of(file).read_bytes()
    try:
        manifest = json_of(text)
        shape, digest, platforms = (
            manifest[name] for name in ("image_shape", "sha256", "platforms")
        )
        is_read = manifest["format"] == FORMAT and len(shape) == 3
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest_of(file)}: is damaged, or no manifest of a guard") from error
    if not is_read:
        raise ValueError(
            f"{manifest_of(file)}: expected format {FORMAT}, got {manifest['format']}; read it "
            "with the version of the package that wrote it"
        )
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{file}: is damaged, or not the file that {manifest_of(file).name} is about: its "
            "SHA-256 is another; copy or export it again"
        )
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in platforms:
        raise ValueError(
            f"{file}: expected a guard that was exported for {here}, which runs here, got one for "
            f"{', '.join(platforms)}; export it for {here} too"
        )
    return ExportedGuard(manifest, jax.jit(jax_export.deserialize(bytearray(content)).call))
