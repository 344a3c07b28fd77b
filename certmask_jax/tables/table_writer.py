"""Writing a prediction table block by block, and going on where it stopped."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from certmask_jax._settings import FolderTakenError, SettingError
from certmask_jax._text import counted
from certmask_jax.files import disk_room, fingerprint, processes, storage, whole_files
from certmask_jax.files.folder_locks import FolderLock
from certmask_jax.files.storage import AnyPath
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables import saved_table
from certmask_jax.tables.blocks import BYTES_A_PREDICTION, FILES_A_BLOCK, Block
from certmask_jax.tables.run_images import Began, Rows


class TableWriter:
    """Writes the blocks of a table that are missing; use as a context manager.

    Args:
      folder: created if need be. A table of this run that it holds is resumed. In a bucket
        there is no lock: the caller sees to it that one process writes at a time.
      num_images: T.
      masked_images: the V columns.
      num_classes: K.
      images_per_block: B.
      share: ``(i, n)``: this writer's are every n-th block, from block i on.
      run: JSON-able facts that decide the numbers, beside those above; the run's fingerprint.
      about: more to keep with the table; that of the session which began it stays.
      began: the images of the run, to keep; those of the session which began it stay.
      damaged: told of each block of which something is missing or damaged.

    Raises:
      FileExistsError: when the folder holds another run, or other files; on entering, when
        another process is writing there.
      ValueError: when its table is of another format, or there are fewer blocks than shares.
      OSError: when the disk has no room for all that is missing, before any work; when a bucket
        does not answer, or refuses.
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        num_images: int,
        masked_images: MaskedImages,
        num_classes: int,
        images_per_block: int,
        share: tuple[int, int] = (0, 1),
        run: Mapping[str, Any],
        about: Mapping[str, Any],
        began: Began | None = None,
        damaged: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = folder
        self._damaged = damaged
        self._boxes = masked_images.boxes
        self._began = began
        self._facts = fingerprint.plain(
            {
                "format": saved_table.FORMAT,
                "fingerprint": {
                    "num_images": num_images,
                    "masked_images": len(masked_images),
                    "masked_images_sha256": fingerprint.of_arrays(masked_images.boxes),
                    "image_size": masked_images.image_size,
                    "num_classes": num_classes,
                    "images_per_block": images_per_block,
                    **run,
                },
                **about,
            }
        )
        there = saved_table.recorded(folder)
        _check_same(folder, there, self._facts)
        self._blocks = saved_table.layout(folder, self._facts)
        self._numbers = share_of(len(self._blocks), share, num_images)
        own = {*self._numbers}
        left = [number for number in self._blocks.unfinished() if number in own]
        images_left = sum(map(self._blocks.length, left))
        self._done = sum(map(self._blocks.length, self._numbers)) - images_left
        if isinstance(folder, Path):
            check_room(folder, images_left, len(masked_images), len(left))
        self._lock: FolderLock | None = None

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The other processes of this job are let in; in a bucket nobody can be kept out.
            if processes.is_first():
                self._lock = FolderLock(self._folder, "this table")
            there = saved_table.recorded(self._folder)  # another process may have begun meanwhile
            _check_same(self._folder, there, self._facts)
            if there is None:
                text = json.dumps(self._facts, indent=1) + "\n"
                whole_files.write(self._folder / saved_table.ABOUT, text.encode())
            _write_boxes(self._folder / saved_table.MASKS, self._boxes)
            if self._began is not None and saved_table.read_images(self._folder) is None:
                text = json.dumps(self._began._asdict(), indent=0) + "\n"
                whole_files.write(self._folder / saved_table.IMAGES, text.encode())
            self._blocks.create()
        except BaseException as error:
            self._unlock()
            if isinstance(error, OSError):
                raise self._explained(error) from error
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._unlock()

    def spans(self) -> dict[int, tuple[int, int]]:
        """This writer's blocks, and the images of each: from the first to before the last."""
        return {number: self._blocks.span(number) for number in self._numbers}

    def read(self, number: int) -> Block | None:
        """A block as it was written, its checksums verified; None when it is to be computed."""
        missing = self._blocks.missing(number)
        if len(missing) == FILES_A_BLOCK:
            return None
        if missing and missing[-1] == self._blocks.files(number)[-1]:
            # Its mark, which comes last, is not there: a run was stopped while it wrote.
            self._discard(number, counted=False)
            return None
        try:
            if missing:
                raise ValueError(f"{missing[0]}: is missing")
            return self._blocks.read(number)
        except ValueError as error:
            start, stop = self._blocks.span(number)
            if self._damaged is not None:
                self._damaged(f"{error}; images {start} to {stop - 1} are computed again")
        self._discard(number, counted=not missing)
        return None

    def discard(self, number: int) -> None:
        """Removes a finished block, which is to be computed again; raises as ``write``."""
        self._discard(number, counted=True)

    def write_rows(self, number: int, rows: Rows) -> None:
        """What is known of a finished block's images, anew; raises as ``write``."""
        try:
            self._blocks.write_rows(number, rows)
        except OSError as error:
            raise self._explained(error) from error

    def _discard(self, number: int, *, counted: bool) -> None:
        if counted:
            self._done -= self._blocks.length(number)
        try:
            self._blocks.discard(number)
        except OSError as error:
            raise self._explained(error) from error

    def write(self, number: int, block: Block) -> None:
        """Puts a block on the disk.

        Raises:
          ValueError: when it has not as many images as it should.
          OSError: when it cannot be written; what was written before stays.
        """
        expected = self._blocks.length(number)
        if len(block.labels) != expected or len(block.rows.ids) != expected:
            raise ValueError(
                f"prediction table: expected {expected} images in block {number}, got "
                f"{len(block.labels)} labels and {len(block.rows.ids)} ids; did the data set end "
                "early?"
            )
        try:
            self._blocks.write(number, block)
        except OSError as error:
            raise self._explained(error) from error
        self._done += expected

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _explained(self, error: OSError) -> OSError:
        if isinstance(error, FileExistsError):  # another run or process
            return error
        if not isinstance(self._folder, Path):  # says itself what failed and what to do
            return OSError(
                error.errno,
                f"{error.strerror}. {self._done} images are stored; give the same command again, "
                "which goes on from there",
            )
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or str(error)
        remedy = "free some space" if full else "make it writable"
        return OSError(
            error.errno,
            f"{self._folder}: writing the prediction table failed: {why}. {self._done} images are "
            f"on disk; {remedy} and give the same command again, which goes on from there",
        )


