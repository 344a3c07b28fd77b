"""What shares of a run found on evidence -> one run, the same as if one job had made it.

As ``merging`` does it for tables. Evidence itself, where it was kept, goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.files import storage
from certmask_jax.files.folder_locks import FolderLock
from certmask_jax.files.storage import AnyPath
from certmask_jax.tables import evidence_store, merging
from certmask_jax.tables.evidence_kept import KeptFiles
from certmask_jax.tables.evidence_store import EvidenceBlock, EvidenceStore


class _Share(NamedTuple):
    folder: AnyPath
    record: dict[str, Any]
    store: EvidenceStore
    kept: KeptFiles

    def has(self, number: int) -> bool:
        return self.store.is_there(number) and self.kept.is_there(number)


class _Content(NamedTuple):
    """Of a block."""

    block: EvidenceBlock
    kept: list[NDArray[np.float32]]


def merge(
    shares: Sequence[str | AnyPath],
    folder: str | AnyPath,
    *,
    partial: bool = False,
    most_named: int = 5,
    warn: Callable[[str], None] = lambda line: None,
) -> None:
    """Copies the blocks of several shares of one run into one folder, their checksums verified.

    It may be killed and called again.

    Args:
      shares: folders of evidence, in any order. One that is given twice counts once.
      folder: of the evidence that is made, or gone on with.
      partial: whether blocks may be missing.
      most_named: how many spans of images an error or a warning names.
      warn: told of folders that are given twice, and of images that several shares hold; they are
        the same in all, or it is an error.

    Raises:
      FileNotFoundError: for a folder without evidence, or when images are missing: names them.
      ValueError: when a share is of another run (names what differs), when a file is damaged, or
        when two shares, or a share and ``folder``, differ in what both hold.
      FileExistsError: when ``folder`` holds another run; while another process writes there.
    """
    folder = storage.any_path(folder)
    opened, holders = _opened(shares, partial=partial, most_named=most_named, warn=warn)
    about = dict(opened[0].record["about"])
    about["provenance"] = merging.provenance_of_all(about["provenance"], len(opened))
    doubled: dict[tuple[int, int], list[tuple[int, int]]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder, "this evidence"):
        record = evidence_store.begun(folder, opened[0].record["fingerprint"], about)
        _merged(_share(folder, record), opened, holders, doubled, warn)
    merging.warn_of_doubled(doubled, [one.folder for one in opened], most_named, warn)


def _merged(
    whole: _Share,
    opened: Sequence[_Share],
    holders: Sequence[Sequence[int]],
    doubled: dict[tuple[int, int], list[tuple[int, int]]],
    warn: Callable[[str], None],
) -> None:
    """Copies each block that a share holds; adds what several hold to ``doubled``."""
    for number, (start, stop) in whole.store.spans().items():
        held = holders[number]
        if not held:
            continue
        content = _read(opened[held[0]], number, stop - start)
        for other in held[1:]:
            if not _equal(content, _read(opened[other], number, stop - start)):
                one, another = opened[held[0]].folder, opened[other].folder
                raise merging.differ_in_shares(start, stop, one, another)
            doubled.setdefault((held[0], other), []).append((start, stop))
        there = _of_whole(whole, number, stop - start, warn)
        if there is None:
            whole.kept.write(number, content.kept)
            whole.store.write(number, content.block)
        elif not _equal(content, there):
            raise merging.differ_in_whole(start, stop, opened[held[0]].folder, whole.folder)


def check(shares: Sequence[str | AnyPath], *, most_named: int = 5) -> None:
    """Raises as ``merge`` does where shares are not of one run, or images are missing."""
    _opened(shares, partial=False, most_named=most_named, warn=lambda line: None)


def is_complete(folder: AnyPath) -> bool:
    """Whether all of a run is there, of what it keeps too."""
    record = evidence_store.recorded(folder)
    if record is None:
        return False
    there = _share(folder, record)
    return all(map(there.has, there.store.spans()))


def _opened(
    shares: Sequence[str | AnyPath],
    *,
    partial: bool,
    most_named: int,
    warn: Callable[[str], None],
) -> tuple[list[_Share], list[list[int]]]:
    """The shares, and of each block those that have it."""
    if not shares:
        raise ValueError("expected the folders of at least 1 share, got none")
    folders = merging.distinct([storage.any_path(share) for share in shares], warn)
    opened = [_share(share, _recorded(share)) for share in folders]
    merging.check_same_run(folders, [one.record["fingerprint"] for one in opened])
    spans = opened[0].store.spans()
    holders = [[i for i, one in enumerate(opened) if one.has(number)] for number in spans]
    if not partial:
        said = [one.record["about"]["provenance"] for one in opened]
        merging.check_all_there(holders, spans, said, most_named)
    return opened, holders


def _recorded(share: AnyPath) -> dict[str, Any]:
    record = evidence_store.recorded(share)
    if record is None:
        got = storage.lacking(share, "begin that share first")
        raise FileNotFoundError(f"{share}: expected a folder with a share of evidence, got {got}")
    return record


def _share(folder: AnyPath, record: dict[str, Any]) -> _Share:
    sources = record["about"].get("kept", {}).get("sources", ())
    return _Share(
        folder, record, evidence_store.store_of(folder, record), KeptFiles(folder, sources)
    )


def _read(share: _Share, number: int, images: int) -> _Content:
    said: list[str] = []
    block = share.store.read(number, said.append)
    if block is None:
        why = said[0].partition(";")[0] if said else f"{share.store.file(number)}: is missing"
        raise merging.to_be_mended(why)
    try:
        return _Content(block, share.kept.read_all(number, images))
    except ValueError as error:
        raise merging.to_be_mended(str(error)) from error


def _of_whole(
    whole: _Share, number: int, images: int, warn: Callable[[str], None]
) -> _Content | None:
    """What the merged folder holds of a block already, if it is whole."""
    block = whole.store.read(number, warn)
    if block is None or not whole.kept.is_whole(number, images, warn):
        return None
    return _Content(block, whole.kept.read_all(number, images))


def _equal(one: _Content, other: _Content) -> bool:
    pairs = zip(_arrays(one), _arrays(other), strict=True)
    # Bit by bit: a NaN is the same as itself.
    return one.block.rows == other.block.rows and all(
        (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()) for a, b in pairs
    )


def _arrays(content: _Content) -> list[NDArray[Any]]:
    block = content.block._asdict()
    return [*(block[name] for name in block if name != "rows"), *content.kept]
