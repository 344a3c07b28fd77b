"""A guard in one file, for machines without this package: the program of ``jax.export``.

The file (``guard.stablehlo``) holds the weights and runs wherever JAX does; beside it a manifest
(``guard.json``) says what it is. ``write`` makes both, ``read`` checks them. Without this package
``jax.export.deserialize`` reads the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax.files import fingerprint, whole_files
from certmask_jax.files.local_paths import local_path

PLATFORMS = ("cpu", "cuda", "tpu")
_SUFFIX = ".stablehlo"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedGuard:
    """A guard that was read; call it on ``uint8[B, h, w, c]``.

    Attributes:
      manifest: what it is, as ``write`` recorded it.
    """

    manifest: Mapping[str, Any]
    _call: Callable[[Any], Any]

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.manifest["image_shape"]))
        return f"ExportedGuard({self.manifest.get('defense', '?')}; images uint8 [B, {shape}])"

    def __call__(self, images: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Labels ``int32[B]`` (-2 for an alert) and alerts ``bool[B]``, any B >= 1.

        Raises:
          ValueError: for images of another shape or dtype.
        """
        array = np.asarray(images)
        shape = list(self.manifest["image_shape"])
        if array.dtype != np.uint8 or list(array.shape[1:]) != shape or not len(array):
            raise ValueError(
                f"images: expected uint8 [B, {', '.join(map(str, shape))}] with B >= 1, as the "
                f"guard was exported for, got {array.dtype} {list(array.shape)}"
            )
        labels, alerts = self._call(array)
        return np.asarray(labels), np.asarray(alerts)


def write(
    path: str | os.PathLike[str],
    guard: Callable[[Array], tuple[Array, Array]],
    image_shape: tuple[int, int, int],
    *,
    about: Mapping[str, Any] | None = None,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Exports a guard, for any number of images at once, and writes it with its manifest.

    Args:
      path: of the file, which ends in ``.stablehlo``; the manifest ends in ``.json``.
      guard: what ``guard_program`` gives.
      image_shape: ``(h, w, c)`` of the images.
      about: JSON-able facts for the manifest (defense, threat, preprocessing, class names).
      platforms: what it is lowered for, of ``cpu``, ``cuda``, ``tpu``; no device is needed for it.
      overwrite: whether files that are there are replaced.

    Returns:
      The manifest.

    Raises:
      ValueError: for another suffix or platform, or a model that cannot be exported: says why.
      FileExistsError: when a file is there.
      OSError: when it cannot be written.
    """
    file = check_path(path, overwrite=overwrite)
    check_platforms(platforms)
    (count,) = jax.export.symbolic_shape("images")
    images = jax.ShapeDtypeStruct((count, *image_shape), np.uint8)
    try:
        exported = jax.export.export(jax.jit(guard), platforms=tuple(platforms))(images)
        content = bytes(exported.serialize())
    except Exception as error:  # the model's own, of any kind
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            "expected a model that jax.export takes (JAX operations alone, for any number of "
            f"images, on {', '.join(platforms)}), but it raised {type(error).__name__}: {why}"
        ) from error
    manifest = {
        "format": _FORMAT,
        **(about or {}),
        "image_shape": list(image_shape),
        "images": "uint8, levels 0 to 255, as they are before any normalisation",
        "answers": "labels int32 (-2: an alert, -1: logits were not finite), alerts bool",
        "platforms": list(platforms),
        "calling_convention": exported.calling_convention_version,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **fingerprint.environment(),
    }
    text = json.dumps(fingerprint.plain(manifest), indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write(file, content)
    whole_files.write(manifest_of(file), text.encode())
    return manifest


def check_path(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Where a guard may be written; raises as ``write``, before any work."""
    file = local_path(path)
    if file.suffix != _SUFFIX:
        raise ValueError(f"{file}: expected a file that ends in {_SUFFIX}")
    for there in (file, manifest_of(file)):
        if there.is_dir() or (there.exists() and not overwrite):
            what = "a folder" if there.is_dir() else "a file"
            raise FileExistsError(f"{there}: expected that nothing is there, but there is {what}")
    return file


def check_platforms(platforms: Sequence[str]) -> None:
    """``ValueError`` for what is none of ``PLATFORMS``, for none, or for one twice."""
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        got = ", ".join(platforms) or "none"
        raise ValueError(f"platforms: expected some of {', '.join(PLATFORMS)}, got {got}")


def manifest_of(file: Path) -> Path:
    """The manifest beside a file."""
    return file.with_suffix(".json")


def read(path: str | os.PathLike[str]) -> ExportedGuard:
    """Reads a guard that ``write`` wrote, and checks that it is whole and runs here.

    Raises:
      OSError: when one of the two files cannot be read.
      ValueError: when they do not belong together or are damaged; when it was exported for other
        platforms than this process has.
    """
    file = local_path(path)
    content, text = file.read_bytes(), manifest_of(file).read_bytes()
    try:
        manifest = json.loads(text)
        shape, digest, platforms = (
            manifest[name] for name in ("image_shape", "sha256", "platforms")
        )
        is_read = manifest["format"] == _FORMAT and len(shape) == 3
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest_of(file)}: is damaged, or no manifest of a guard") from error
    if not is_read:
        raise ValueError(
            f"{manifest_of(file)}: expected format {_FORMAT}, got {manifest['format']}; read it "
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
    return ExportedGuard(manifest, jax.jit(jax.export.deserialize(bytearray(content)).call))
