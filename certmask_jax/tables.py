"""Prediction tables on disk: what a folder holds, and reading it row by row.

``table.json`` (written first: the format, the run's fingerprint, its provenance),
``masked_images.npy``, and the blocks: zarr arrays ``predictions``, ``margins``, ``confidences``
(``[T, V]``) and ``labels``, and a file of ``ids`` for each block. ``table_writer`` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax import fingerprint, whole_files
from certmask_jax.blocks import Blocks
from certmask_jax.compiled import Outputs
from certmask_jax.masked_images import MaskedImages
from certmask_jax.prediction_table import PredictionTable

FORMAT = "certmask_jax table 2"
ABOUT = "table.json"
MASKS = "masked_images.npy"


class SavedTable(NamedTuple):
    """A complete table as it was read back."""

    table: PredictionTable  # on disk; rows are read when they are asked for
    labels: NDArray[np.int32]  # [T]
    ids: tuple[str, ...]  # [T]
    about: dict[str, Any]  # table.json


def recorded(folder: Path) -> dict[str, Any] | None:
    """What ``table.json`` says, or None where no table was begun.

    Raises:
      FileExistsError: when the folder holds something else.
      ValueError: when ``table.json`` is damaged or of another format.
    """
    file = folder / ABOUT
    try:
        about = dict(json.loads(file.read_text(encoding="utf-8")))
        if about["format"] == FORMAT:
            layout(folder, about)
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and (not folder.is_dir() or any(map(_is_other, folder.iterdir()))):
            raise FileExistsError(
                f"{folder}: expected a new folder, or the prediction table of this run to go on "
                "with, but it holds other files; choose another --out or remove it"
            ) from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected the facts of a prediction table, but it is damaged ({error!r}); "
            "remove the folder or choose another --out, and run again"
        ) from error
    if about["format"] != FORMAT:
        raise ValueError(
            f"{file}: expected a table of format {FORMAT!r}, got {about['format']!r}, which "
            "another version of certmask_jax wrote; use that version, or choose another --out"
        )
    return about


def load(folder: Path) -> SavedTable:
    """Opens a complete table. Labels and ids are read; predictions when they are asked for.

    Reading predictions raises ``ValueError`` where a chunk is missing or damaged, naming its file.

    Raises:
      FileNotFoundError: when there is no table, or it is not complete: says how many images are.
      ValueError: when a file is damaged or the format is another; names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with a prediction table, found none")
    about = recorded(folder) if (folder / ABOUT).is_file() else None
    if about is None:
        raise FileNotFoundError(
            f"{folder}: expected a prediction table, but table.json is missing (it is written "
            "first): another kind of folder, or a run that did not begin"
        )
    facts = about["fingerprint"]
    blocks = layout(folder, about)
    command = about.get("provenance", {}).get("command")
    again = "give the same command again" + (f" ({command})" if command else "")
    missing = {n: files[0] for n in range(len(blocks)) if (files := blocks.missing(n))}
    if missing:
        done = facts["num_images"] - sum(map(blocks.length, missing))
        first = next(iter(missing.values())).relative_to(folder.absolute())
        raise FileNotFoundError(
            f"{folder}: expected a complete prediction table, got one with {done} of "
            f"{facts['num_images']} images done ({first} is the first file missing); {again} to "
            "go on"
        )
    try:
        masks = read_masks(folder, about)
        labels = np.asarray(blocks.column("labels"))
        ids = tuple(name for number in range(len(blocks)) for name in blocks.ids(number))
    except ValueError as error:
        raise ValueError(f"{error}; {again} to mend it") from error
    columns: dict[str, Any] = {
        name: blocks.column(name, remedy=f"; {again} to mend it") for name in Outputs._fields
    }
    table = PredictionTable(**columns, masked_images=masks, num_classes=facts["num_classes"])
    return SavedTable(table, labels, ids, about)


def read_masks(folder: Path, about: Mapping[str, Any]) -> MaskedImages:
    """The masked images of a table; ``ValueError`` when their file is missing or damaged."""
    facts = about["fingerprint"]
    boxes = _read_boxes(folder / MASKS, facts["masked_images_sha256"])
    return MaskedImages(boxes, tuple(facts["image_size"]))


def images_done(folder: Path) -> tuple[int, int]:
    """How many images of a table that was begun are on the disk, and how many it is to have."""
    about = recorded(folder)
    if about is None:
        raise FileNotFoundError(f"{folder}: expected a prediction table, found none")
    blocks = layout(folder, about)
    done = [number for number in range(len(blocks)) if not blocks.missing(number)]
    return sum(map(blocks.length, done)), about["fingerprint"]["num_images"]


def is_complete(folder: Path) -> bool:
    """Whether all images of a table that was begun are on the disk."""
    done, count = images_done(folder)
    return done == count


def layout(folder: Path, about: Mapping[str, Any]) -> Blocks:
    """The blocks of the table that ``about`` (``table.json``) is about."""
    facts = about["fingerprint"]
    return Blocks(folder, (facts["num_images"], facts["masked_images"]), facts["images_per_block"])


def _is_other(file: Path) -> bool:
    return not file.name.endswith(whole_files.UNFINISHED)


def _read_boxes(file: Path, digest: str) -> NDArray[np.int32]:
    try:
        boxes = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{file}: is missing") from error
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: is damaged ({error})") from error
    if fingerprint.of_arrays(boxes) != digest:
        raise ValueError(f"{file}: is damaged (its checksum is another)")
    return boxes
