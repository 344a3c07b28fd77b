"""Prediction tables on disk: written image by image as they are computed, read back memory-mapped.

A folder holds ``predictions.npy``, ``margins.npy`` and ``confidences.npy`` (``[T, V]``),
``labels.npy``, ``ids.txt``, ``masked_images.npy`` and, written last, ``table.json``, which marks
the table as complete.
"""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from certmask_jax.forward import Outputs
from certmask_jax.masked_images import MaskedImages
from certmask_jax.prediction_table import PredictionTable

FORMAT = "certmask_jax table 1"
_COLUMNS = {"predictions": np.int16, "margins": np.float16, "confidences": np.float16}
_SPARE_BYTES = 1 << 20  # for the reports beside the table


class SavedTable(NamedTuple):
    """A complete table as it was read back."""

    table: PredictionTable  # memory-mapped
    labels: NDArray[np.int32]  # [T]
    ids: tuple[str, ...]  # [T]
    about: dict[str, Any]  # what the writer was told about the run


class TableWriter:
    """Writes a table block by block; use as a context manager.

    Args:
      folder: created if need be; must not hold a table yet.
      num_images: T.
      masked_images: the V columns.
      num_classes: K.
      about: JSON-able facts to keep with the table.

    Raises:
      FileExistsError: when the folder holds a table (or a part of one) already.
      OSError: when the disk has no room for the whole table, before any work; or when it fills up
        later. Blocks written until then stay.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_images: int,
        masked_images: MaskedImages,
        num_classes: int,
        about: dict[str, Any],
    ) -> None:
        self._folder = folder
        self._shape = (num_images, len(masked_images))
        self._written = 0
        self._labels: list[NDArray[np.int32]] = []
        self._ids: list[str] = []
        self._about = {
            "format": FORMAT,
            "image_size": list(masked_images.image_size),
            "num_classes": num_classes,
            **about,
        }
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(
                f"{folder}: expected an empty or new folder for the prediction table, but it "
                "already has files; choose another --out or remove it"
            )
        check_room(folder, self._shape)
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, BinaryIO] = {}
        for name, dtype in _COLUMNS.items():
            file = (folder / f"{name}.npy").open("wb")
            self._files[name] = file
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                "fortran_order": False,
                "shape": self._shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
        np.save(folder / "masked_images.npy", masked_images.boxes)

    def append(self, block: Outputs, labels: NDArray[np.int32], ids: tuple[str, ...]) -> None:
        """Adds the rows of ``B`` images: outputs ``[B, V]``, ``labels int32[B]``, B ids."""
        try:
            for name, values in zip(_COLUMNS, block, strict=True):
                self._files[name].write(np.ascontiguousarray(values, _COLUMNS[name]).tobytes())
                self._files[name].flush()
        except OSError as error:
            raise _explained(error, self._folder, self._written) from error
        self._labels.append(labels)
        self._ids.extend(ids)
        self._written += len(labels)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                self._finish()
        except OSError as failure:
            if kind is None:
                raise _explained(failure, self._folder, self._written) from failure

    def _finish(self) -> None:
        if self._written != self._shape[0]:
            raise ValueError(
                f"prediction table: expected {self._shape[0]} images, got {self._written}; did "
                "the data set end early?"
            )
        np.save(self._folder / "labels.npy", np.concatenate(self._labels).astype(np.int32))
        lines = "".join(f"{json.dumps(name)}\n" for name in self._ids)
        (self._folder / "ids.txt").write_text(lines, encoding="utf-8")
        text = json.dumps(self._about, indent=1) + "\n"
        (self._folder / "table.json").write_text(text, encoding="utf-8")


def check_room(folder: Path, shape: tuple[int, int]) -> None:
    """``OSError`` (no space left) unless a table of ``[T, V]`` fits the disk of ``folder``."""
    row = sum(np.dtype(dtype).itemsize for dtype in _COLUMNS.values())
    needed = shape[0] * shape[1] * row + _SPARE_BYTES
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{folder}: expected {needed / 1e6:.1f} MB of free disk for the prediction table "
            f"({shape[0]} images x {shape[1]} masked images), got {free / 1e6:.1f} MB; free some "
            "space or choose another --out",
        )


def load(folder: Path) -> SavedTable:
    """Reads a complete table.

    Raises:
      FileNotFoundError: when there is no table, or its run did not finish.
      ValueError: when a file is damaged or the format is another; names the file.
    """
    about_file = folder / "table.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with a prediction table, found none")
    if not about_file.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a complete prediction table, but table.json is missing (it is "
            "written last): another kind of folder, or a run that did not finish"
        )
    try:
        about = json.loads(about_file.read_text(encoding="utf-8"))
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, got {about.get('format')!r}")
        names = [json.loads(line) for line in _read(folder / "ids.txt").splitlines()]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{about_file}: not a table that can be read: {error}") from error
    arrays = {}
    for name in (*_COLUMNS, "labels", "masked_images"):
        file = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(file, mmap_mode="r" if name in _COLUMNS else None)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{file}: part of the prediction table, is missing") from error
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{file}: damaged, cannot be read ({error}); run again") from error
    table = PredictionTable(
        **{name: arrays[name] for name in _COLUMNS},
        masked_images=MaskedImages(arrays["masked_images"], tuple(about["image_size"])),
        num_classes=about["num_classes"],
    )
    labels = arrays["labels"].astype(np.int32)
    if len(labels) != len(table) or len(names) != len(table):
        raise ValueError(
            f"{folder}: expected labels and ids for {len(table)} images, got {len(labels)} and "
            f"{len(names)}; the folder is damaged, run again"
        )
    return SavedTable(table, labels, tuple(names), about)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: part of the prediction table, is missing") from error


def _explained(error: OSError, folder: Path, written: int) -> OSError:
    full = error.errno == errno.ENOSPC
    why = "the disk is full" if full else error.strerror or str(error)
    return OSError(
        error.errno,
        f"{folder}: writing the prediction table failed: {why}. {written} images are on disk, "
        "without a report; free some space or choose another --out, and run again",
    )
