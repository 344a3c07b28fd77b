"""Prediction tables on disk or in a bucket: what a folder holds, and reading it row by row.

``table.json`` (written first: the format, the run's fingerprint, its provenance),
``masked_images.npy``, ``images.json`` (ids and labels of a data set of files, as the run began),
and the blocks: zarr arrays ``predictions``, ``margins``, ``confidences``
(``[T, V]``) and ``labels``, and a file of ``ids`` for each block. ``table_writer`` writes them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax._settings import FolderTakenError, SettingError
from certmask_jax._text import json_of, words_of
from certmask_jax.files import fingerprint, storage, whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.blocks import Blocks
from certmask_jax.tables.outputs import SCHEMA, Outputs
from certmask_jax.tables.prediction_table import PredictionTable
from certmask_jax.tables.run_images import LEFT_OUT, Began

FORMAT = "certmask_jax table 2"
ABOUT = "table.json"
MASKS = "masked_images.npy"
IMAGES = "images.json"


class SavedTable(NamedTuple):
    """A complete table as it was read back."""

    table: PredictionTable  # on disk; rows are read when they are asked for
    labels: NDArray[np.int32]  # [T]
    ids: tuple[str, ...]  # [T]
    about: dict[str, Any]  # table.json
    left_out: Mapping[int, str] = MappingProxyType({})  # row -> why it does not count

    def __repr__(self) -> str:
        left = f", {len(self.left_out)} left out" if self.left_out else ""
        return f"SavedTable({self.table!r}{left})"

    @property
    def counted(self) -> NDArray[np.bool_]:
        """``bool[T]``: the rows that count; the others could not be read, or are gone."""
        counted = np.ones(len(self.labels), bool)
        counted[list(self.left_out)] = False
        return counted


def recorded(folder: AnyPath) -> dict[str, Any] | None:
    """What ``table.json`` says, or None where no table was begun.

    Raises:
      FileExistsError: when the folder holds something else.
      ValueError: when ``table.json`` is damaged or of another format.
      OSError: when a bucket does not answer, or refuses.
    """
    file = folder / ABOUT
    try:
        about = dict(json_of(file.read_bytes().decode()))
        if about["format"] == FORMAT:
            layout(folder, about)
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and (not folder.is_dir() or any(map(_is_other, folder.iterdir()))):
            raise FolderTakenError(
                lambda say: (
                    f"{folder}: expected a new folder, or the prediction table of this run to go "
                    f"on with, but it holds other files; choose another {say('folder', None)}"
                )
            ) from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        why = words_of(error)
        raise SettingError(
            lambda say: (
                f"{file}: expected the facts of a prediction table, but it is damaged ({why}); "
                f"choose another {say('folder', None)}, and run again"
            )
        ) from error
    if about["format"] != FORMAT:
        raise SettingError(
            lambda say: (
                f"{file}: expected a table of format {FORMAT!r}, got {about['format']!r}, which "
                "another version of certmask_jax wrote; use that version, or choose another "
                f"{say('folder', None)}"
            )
        )
    return about


def load(folder: str | AnyPath) -> SavedTable:
    """Opens a complete table. Labels and ids are read; predictions when they are asked for.

    Reading predictions raises ``ValueError`` where a chunk is missing or damaged, naming its file.

    Args:
      folder: local, or in a bucket (``any_path``).

    Raises:
      FileNotFoundError: when there is no table, or it is not complete: says how many images are.
      ValueError: when a file is damaged or the format is another; names the file.
      OSError: when a bucket does not answer, or refuses.
    """
    folder = storage.any_path(folder)
    about = recorded(folder) if (folder / ABOUT).is_file() else None
    if about is None:
        other = "it is another kind of folder, or of a run that did not begin"
        raise FileNotFoundError(
            f"{folder}: expected a folder with a prediction table, which begins with {ABOUT}, got "
            f"{storage.lacking(folder, other)}"
        )
    facts = about["fingerprint"]
    blocks = layout(folder, about)
    command = about.get("provenance", {}).get("command")
    again = "give the same command again" + (f" ({command})" if command else "")
    missing = blocks.unfinished()
    if missing:
        done = facts["num_images"] - sum(map(blocks.length, missing))
        first = str(next(iter(missing.values()))[0])[len(str(folder.absolute())) + 1 :]
        raise FileNotFoundError(
            f"{folder}: expected a complete prediction table, got one with {done} of "
            f"{facts['num_images']} images done ({first} is the first file missing); {again} to "
            "go on"
        )
    try:
        masks = read_masks(folder, about)
        labels = np.array(blocks.column("labels"))
        rows = blocks.rows()
    except ValueError as error:
        raise ValueError(f"{error}; {again} to mend it") from error
    columns: dict[str, Any] = {
        name: blocks.column(name, remedy=f"; {again} to mend it") for name in SCHEMA
    }
    table = PredictionTable.of(Outputs(**columns), masks, facts["num_classes"])
    labels[list(rows.left_out)] = LEFT_OUT
    return SavedTable(table, labels, rows.ids, about, rows.left_out)


def read_masks(folder: AnyPath, about: Mapping[str, Any]) -> MaskedImages:
    """The masked images of a table; ``ValueError`` when their file is missing or damaged."""
    facts = about["fingerprint"]
    boxes = _read_boxes(folder / MASKS, facts["masked_images_sha256"])
    return MaskedImages(boxes, tuple(facts["image_size"]))


def read_images(folder: AnyPath) -> Began | None:
    """The images of a run as it began, where the table of a data set of files keeps them.

    Raises:
      ValueError: when their file is damaged.
    """
    try:
        facts = json_of((folder / IMAGES).read_bytes())
        return Began(tuple(map(str, facts["ids"])), tuple(map(int, facts["labels"])))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / IMAGES}: is damaged ({words_of(error)})") from error


def unlike_metadata(folder: AnyPath, about: Mapping[str, Any]) -> list[str]:
    """What is wrong with the zarr.json of its arrays, a line for each; nothing here reads them."""
    return layout(folder, about).unlike_metadata()


def images_done(folder: str | AnyPath) -> tuple[int, int]:
    """How many images of a table that was begun are on the disk, and how many it is to have."""
    folder = storage.any_path(folder)
    about = recorded(folder)
    if about is None:
        got = storage.lacking(folder, "begin its run first")
        raise FileNotFoundError(f"{folder}: expected a prediction table, got {got}")
    blocks, count = layout(folder, about), int(about["fingerprint"]["num_images"])
    return count - sum(map(blocks.length, blocks.unfinished())), count


def is_complete(folder: str | AnyPath) -> bool:
    """Whether all images of a table that was begun are on the disk."""
    done, count = images_done(folder)
    return done == count


def layout(folder: AnyPath, about: Mapping[str, Any]) -> Blocks:
    """The blocks of the table that ``about`` (``table.json``) is about."""
    facts = about["fingerprint"]
    return Blocks(folder, (facts["num_images"], facts["masked_images"]), facts["images_per_block"])


def _is_other(file: AnyPath) -> bool:
    return not file.name.endswith(whole_files.UNFINISHED)


def _read_boxes(file: AnyPath, digest: str) -> NDArray[np.int32]:
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{file}: is missing") from error
    try:
        boxes = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: is damaged ({error})") from error
    if fingerprint.of_arrays(boxes) != digest:
        raise ValueError(f"{file}: is damaged (its checksum is another)")
    return boxes
