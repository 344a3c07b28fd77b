"""Blocks of a prediction table on disk: one chunk of a zarr array (v3) for each column, and ids.

A block is B images in a row. It is there when all of its files are: TensorStore puts each chunk in
place whole, with a checksum, and the file of ids comes last. A chunk that is missing is an error,
never the fill value.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import json_of
from certmask_jax.files import file_systems, storage, whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.tables.outputs import SCHEMA, Column, Outputs
from certmask_jax.tables.run_images import Rows
from certmask_jax.tables.stored_columns import StoredColumn, raise_os_error

_LABELS = Column(np.int32, unknown=-1, missing=-2147483648)
_IDS = "ids"

BYTES_A_PREDICTION = sum(np.dtype(column.dtype).itemsize for column in SCHEMA.values())
FILES_A_BLOCK = len(SCHEMA) + 2


class Block(NamedTuple):
    """The rows of B images; those that are left out have no predictions and label -1."""

    outputs: Outputs  # NumPy [B, V]
    labels: NDArray[np.int32]  # [B]
    rows: Rows  # [B]


class Blocks:
    """The blocks of one table.

    Args:
      folder: of the table; local, or in a bucket.
      shape: ``(T, V)``.
      images_per_block: B; the last block may have fewer.
    """

    def __init__(self, folder: AnyPath, shape: tuple[int, int], images_per_block: int) -> None:
        self._folder: AnyPath = folder.absolute()
        self._shape = shape
        self._size = images_per_block
        self._stores: dict[str, Any] = {}

    def __len__(self) -> int:
        return -(-self._shape[0] // self._size)

    def span(self, number: int) -> tuple[int, int]:
        """The images of a block: from the first to before the last."""
        return number * self._size, min((number + 1) * self._size, self._shape[0])

    def length(self, number: int) -> int:
        """How many images a block has."""
        start, stop = self.span(number)
        return stop - start

    def files(self, number: int) -> list[AnyPath]:
        """All files of a block, in the order in which they are written."""
        names = [*(f"{name}/c/{number}/0" for name in SCHEMA), f"labels/c/{number}"]
        return [*(self._folder / name for name in names), self._ids(number)]

    def missing(self, number: int) -> list[AnyPath]:
        """The files that a block lacks; none when it is done."""
        return storage.absent(self._folder, self.files(number))

    def unfinished(self) -> dict[int, list[AnyPath]]:
        """The blocks that are not done, by number, with the files that they lack."""
        files = {number: self.files(number) for number in range(len(self))}
        every = [file for some in files.values() for file in some]
        lost = set(storage.absent(self._folder, every))
        lacks = {number: [file for file in some if file in lost] for number, some in files.items()}
        return {number: some for number, some in lacks.items() if some}

    def create(self) -> None:
        """Makes the arrays and the folder of ids; what is there already stays.

        Raises:
          OSError: when they cannot be written.
        """
        (self._folder / _IDS).mkdir(parents=True, exist_ok=True)
        for name in (*SCHEMA, "labels"):
            try:
                self._stores[name] = self._open(name, create=True)
            except ValueError as error:
                raise_os_error(error, self._folder)
                # Damaged. It holds nothing that the table does not know; chunks stay.
                (self._folder / name / "zarr.json").unlink()
                self._stores[name] = self._open(name, create=True)

    def read(self, number: int) -> Block:
        """A block, its checksums verified.

        Raises:
          ValueError: when a file is missing or damaged; names it.
          OSError: when a file is there and cannot be read.
        """
        rows = slice(*self.span(number))
        columns = [self.column(name) for name in (*SCHEMA, "labels")]
        started = [column.start(rows) for column in columns]  # at once: buckets are slow to answer
        parts = [column.finish(one) for column, one in zip(columns, started, strict=True)]
        return Block(Outputs(*parts[:-1]), parts[-1], self.rows([number]))

    def rows(self, numbers: Sequence[int] | None = None) -> Rows:
        """What is known of the images of some blocks, or of all; raises as ``read``."""
        numbers = range(len(self)) if numbers is None else numbers
        read = storage.contents([self._ids(number) for number in numbers])
        ids: list[str] = []
        sizes: list[int] = []
        left_out: dict[int, str] = {}
        for number in numbers:
            file = self._ids(number)
            try:
                rows = _read_rows(next(read))
                if len(rows.ids) != self.length(number):
                    raise ValueError(f"it has {len(rows.ids)} ids, not {self.length(number)}")
            except FileNotFoundError as error:
                raise ValueError(f"{file}: is missing") from error
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}: is damaged ({error})") from error
            left_out |= {len(ids) + row: why for row, why in rows.left_out.items()}
            ids += rows.ids
            sizes += rows.sizes
        return Rows(tuple(ids), left_out, tuple(sizes))

    def write(self, number: int, block: Block) -> None:
        """Puts a block on the disk; it is there only when the last file is.

        Raises:
          OSError: when it cannot be written.
        """
        rows = slice(*self.span(number))
        parts = dict(zip((*SCHEMA, "labels"), (*block.outputs, block.labels), strict=True))
        try:
            started = [
                self._store(name)[rows].write(np.ascontiguousarray(part))
                for name, part in parts.items()
            ]
            for future in started:
                future.result()
        except ValueError as error:
            raise_os_error(error, self._folder)
            raise
        if isinstance(self._folder, Path) and not file_systems.can_sync(self._folder):
            for file in self.files(number)[:-1]:  # TensorStore was told not to
                file_systems.sync_file(Path(str(file)))
        self.write_rows(number, block.rows)

    def write_rows(self, number: int, rows: Rows) -> None:
        """Writes what is known of a block's images, which marks it as done; raises ``OSError``."""
        facts: dict[str, Any] = {"crc32": _crc32(rows), "ids": rows.ids}
        if rows.sizes:
            facts["bytes"] = rows.sizes
        if rows.left_out:
            facts["left_out"] = {str(row): why for row, why in sorted(rows.left_out.items())}
        whole_files.write(self._ids(number), json.dumps(facts, indent=1).encode())

    def discard(self, number: int) -> None:
        """Removes what there is of a block, so that it is not there while it is written anew."""
        for file in reversed(self.files(number)):  # the mark that it is done goes first
            file.unlink(missing_ok=True)

    def column(self, name: str, *, remedy: str = "") -> StoredColumn:
        """A column of ``Outputs`` (``[T, V]``), or ``labels`` (``[T]``)."""
        return StoredColumn(self._store(name), self._folder / name, remedy)

    def unlike_metadata(self) -> list[str]:
        """What is wrong with the files that say what each array is, a line for each.

        Reading here does without them; other programs that read zarr do not.
        """
        said = []
        for name in (*SCHEMA, "labels"):
            file, wanted = self._folder / name / "zarr.json", self._spec(name)["metadata"]
            try:
                metadata = json_of(file.read_bytes())
                if any(metadata[key] != wanted[key] for key in ("shape", "data_type")):
                    said.append(f"{file}: is damaged (it is of another array)")
            except FileNotFoundError:
                said.append(f"{file}: is missing")
            except OSError as error:
                said.append(f"{file}: cannot be read ({error.strerror or error})")
            except (ValueError, KeyError, TypeError) as error:
                said.append(f"{file}: is damaged ({type(error).__name__}: {error})")
        return said

    def _ids(self, number: int) -> AnyPath:
        return self._folder / f"{_IDS}/{number:06d}.json"

    def _store(self, name: str) -> Any:
        if name not in self._stores:
            # The table knows what zarr.json says: reading does not depend on that file.
            self._stores[name] = self._open(name, assume_metadata=True)
        return self._stores[name]

    def _open(self, name: str, **how: Any) -> Any:
        import tensorstore

        context = storage.context(self._folder)
        return tensorstore.open(self._spec(name), open=True, context=context, **how).result()

    def _spec(self, name: str) -> dict[str, Any]:
        column = _LABELS if name == "labels" else SCHEMA[name]
        inner = () if name == "labels" else self._shape[1:]
        return {
            "driver": "zarr3",
            "kvstore": storage.kvstore(self._folder / name),
            "metadata": {
                "shape": [self._shape[0], *inner],
                "data_type": np.dtype(column.dtype).name,
                "fill_value": column.missing,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [self._size, *inner]},
                },
                "chunk_key_encoding": {"name": "default"},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "zstd", "configuration": {"level": 1}},
                    {"name": "crc32c"},
                ],
            },
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }


def _read_rows(content: bytes) -> Rows:
    """What ``Blocks.write_rows`` wrote; ``ValueError`` or the like where it is damaged."""
    facts = json_of(content)
    left_out = {int(row): str(why) for row, why in facts.get("left_out", {}).items()}
    rows = Rows(tuple(facts["ids"]), left_out, tuple(facts.get("bytes", ())))
    if facts["crc32"] != _crc32(rows):
        raise ValueError("its checksum is another")
    return rows


def _crc32(rows: Rows) -> int:
    # Of ids alone where there is no more, as tables of older versions have it.
    more = rows.sizes or rows.left_out
    facts = [rows.ids, rows.sizes, sorted(rows.left_out.items())] if more else rows.ids
    return zlib.crc32(json.dumps(facts).encode())
