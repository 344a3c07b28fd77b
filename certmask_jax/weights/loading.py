"""From a file or folder of weights to a model's variables, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from certmask_jax._settings import Naming, SettingError
from certmask_jax.files.local_paths import local_path
from certmask_jax.models import Model, Params
from certmask_jax.weights import (
    dinov2,
    gate,
    google,
    kept_cards,
    places,
    reading,
    torch_files,
    writing,
)
from certmask_jax.weights.adaptation import (
    can_resize_positions,
    resized_positions,
    with_new_head,
    without_cut_off,
)
from certmask_jax.weights.addresses import Address, address
from certmask_jax.weights.cards import Card
from certmask_jax.weights.families import Shapes, likely_causes
from certmask_jax.weights.gate import listed
from certmask_jax.weights.names import from_torch, torch_name, torch_shape
from certmask_jax.weights.places import Place, Taken
from certmask_jax.weights.stored import Entry, WeightsFile

AnyFile = str | os.PathLike[str] | Address


def read(path: AnyFile, *, entry: str | None = None) -> WeightsFile:
    """Opens a file or an Orbax folder: names and shapes; numbers where the format asks for it.

    To use a file more than once, open it once and give it to ``num_classes``, ``taken`` and
    ``load`` in place of the path.

    Args:
      path: see ``load``.
      entry: which set of weights is wanted, where the file has several.

    Raises:
      FileNotFoundError: when there is no such file.
      OSError: when the system cannot read it.
      ValueError: when it is of another kind, damaged, or holds more than weights.
    """
    where = address(path)
    if isinstance(where, Path):
        file = dataclasses.replace(reading.read(where), card=kept_cards.of_file(where))
    else:
        file = where.read()
    return dataclasses.replace(file, asked=entry)


def num_classes(file: AnyFile | WeightsFile, *, entry: str | None = None) -> int | None:
    """How many outputs the head in a file has; None without a head, or with heads that differ.

    Cheap: no numbers are read of ``.npz``, ``.safetensors`` and PyTorch's files of today.

    Args:
      file: as in ``load``.
      entry: as in ``load``.

    Raises:
      OSError, ValueError: as ``read``.
    """
    opened = _opened(file)
    return places.num_classes(opened, entry or opened.asked)


def taken(file: AnyFile | WeightsFile, model: Model, *, entry: str | None = None) -> Taken:
    """Which of a file's sets of weights ``load`` takes, and which are left.

    Raises:
      OSError, ValueError: as ``load``, for the file and the choice.
    """
    opened = _opened(file)
    return places.choose(opened, _shapes(model), entry or opened.asked)[1]


def load(
    file: AnyFile | WeightsFile,
    model: Model,
    *,
    entry: str | None = None,
    new_head: bool = False,
    resize_positions: bool = False,
    seed: int = 0,
) -> Params:
    """Reads a model's variables, ``float32``.

    What wrappers put in front of all names (``module.``, ``_orig_mod.``, Lightning's ``model.``) is
    taken off where the model's own names come out; the counters ``num_batches_tracked`` and
    ``n_averaged`` are ignored; Google's and DINOv2's own names are translated. Of a net that a
    model is the beginning of (``LocalEfficientNetLite``) the rest is left.

    Args:
      file: ``.npz``, ``.safetensors``, an Orbax folder, ``.pth``, ``.pt``, ``.th``, ``.tar``,
        ``.bin`` or ``.ckpt``; ``pip:NAME`` for the file of an installed package,
        ``hf:OWNER/NAME`` and ``timm:NAME`` for published ones (see ``address``); or what ``read``
        gave.
      model: what the weights are for.
      entry: which of several sets of weights in the file, by the name that it has there
        (``"state_dict_ema"``, ``"state_dict/model"``); what lies elsewhere in the file is left.
        None takes the only one, or one of several that hold the same numbers. Of a checkpoint of
        ``training`` it takes the average, where there is one.
      new_head: start a fresh head, whatever head the file has: for another task.
      resize_positions: resize a ViT's position embeddings to the model's input size, bicubically,
        the class token apart (Dosovitskiy et al., 2021, section 3.2), as the model's
        ``position_resize`` says. As many positions as the model has are taken as they are.
      seed: of the new head.

    Raises:
      FileNotFoundError: when there is no such file.
      OSError: when the system cannot read it.
      ValueError: when the file is of another kind, damaged, of another model (lists the missing,
        unexpected and misshapen entries), holds sets of weights that differ, or numbers that are
        no weights: of a type that is not floating, quantised, sparse, not finite as float32. A
        remedy that is a setting makes it a ``SettingError``.
    """
    opened = _opened(file)
    path = opened.path
    leaves, tree = jax.tree_util.tree_flatten_with_path(model.param_shapes())
    keys = {torch_name(key): key for key, _ in leaves}
    shapes = _shapes(model)
    if resize_positions and "pos_embed" not in shapes:
        raise SettingError(
            lambda say: (
                f"{say('resize_positions', True)}: expected a model with position "
                f"embeddings, got {model.name}, which has none; leave it out"
            )
        )
    place, _ = places.choose(opened, shapes, entry or opened.asked)
    entries = without_cut_off(_entries(path, place), model)
    if new_head:
        entries = with_new_head(entries, model, seed=seed)
    gate.check_kinds(path, {name: entries[name] for name in shapes if name in entries})
    if resize_positions:
        entries = _with_resized_positions(path, entries, shapes, model)
    _check(path, entries, place, shapes, model)
    arrays = gate.read_floats(path, {name: entries[name] for name in shapes})
    loaded = [jax.device_put(from_torch(keys[n], arrays[n]).astype(np.float32)) for n in shapes]
    return jax.tree_util.tree_unflatten(tree, loaded)


def save(path: str | os.PathLike[str], params: Params, *, card: Card | None = None) -> None:
    """Writes variables, whole or not at all; the suffix of ``path`` chooses the format.

    ``.npz`` and ``.safetensors`` get PyTorch's names and layouts (timm reads the latter),
    ``.orbax`` or no suffix gives an Orbax folder with the tree. An existing one is replaced;
    missing parent folders are made.

    Args:
      path: the file or folder.
      params: the variables.
      card: of the weights, see ``Card.of_trained``: kept in the file, and ``card_of`` gives it
        back. None where they want their images as the model's name says.

    Raises:
      ValueError: for another suffix.
      FileExistsError: when ``path`` is a folder but not Orbax's, or a file where a folder is meant.
      OSError: when it cannot be written.
    """
    writing.write(local_path(path, is_written=True), params, card)


def digest(params: Params) -> str:
    """SHA-256 of the parameters themselves (names, shapes, dtypes, numbers), in hexadecimal."""
    hashed = hashlib.sha256()
    for key, leaf in sorted(
        (
            (torch_name(key), np.asarray(leaf))
            for key, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        ),
        key=lambda item: item[0],
    ):
        hashed.update(f"{key} {leaf.shape} {leaf.dtype}\n".encode())
        hashed.update(np.ascontiguousarray(leaf).tobytes())
    return hashed.hexdigest()


def _opened(file: AnyFile | WeightsFile) -> WeightsFile:
    return file if isinstance(file, WeightsFile) else read(file)


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(model.param_shapes())[0]
    return {torch_name(key): torch_shape(key, leaf.shape) for key, leaf in leaves}


def _entries(path: Path, place: Place) -> dict[str, Entry]:
    """A place's entries under timm's names; Google's are read for that."""
    if place.others:
        scope, _, front = place.prefix.rpartition("/")
        among = ", ".join(f"{name} is a {kind}" for name, kind in list(place.others.items())[:8])
        names = ", ".join([*(f"{front}{n}" for n in list(place.entries)[:1]), *place.others][:8])
        raise torch_files.no_tensors(path, f"{scope} (with {names})" if scope else names, among)
    if not place.is_googles:
        return dinov2.translate(place.entries)
    gate.check_kinds(path, place.entries)
    arrays = google.translate({name: entry.read() for name, entry in place.entries.items()})
    return {name: Entry.of(array) for name, array in arrays.items()}


def _with_resized_positions(
    path: Path, entries: Mapping[str, Entry], shapes: Shapes, model: Model
) -> dict[str, Entry]:
    table, wanted = entries.get("pos_embed"), shapes["pos_embed"]
    if table is None or table.shape == wanted:
        return dict(entries)
    grid = _grid(shapes, model)
    prefix = wanted[1] - grid[0] * grid[1]
    how = getattr(model.module, "position_resize", "antialiased")
    read_in = gate.read_floats(path, {"pos_embed": table})["pos_embed"]
    try:
        resized = resized_positions(read_in, grid=grid, prefix_tokens=prefix, how=how)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {**entries, "pos_embed": Entry.of(resized)}


def _grid(shapes: Shapes, model: Model) -> tuple[int, int]:
    """Rows and columns of a ViT's tokens."""
    patch = shapes["patch_embed.proj.weight"][2:]
    height, width = model.data_config.input_size
    return height // patch[0], width // patch[1]


def _check(
    path: Path, entries: Mapping[str, Entry], place: Place, shapes: Shapes, model: Model
) -> None:
    """Raises unless ``entries`` are the model's, by name and shape, and nothing is beside them."""
    missing = sorted(set(shapes) - set(entries))
    unexpected = sorted({*set(entries) - set(shapes), *place.unexpected})
    misshapen = [
        f"{name} {entries[name].shape} instead of {shape}"
        for name, shape in sorted(shapes.items())
        if name in entries and entries[name].shape != shape
    ]
    if not (missing or unexpected or misshapen):
        return
    there = {name: entry.shape for name, entry in entries.items()}
    resizable = _resizable(there, shapes, model)
    beside = place.unexpected and not set(entries) - set(shapes) and not misshapen

    def text(say: Naming) -> str:
        if beside:
            cause = (
                f"The weights are those under {place.entry!r}: {say('entry', place.entry)} takes "
                "them and leaves the rest"
            )
        else:
            cause = likely_causes(there, shapes, resizable, say)
        return (
            f"{path}: expected the weights of {model.name} with {model.num_classes} classes, got "
            f"others. {listed('missing', missing)}{listed('unexpected', unexpected)}"
            f"{listed('misshapen', misshapen)}{cause}"
        )

    raise SettingError(text)


def _resizable(there: Shapes, shapes: Shapes, model: Model) -> bool:
    old, new = there.get("pos_embed", ()), shapes.get("pos_embed", ())
    if len(old) != 3 or len(new) != 3 or "patch_embed.proj.weight" not in shapes:
        return False
    prefix = new[1] - math.prod(_grid(shapes, model))
    return old[2] == new[2] and can_resize_positions(old[1], prefix)
