"""What defenses on evidence found, on the disk: a file for each block of images.

A file is whole or not there, and begins with the SHA-256 of what follows, so damage is found. The
record, ``evidence.json``, is written first: what decides the numbers, and what is known beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import json_of
from certmask_jax.files import fingerprint, storage, whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.tables.run_images import Rows

FOLDER = "evidence"
"""Of a run, beside its tables."""

RECORD = "evidence.json"
_FORMAT = 1
_OF_PLACES: dict[str, Any] = {"holds": np.uint8, "leads": np.float16}


class EvidenceBlock(NamedTuple):
    """The rows of B images; of those that are left out the label is -1 and the rest is 0."""

    answers: NDArray[np.int32]  # [B, D]
    verdicts: NDArray[np.bool_]  # [B, Q]
    undefended: NDArray[np.int32]  # [B]
    margins: NDArray[np.float32]  # [B]
    labels: NDArray[np.int32]  # [B]
    holds: NDArray[np.uint8]  # [B, ceil(P / 8)]: verdicts at places, eight in a byte
    leads: NDArray[np.float16]  # [B, L]: the leads there
    rows: Rows  # [B]


class EvidenceStore:
    """The blocks of one run.

    Args:
      folder: local, or in a bucket.
      num_images: T.
      images_per_block: the last block may have fewer.
    """

    def __init__(self, folder: AnyPath, num_images: int, images_per_block: int) -> None:
        self.folder = folder
        self._num_images = num_images
        self._size = images_per_block

    def spans(self) -> dict[int, tuple[int, int]]:
        """The images of each block: from the first to before the last."""
        starts = range(0, self._num_images, self._size)
        return {n: (s, min(s + self._size, self._num_images)) for n, s in enumerate(starts)}

    def write(self, number: int, block: EvidenceBlock) -> None:
        """Writes a block; it is there as a whole or not at all."""
        rows = {
            "ids": block.rows.ids,
            "left_out": {str(row): why for row, why in block.rows.left_out.items()},
            "sizes": block.rows.sizes,
        }
        held = io.BytesIO()
        text = np.frombuffer(json.dumps(rows, sort_keys=True).encode(), np.uint8)
        arrays: dict[str, Any] = {**block._asdict(), "rows": text}
        np.savez(held, **arrays)
        content = held.getvalue()
        digest = hashlib.sha256(content).hexdigest().encode() + b"\n"
        whole_files.write(self.file(number), digest + content)

    def read(self, number: int, warn: Callable[[str], None]) -> EvidenceBlock | None:
        """A block, or None if it is missing, or damaged, which ``warn`` is told of."""
        try:
            content = self.file(number).read_bytes()
        except FileNotFoundError:
            return None
        digest, _, rest = content.partition(b"\n")
        start, stop = self.spans()[number]
        try:
            if hashlib.sha256(rest).hexdigest().encode() != digest:
                raise ValueError("checksum")
            with np.load(io.BytesIO(rest), allow_pickle=False) as file:
                arrays = {
                    name: file[name]
                    for name in EvidenceBlock._fields
                    if name in file.files or name not in _OF_PLACES
                }
            for name, kind in _OF_PLACES.items():  # a run of before these were kept has none
                arrays.setdefault(name, np.zeros((stop - start, 0), kind))
            known = json_of(arrays.pop("rows").tobytes())
            if any(len(array) != stop - start for array in arrays.values()):
                raise ValueError("rows")
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            warn(
                f"{self.file(number)}: damaged, another checksum than it was written with; images "
                f"{start} to {stop - 1} are computed again"
            )
            return None
        left_out = {int(row): why for row, why in known["left_out"].items()}
        rows = Rows(tuple(known["ids"]), left_out, tuple(known["sizes"]))
        return EvidenceBlock(**arrays, rows=rows)

    def is_there(self, number: int) -> bool:
        """Whether the file of a block is, damaged or not."""
        return self.file(number).is_file()

    def file(self, number: int) -> AnyPath:
        """Where a block is, or will be."""
        return self.folder / f"block-{number:06d}.npz.sha256"


def recorded(folder: AnyPath) -> dict[str, Any] | None:
    """The record of a run; None where there is none.

    Raises:
      ValueError: for a record that cannot be read, or of another format.
    """
    try:
        content = (folder / RECORD).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        record = dict(json_of(content))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / RECORD}: cannot be read ({error}); remove it") from error
    if record.get("format") != _FORMAT:
        raise ValueError(
            f"{folder / RECORD}: expected format {_FORMAT}, got {record.get('format')!r}; choose "
            "another folder"
        )
    return record


def _begun_already(folder: AnyPath) -> dict[str, Any]:
    """The record of a run; ``FileNotFoundError`` where none was begun."""
    record = recorded(folder)
    if record is None:
        got = storage.lacking(folder, "begin that run first")
        raise FileNotFoundError(f"{folder}: expected the evidence of a run, got {got}")
    return record


def store_of(folder: AnyPath, record: Mapping[str, Any]) -> EvidenceStore:
    """The blocks of the run that ``record`` is about."""
    facts = record["fingerprint"]
    return EvidenceStore(folder, facts["num_images"], facts["images_per_block"])


def images_done(folder: AnyPath) -> tuple[int, int]:
    """How many images of a run that was begun are on the disk, and how many there are to be.

    Raises:
      FileNotFoundError: where none was begun.
    """
    record = _begun_already(folder)
    store = store_of(folder, record)
    spans = store.spans()
    done = sum(stop - start for n, (start, stop) in spans.items() if store.is_there(n))
    return done, int(record["fingerprint"]["num_images"])


def begun(folder: AnyPath, facts: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that begins now, or goes on.

    Args:
      folder: of the evidence.
      facts: what decides the numbers.
      about: what is known beside them, as it was when the run began.

    Raises:
      FileExistsError: for the folder of another run; names what differs.
    """
    there = same_run(folder, facts)
    if there is None:
        folder.mkdir(parents=True, exist_ok=True)
        there = fingerprint.plain(
            {"format": _FORMAT, "fingerprint": dict(facts), "about": dict(about)}
        )
        whole_files.write_text(folder / RECORD, json.dumps(there, indent=1, sort_keys=True))
    return there


