"""Writes a guard as one file for machines without this package: the program of ``jax.export``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from certmask_jax._own_settings import reproducible
from certmask_jax._settings import FolderTakenError
from certmask_jax.defenses.defense import ALERT, Defense
from certmask_jax.defenses.masking_only import check_masking
from certmask_jax.files import fingerprint, whole_files
from certmask_jax.files.local_paths import local_path
from certmask_jax.inference.dropped_tokens import seen_under
from certmask_jax.inference.exported_guard import FORMAT, manifest_of
from certmask_jax.inference.guard_graph import Guard, guard_program
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn, num_classes
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.inference.views import Views, names_of, with_views
from certmask_jax.tables.outputs import NO_LABEL

PLATFORMS = ("cpu", "cuda", "tpu")
_SUFFIX = ".stablehlo"
_OF_FILE = ("platforms", "calling_convention", "bytes", "sha256")
"""Facts of a manifest that are known once the program is lowered."""
_HASHED = "weights_sha256"


def export_guard(
    path: str | os.PathLike[str],
    apply_fn: ApplyFn,
    params: Any,
    defense: Defense,
    *,
    channels: int = 3,
    preprocessing: Preprocessing | None = None,
    dropping: TokenDropping | None = None,
    views: Views | None = None,
    class_names: Sequence[str] | None = None,
    certified: bool = False,
    masks_at_once: int = 16,
    platforms: Sequence[str] = PLATFORMS,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a guarded classifier as one file, with its weights, and its manifest beside it.

    The program takes any number of images at once. Lowering needs none of the devices.

    Args:
      path: of the file, which ends in ``.stablehlo``; the manifest ends in ``.json``.
      apply_fn, params, defense, channels, preprocessing, dropping, views: as of ``defended``.
      class_names: of the K outputs, for the manifest.
      certified, masks_at_once: as of ``guard_program``.
      platforms: what it is lowered for, of ``cpu``, ``cuda``, ``tpu``.
      about: further JSON-able facts for the manifest, under none of its own names. It may have
        ``weights_sha256``, which is not computed then.
      overwrite: whether files that are there are replaced.

    Returns:
      The manifest.

    Raises:
      ValueError: for another suffix or platform, class names that are not K, a model that cannot be
        exported, a defense whose rule cannot, or one on evidence, or for ``about`` with a name that
        the manifest has itself: says why.
      FileExistsError: when a file is there, or a folder.
      OSError: when it cannot be written.
    """
    file = check_path(path, overwrite=overwrite)
    check_platforms(platforms)
    check_masking(defense)
    kind = kind_of(apply_fn)
    if not kind.is_traced:
        raise ValueError(
            "apply_fn: expected a function of JAX, which becomes part of the program, got a NumPy "
            "function; serve it by its own framework, guarded by cm.defended"
        )
    if not kind.hides_pixels:
        raise ValueError(
            "apply_fn: expected a model that sees masked images, got one in two parts; serve it by "
            "cm.defended"
        )
    chosen = Preprocessing() if preprocessing is None else preprocessing
    chosen.check_channels(channels)
    model = with_views(apply_fn, views)
    if dropping is not None:
        model = seen_under(dropping, defense.masked_images, chosen)
        with_views(model, views)  # its error, where there are any
    shape = (*defense.mask_set.image_size, channels)
    held = computed_with(params, chosen)  # once, and not in every pass of the program
    classes = num_classes(model, held, chosen.model_shape(shape), chosen.model_dtype)
    if isinstance(class_names, str):
        raise ValueError(f"class_names: expected a list of names, got the text {class_names!r}")
    if class_names is not None and len(class_names) != classes:
        raise ValueError(
            f"class_names: expected {classes}, one for each output of the model, got "
            f"{len(class_names)}"
        )
    guard = guard_program(
        model,
        held,
        defense,
        num_classes=classes,
        preprocessing=chosen,
        masks_at_once=masks_at_once,
        certified=certified,
    )
    answers = {"labels": "int32", "alerts": "bool"} | ({"certified": "int32"} if certified else {})
    own: dict[str, Any] = {
        "format": FORMAT,
        "defense": str(defense),
        "guarantee": defense.guarantee.value,
        "threat": str(defense.threat),
        "masked_images": len(defense.masked_images),
        "num_classes": classes,
        "class_names": None if class_names is None else list(class_names),
        "batch": "any",
        "image_shape": list(shape),
        "images": "uint8, levels 0 to 255, as they are before any normalisation",
        "answers": answers,
        "alert": ALERT,
        "no_label": NO_LABEL,
        "preprocessing": chosen.facts(),
        "precision": chosen.precision,
        "views": list(names_of(model)),
        **({} if dropping is None else {"hidden_tokens": "dropped"}),
        "masks_at_once": int(masks_at_once),
    }
    more, here = dict(about or {}), fingerprint.environment()
    _check_about(more, {*own, "hidden_tokens", *_OF_FILE, *here})
    content, convention = _lowered(guard, shape, platforms)
    of_file = (list(platforms), convention, len(content), hashlib.sha256(content).hexdigest())
    manifest: dict[str, Any] = {
        **own,
        **({} if _HASHED in more else {_HASHED: fingerprint.of_arrays(params)}),
        **more,
        **dict(zip(_OF_FILE, of_file, strict=True)),
        **here,
    }
    text = json.dumps(fingerprint.plain(manifest), indent=1) + "\n"
    whole_files.write(file, content)
    whole_files.write_text(manifest_of(file), text)
    return manifest


