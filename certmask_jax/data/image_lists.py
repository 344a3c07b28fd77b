"""A list of labels beside a folder of images: CSV files, and ImageNet's own ground truth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from certmask_jax._text import some, text_in
from certmask_jax.data.folders import images_below, unique_names
from certmask_jax.data.imagenet_devkit import is_ground_truth, read_ground_truth
from certmask_jax.data.label_tables import LabelRow, read_table
from certmask_jax.data.listing import ImageFile


class Labelled(NamedTuple):
    """A folder of images with their classes."""

    class_names: tuple[str, ...]  # each once, in order of letters; numbers in their own order
    files: tuple[ImageFile, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()  # named in the list, and not there


def read(folder: Path, labels: Path) -> Labelled:
    """The images of a folder that a list names, in its order, and their classes.

    Args:
      folder: of the images, at any depth; the list names them relative to it, or by their name
        alone, with or without suffix.
      labels: a CSV file (also ; or tabs) whose first line names a column of files and one of
        labels, or ``ILSVRC2012_validation_ground_truth.txt`` of ImageNet's development kit.

    Raises:
      FileNotFoundError: when one of them is not there.
      ValueError: for a list that cannot be read, or names files that are not there, or one twice.
    """
    if not labels.is_file():
        raise FileNotFoundError(f"{labels}: expected a list of labels, found no file")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of images, found none")
    text = text_in(labels)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{labels}: expected a list of labels, got an empty file")
    images = images_below(folder, Counter())
    there = {path.relative_to(folder).as_posix(): (path, size) for path, size in images}
    notes: list[str] = []
    if is_ground_truth(lines):
        rows = read_ground_truth(labels, lines, there)
    else:
        rows, notes = read_table(labels, text)
    return _joined(folder, labels, rows, there, notes)


def _joined(
    folder: Path,
    labels: Path,
    rows: Sequence[LabelRow],
    there: Mapping[str, tuple[Path, int]],
    notes: list[str],
) -> Labelled:
    """The rows of a list with the files that they name."""
    if not rows:
        raise ValueError(f"{labels}: expected at least 1 image in the list, got none")
    by_name: dict[str, list[str]] = {}
    for path in there:
        name = PurePosixPath(path)
        for alias in {path, str(name.with_suffix("")), name.name, name.stem}:
            by_name.setdefault(alias, []).append(path)
    paths: list[str] = []
    missing: list[str] = []
    unclear: list[str] = []
    for wanted, _ in rows:
        plain = _relative(wanted, folder)
        matches = [plain] if plain in there else by_name.get(plain, [])
        if len(matches) == 1:
            paths.append(matches[0])
        else:
            (unclear if matches else missing).append(wanted)
    if unclear:
        raise ValueError(f"{labels}: several files in {folder} may be meant by {some(unclear)}")
    unread = [wanted for wanted in missing if os.path.exists(folder / wanted)]
    if unread:
        raise ValueError(
            f"{labels}: expected images with a suffix that Pillow reads here, and none hidden, but "
            f"{len(unread)} are otherwise ({some(unread)})"
        )
    if missing and not paths:
        raise ValueError(
            f"{labels}: expected its {len(rows)} images in {folder}, but none is there "
            f"({some(missing)})"
        )
    names = _class_names([label for _, label in rows])  # also of images that are not there
    gone = set(missing)
    rows = [row for row in rows if row[0] not in gone]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(f"{labels}: expected each image once, got {some(twice)} more often")
    unlisted = len(there) - len(paths)
    if unlisted:
        what = "1 image is" if unlisted == 1 else f"{unlisted} images are"
        notes = [*notes, f"left out of {folder}: {what} not in {labels.name}"]
    number = {name: place for place, name in enumerate(names)}
    files = [
        ImageFile(there[path][0], image_id, number[label], there[path][1])
        for path, image_id, (_, label) in zip(paths, unique_names(paths), rows, strict=True)
    ]
    return Labelled(names, tuple(files), tuple(notes), tuple(unique_names(missing)))


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    distinct = sorted(set(labels))
    if all(name.isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(distinct)


def is_numbered(names: Sequence[str]) -> bool:
    """Whether labels are numbers of outputs, and not names."""
    return all(name.isascii() and name.isdecimal() for name in names)


def _relative(wanted: str, folder: Path) -> str:
    """A path in a list as one in the folder, if it is absolute and leads there."""
    plain = PurePosixPath(wanted)
    if plain.is_absolute() and plain.is_relative_to(folder.absolute().as_posix()):
        plain = plain.relative_to(folder.absolute().as_posix())
    return str(plain)