def share_of(count: int, share: tuple[int, int], images: int, what: str = "table") -> range:
    """The blocks of share ``(i, n)``, of ``count`` blocks; ``ValueError`` when it cannot be.

    ``images`` are in those blocks, which ``what`` has, in a word for the error.
    """
    part, parts = share
    if not 0 <= part < parts:
        raise ValueError(f"share: expected (i, n) with 0 <= i < n, got {share}")
    if parts > count:
        why = f"as the {what} has {counted(count, 'block')} of images, got {parts}"
        most = f"expected at most {counted(count, 'share')}, {why}"
        if parts > images:  # there are no more blocks than images
            bound = f"{counted(images, 'image')} cannot have more than {counted(images, 'share')}"
            raise ValueError(f"{most}; {bound}")
        raise SettingError(lambda say: f"{most}; a smaller {say('chunk', None)} makes more blocks")
    return range(part, count, parts)


def check_room(folder: Path, num_images: int, num_columns: int, num_blocks: int) -> None:
    """``OSError`` (no space left) unless that many images more fit the disk of ``folder``."""
    needed = num_images * num_columns * BYTES_A_PREDICTION + disk_room.SPARE_BYTES
    needed += num_blocks * FILES_A_BLOCK * disk_room.SPARE_BYTES_A_FILE
    if num_blocks:
        what = f"the prediction table ({num_images} images x {num_columns} masked images)"
        disk_room.check_room(folder, needed, what=what)


def check_before(
    folder: AnyPath,
    *,
    num_images: int,
    num_columns: int,
    num_blocks: int,
    known: Mapping[str, Any],
) -> None:
    """Finds what ``TableWriter`` would refuse as far as it can be known without a model.

    Args:
      folder: of the table.
      num_images, num_columns, num_blocks: what is to be written, of an empty table.
      known: some facts of the run's fingerprint.

    Raises:
      FileExistsError: for another run, or other files.
      ValueError: for a table that is damaged or of another format.
      OSError: for a disk without room, or a folder that cannot be written to.
    """
    there = saved_table.recorded(folder)
    if there is not None:
        begun = there["fingerprint"]
        facts = fingerprint.plain({**begun, **known})
        _check_same(folder, there, {"fingerprint": facts})
    if not isinstance(folder, Path):
        return
    if there is None:
        check_room(folder, num_images, num_columns, num_blocks)
    storage.check_writable(folder)


def _check_same(
    folder: AnyPath, there: Mapping[str, Any] | None, wanted: Mapping[str, Any]
) -> None:
    if there is None:
        return
    different = fingerprint.differences(there["fingerprint"], wanted["fingerprint"])
    if different:
        raise FolderTakenError(
            lambda say: (
                f"{folder}: expected the prediction table of this run, got that of another: "
                f"{'; '.join(different)}. Choose another {say('folder', None)}, or give the "
                "command of that run"
            )
        )


def _write_boxes(file: AnyPath, boxes: NDArray[np.int32]) -> None:
    """Writes ``int32[V, R, 4]`` unless the file holds it already."""
    content = io.BytesIO()
    np.save(content, boxes)
    if not file.is_file() or file.read_bytes() != content.getvalue():
        whole_files.write(file, content.getvalue())