def same_run(folder: AnyPath, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in a folder, if it is of the run of these facts; None where there is none.

    Raises:
      FileExistsError: for the folder of another run; names what differs.
    """
    there = recorded(folder)
    if there is None:
        return None
    differences = fingerprint.differences(there["fingerprint"], fingerprint.plain(dict(facts)))
    if differences:
        raise FileExistsError(
            f"{folder}: expected the evidence of this same run, but {'; '.join(differences[:5])}; "
            "choose another folder, or give the command of that run"
        )
    return there


class SavedEvidence(NamedTuple):
    """A finished run: all its blocks, T images."""

    rows: EvidenceBlock  # [T]
    fingerprint: Mapping[str, Any]
    about: Mapping[str, Any]
    folder: AnyPath

    @property
    def counted(self) -> NDArray[np.bool_]:
        """``bool[T]``: the rows that are not left out."""
        counted = np.ones(len(self.rows.labels), np.bool_)
        counted[list(self.rows.rows.left_out)] = False
        return counted

    def worst_cases(self, number: int) -> NDArray[np.bool_]:
        """``bool[T]``: the worst cases of a defense, by its number in the run, without a guard."""
        widths = [int(width) for width in self.about["verdicts"]]
        return self.rows.verdicts[:, sum(widths[:number])]

    def at_places(self, number: int) -> tuple[NDArray[np.bool_], NDArray[np.float16] | None] | None:
        """Verdicts at the places of a defense, ``bool[T, S]``, and the leads there, if it has any.

        None where none are kept: of a defense without places, or a run of before they were.

        Args:
          number: of the defense, in the order of the run.
        """
        kept = self.about.get("places")
        if kept is None or not kept[number][0]:
            return None
        first, first_lead = (sum(each[which] for each in kept[:number]) for which in (0, 1))
        count, leads = kept[number]
        every = np.unpackbits(self.rows.holds, axis=1, count=sum(each for each, _ in kept))
        holds = every[:, first : first + count].astype(np.bool_)
        return holds, self.rows.leads[:, first_lead : first_lead + leads] if leads else None


def load_evidence(folder: AnyPath) -> SavedEvidence:
    """A finished run.

    Raises:
      FileNotFoundError: where there is none.
      ValueError: for a run that is not finished, or has a damaged block: says what to do.
    """
    record = _begun_already(folder)
    store = store_of(folder, record)
    warnings: list[str] = []
    every = [store.read(number, warnings.append) for number in store.spans()]
    blocks = [block for block in every if block is not None]
    if len(blocks) < len(every):
        why = f" ({warnings[0].partition(';')[0]})" if warnings else ""
        raise ValueError(
            f"{folder}: expected a finished run, but {len(every) - len(blocks)} of {len(every)} "
            f"blocks are missing or damaged{why}; give the command of the run again"
        )
    return SavedEvidence(_joined(store, blocks), record["fingerprint"], record["about"], folder)


def _joined(store: EvidenceStore, blocks: list[EvidenceBlock]) -> EvidenceBlock:
    ids: list[str] = []
    left_out: dict[int, str] = {}
    for (start, _), block in zip(store.spans().values(), blocks, strict=True):
        ids += block.rows.ids
        left_out |= {start + row: why for row, why in block.rows.left_out.items()}
    return EvidenceBlock(
        np.concatenate([block.answers for block in blocks]),
        np.concatenate([block.verdicts for block in blocks]),
        np.concatenate([block.undefended for block in blocks]),
        np.concatenate([block.margins for block in blocks]),
        np.concatenate([block.labels for block in blocks]),
        np.concatenate([block.holds for block in blocks]),
        np.concatenate([block.leads for block in blocks]),
        Rows(tuple(ids), left_out),
    )