def check_path(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Where a guard may be written; raises as ``export_guard``, before any work."""
    file = local_path(path, is_written=True)
    if file.suffix != _SUFFIX:
        raise ValueError(f"{file}: expected a file that ends in {_SUFFIX}")
    for there in (file, manifest_of(file)):
        if there.is_dir() or (there.exists() and not overwrite):
            raise _taken(there)
    try:
        whole_files.try_folder(file)
    except OSError as error:
        raise OSError(f"{file}: expected to be able to write it, but {error.strerror}") from error
    return file


def _taken(there: Path) -> FileExistsError:
    if there.is_dir():
        return FileExistsError(f"{there}: expected a file to write, got a folder")
    return FolderTakenError(
        lambda say: f"{there}: exists already; {say('overwrite', True)} replaces it"
    )


def check_platforms(platforms: Sequence[str]) -> None:
    """``ValueError`` for what is none of ``PLATFORMS``, for none, or for one twice."""
    if isinstance(platforms, str):
        raise ValueError(
            f"platforms: expected a list of names, got the text {platforms!r}; give [{platforms!r}]"
        )
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        got = ", ".join(platforms) or "none"
        raise ValueError(f"platforms: expected some of {', '.join(PLATFORMS)}, got {got}")


def _check_about(about: Mapping[str, Any], own: Collection[str]) -> None:
    """``ValueError`` for names of the manifest's own, and for what JSON cannot hold."""
    taken = [name for name in about if name in own]
    if taken:
        raise ValueError(
            "about: expected names that the manifest does not have itself, got "
            f"{', '.join(taken)}; choose others"
        )
    try:
        json.dumps(about)
    except (TypeError, ValueError) as error:
        raise ValueError(f"about: expected facts that JSON can hold, but {error}") from error


def _lowered(
    guard: Guard, image_shape: tuple[int, ...], platforms: Sequence[str]
) -> tuple[bytes, int]:
    """The program as bytes, and the version of how JAX calls it."""
    (count,) = jax_export.symbolic_shape("images")
    images = jax.ShapeDtypeStruct((count, *image_shape), np.uint8)
    try:
        with reproducible():
            exported = jax_export.export(jax.jit(guard), platforms=tuple(platforms))(images)
            return bytes(exported.serialize()), exported.calling_convention_version
    except Exception as error:  # the model's own, of any kind
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            "expected a model that jax.export takes (operations of JAX alone, on "
            f"{', '.join(platforms)}), but it raised {type(error).__name__}: {why}"
        ) from error
