"""Tables of shares -> one table, the same as if one run had made it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from certmask_jax.files import fingerprint, storage
from certmask_jax.files.storage import AnyPath
from certmask_jax.tables import saved_table
from certmask_jax.tables.blocks import Block, Blocks
from certmask_jax.tables.table_writer import TableWriter

_GIVEN_BY_NAME = {
    "num_images", "masked_images", "masked_images_sha256", "image_size", "num_classes",
    "images_per_block",
}  # fmt: skip


def merge(
    shares: Sequence[str | AnyPath],
    folder: str | AnyPath,
    *,
    partial: bool = False,
    most_named: int = 5,
    warn: Callable[[str], None] = lambda line: None,
) -> None:
    """Copies the blocks of several tables of one run into one table, their checksums verified.

    It may be killed and called again.

    Args:
      shares: folders of tables, in any order. One that is given twice counts once.
      folder: of the table that is made, or resumed.
      partial: whether blocks may be missing.
      most_named: how many spans of images an error or a warning names.
      warn: told of folders that are given twice, and of images that several shares hold; they are
        the same in all, or it is an error.

    Raises:
      FileNotFoundError: for a folder without a table, or when images are missing: names them.
      ValueError: when a share is of another run (names what differs), when a file is damaged, or
        when two shares, or a share and ``folder``, differ in what both hold.
      FileExistsError: when ``folder`` holds another run, or other files.
    """
    if not shares:
        raise ValueError("expected the folders of at least 1 share, got none")
    folders = shares = distinct([storage.any_path(share) for share in shares], warn)
    about = [_about(share) for share in folders]
    check_same_run(folders, [facts["fingerprint"] for facts in about])
    blocks = [saved_table.layout(share, facts) for share, facts in zip(folders, about, strict=True)]
    lacking = [there.unfinished() for there in blocks]
    holders = [
        [which for which, without in enumerate(lacking) if number not in without]
        for number in range(len(blocks[0]))
    ]
    if not partial:
        said = [facts.get("provenance", {}) for facts in about]
        spans = {number: blocks[0].span(number) for number in range(len(blocks[0]))}
        check_all_there(holders, spans, said, most_named)
    facts = about[0]["fingerprint"]
    try:
        masked_images = saved_table.read_masks(folders[0], about[0])
    except ValueError as error:
        raise to_be_mended(str(error)) from error
    doubled: dict[tuple[int, int], list[tuple[int, int]]] = {}
    with TableWriter(
        storage.any_path(folder),
        num_images=facts["num_images"],
        masked_images=masked_images,
        num_classes=facts["num_classes"],
        images_per_block=facts["images_per_block"],
        run={name: value for name, value in facts.items() if name not in _GIVEN_BY_NAME},
        about={"provenance": provenance_of_all(about[0].get("provenance", {}), len(shares))},
        began=saved_table.read_images(folders[0]),
        damaged=warn,
    ) as writer:
        for number, (start, stop) in writer.spans().items():
            held = holders[number]
            if not held:
                continue
            first = _read(blocks[held[0]], number)
            for other in held[1:]:
                if not _equal(first, _read(blocks[other], number)):
                    raise differ_in_shares(start, stop, shares[held[0]], shares[other])
                doubled.setdefault((held[0], other), []).append((start, stop))
            there = writer.read(number)
            if there is None:
                writer.write(number, first)
            elif not _equal(first, there):
                raise differ_in_whole(start, stop, shares[held[0]], folder)

    warn_of_doubled(doubled, shares, most_named, warn)


def check_same_run(shares: Sequence[AnyPath], facts: Sequence[Mapping[str, Any]]) -> None:
    """``ValueError`` unless the facts of all shares are those of the first; names what differs."""
    for share, own in zip(shares, facts, strict=True):
        different = fingerprint.differences(facts[0], own)
        if different:
            raise ValueError(
                f"{share}: expected a share of the same run as {shares[0]}, but "
                f"{'; '.join(different)}"
            )


def check_all_there(
    holders: Sequence[Sequence[int]],
    spans: Mapping[int, tuple[int, int]],
    provenance: Sequence[Mapping[str, Any]],
    most_named: int,
) -> None:
    """``FileNotFoundError`` where a block is in no share; names its images and the share.

    Args:
      holders: of each block the shares that have it.
      spans: of each block the images.
      provenance: of each share.
      most_named: how many spans of images are named.
    """
    missing = [number for number, which in enumerate(holders) if not which]
    if not missing:
        return
    counts = {facts.get("shard", "0/1").split("/")[1] for facts in provenance}
    if len(counts) == 1:
        (count,) = counts
        which = ", ".join(f"{i}/{count}" for i in sorted({n % int(count) for n in missing}))
        remedy = f"run, or go on with, share {which}"
    else:
        remedy = "run the shares that are missing"
    named = _named([spans[number] for number in missing], most_named)
    raise FileNotFoundError(
        f"expected every image in some share, but images {named} are in none; {remedy}"
    )


def provenance_of_all(of_share: Mapping[str, Any], shares: int) -> dict[str, Any]:
    """What is known of a whole run, from what a share knows."""
    provenance = dict(of_share)
    provenance.pop("shard", None)
    if "command_of_all_shares" in provenance:
        provenance["command"] = provenance.pop("command_of_all_shares")
    return {**provenance, "shares": shares}


def warn_of_doubled(
    doubled: Mapping[tuple[int, int], Sequence[tuple[int, int]]],
    shares: Sequence[AnyPath],
    most_named: int,
    warn: Callable[[str], None],
) -> None:
    """Says which images two shares both hold."""
    for (one, other), spans in doubled.items():
        warn(
            f"images {_named(spans, most_named)} are in {shares[one]} and in {shares[other]}, the "
            "same in both"
        )


def differ_in_shares(start: int, stop: int, one: AnyPath, other: AnyPath) -> ValueError:
    """Of two shares that hold other numbers of the same images."""
    return ValueError(
        f"expected each image in one share, but images {start} to {stop - 1} are in {one} and in "
        f"{other}, and differ; give one of the two"
    )


def differ_in_whole(start: int, stop: int, share: AnyPath, folder: str | AnyPath) -> ValueError:
    """Of a folder that holds other numbers of the same images than a share."""
    return ValueError(
        f"expected in {folder} what its shares hold, but images {start} to {stop - 1} in {share} "
        "differ from those there; choose another name for the result"
    )


def distinct(
    folders: Sequence[AnyPath], warn: Callable[[str], None] = lambda line: None
) -> list[AnyPath]:
    """Drops folders that are given twice, by whatever name; ``warn`` is told of these."""
    first: dict[Any, AnyPath] = {}
    for folder in folders:
        place = _place(folder)
        if place in first:
            warn(f"{folder}: the same folder as {first[place]}, counted once")
        else:
            first[place] = folder
    return list(first.values())


def _place(folder: AnyPath) -> Any:
    """What two names of one folder have in common."""
    if not isinstance(folder, Path):
        return folder
    try:
        there = folder.stat()
    except OSError:
        return folder
    # Some file systems have no numbers for files.
    return (there.st_dev, there.st_ino) if there.st_ino else Path(os.path.realpath(folder))


def _about(share: AnyPath) -> dict[str, Any]:
    about = saved_table.recorded(share) if (share / saved_table.ABOUT).is_file() else None
    if about is None:
        got = storage.lacking(share, "begin that share first")
        raise FileNotFoundError(f"{share}: expected a folder with a share of a table, got {got}")
    return about


def _read(blocks: Blocks, number: int) -> Block:
    try:
        return blocks.read(number)
    except ValueError as error:
        raise to_be_mended(str(error)) from error


def to_be_mended(why: str) -> ValueError:
    """Of a share in which a file is missing or damaged."""
    return ValueError(f"{why}; give the command of this share again to mend it")


def _equal(one: Block, other: Block) -> bool:
    arrays = zip((*one.outputs, one.labels), (*other.outputs, other.labels), strict=True)
    # Bit by bit: a NaN is the same as itself.
    return one.rows == other.rows and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in arrays
    )


def _named(spans: Sequence[tuple[int, int]], most: int) -> str:
    """``0 to 9, 30 to 39``, and how many blocks more."""
    more = f" and {len(spans) - most} more blocks" if len(spans) > most else ""
    return ", ".join(f"{start} to {stop - 1}" for start, stop in spans[:most]) + more
