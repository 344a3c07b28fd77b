"""A list of labels beside a folder of images: CSV files, and ImageNet's own ground truth."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from certmask_jax.data.folders import is_hidden, suffixes, unique_ids
from certmask_jax.data.listing import ImageFile

# Names of columns, in small letters without anything but letters and digits.
_FILES = ("file", "filename", "filepath", "image", "imageid", "imagename", "imagepath", "path",
          "img", "name", "id")  # fmt: skip
_LABELS = ("wnid", "synset", "predictionstring", "imagenetindex", "classindex", "labelindex",
           "index", "label", "labels", "class", "classid", "classname", "category", "target",
           "truelabel", "groundtruth")  # fmt: skip
_FROM_ONE = ("truelabel",)  # of the NIPS 2017 data set, whose labels are 1 to 1,000
_GROUND_TRUTH = re.compile(r"\s*\d+\s*")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
_SHOWN = 5


class Labelled(NamedTuple):
    """A folder of images with their classes."""

    class_names: tuple[str, ...]  # each once, in order of letters; numbers in their own order
    files: tuple[ImageFile, ...]
    notes: tuple[str, ...]


def read(folder: Path, labels: Path) -> Labelled:
    """The images of a folder that a list names, in its order, and their classes.

    Args:
      folder: of the images, at any depth; the list names them relative to it, or by their name
        alone, with or without suffix.
      labels: a CSV file (also ; or tabs) whose first line names a column of files and one of
        labels, or ``ILSVRC2012_validation_ground_truth.txt`` as it lies in ImageNet's development
        kit, with ``meta.mat`` or ``map_clsloc.txt`` beside it.

    Raises:
      FileNotFoundError: when one of them is not there.
      ValueError: for a list that cannot be read, or names files that are not there, or one twice.
    """
    if not labels.is_file():
        raise FileNotFoundError(f"{labels}: expected a list of labels, found no file")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of images, found none")
    try:
        text = labels.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{labels}: expected text in UTF-8, got other bytes ({error})") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{labels}: expected a list of labels, got an empty file")
    there = _images(folder)
    if all(_GROUND_TRUTH.fullmatch(line) for line in lines):
        rows, notes = _ground_truth(labels, [int(line) for line in lines], there)
    else:
        rows, notes = _table(labels, text)
    return _joined(folder, labels, rows, there, notes)


def _table(labels: Path, text: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of file and label of a CSV file, and what was taken for what."""
    first = next(line for line in text.splitlines() if line.strip())
    delimiter = max(",;\t", key=first.count)
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text.lstrip("\r\n")), delimiter=delimiter)
        if any(cell.strip() for cell in row)
    ]
    header = rows[0]
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    files = [plain.index(name) for name in _FILES if name in plain]
    kinds = [plain.index(name) for name in _LABELS if name in plain]
    if not files or not kinds:
        raise ValueError(
            f"{labels}: expected a first line with a column of files (such as file) and one of "
            f"labels (such as label, imagenet_index or wnid), got {', '.join(header)}"
        )
    file, label = files[0], kinds[0]
    pairs = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) <= max(file, label) or not row[file] or not row[label]:
            raise ValueError(f"{labels}, row {number}: expected a file and a label, got {row}")
        pairs.append((row[file].replace("\\", "/"), _label(row[label], plain[label], labels)))
    notes = [f"labels from column {header[label]!r} of {labels.name}, files from {header[file]!r}"]
    return pairs, notes if len(kinds) > 1 or len(files) > 1 else []


def _label(text: str, column: str, labels: Path) -> str:
    if column == "predictionstring":  # a class, and a box
        return text.split()[0]
    if column in _FROM_ONE:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{labels}: expected labels from 1 in TrueLabel, got {text!r}")
        return str(int(text) - 1)
    return text


def _ground_truth(
    labels: Path, numbers: Sequence[int], there: Mapping[str, Path]
) -> tuple[list[tuple[str, str]], list[str]]:
    """ImageNet's own list: line n is the class of ``ILSVRC2012_val_n``, in an order of its own."""
    order = _synset_order(labels)
    unknown = sorted({number for number in numbers if number not in order})
    if unknown:
        raise ValueError(
            f"{labels}: expected numbers of classes from {min(order)} to {max(order)}, got "
            f"{', '.join(map(str, unknown[:_SHOWN]))}"
        )
    found = []
    for name in there:
        match = _VALIDATION.fullmatch(PurePosixPath(name).stem)
        if match is None:
            raise ValueError(
                f"{labels}: expected images named ILSVRC2012_val_00000001 and so on, as the lines "
                f"of this file have no names, got {name}"
            )
        if not 1 <= int(match[1]) <= len(numbers):
            raise ValueError(f"{labels}: it has {len(numbers)} lines, and none for {name}")
        found.append((name, order[numbers[int(match[1]) - 1]]))
    return found, []


def _synset_order(labels: Path) -> dict[int, str]:
    """Number of a class in ImageNet's development kit -> its id, from the file beside the list."""
    names = labels.with_name("map_clsloc.txt")
    if names.is_file():
        rows = [line.split() for line in names.read_text("utf-8").splitlines() if line.strip()]
        return {int(row[1]): row[0] for row in rows}
    meta = labels.with_name("meta.mat")
    if not meta.is_file():
        raise FileNotFoundError(
            f"{labels}: its numbers are those of ImageNet's development kit, an order of its own; "
            "expected meta.mat (or map_clsloc.txt) of the kit beside it, found neither"
        )
    try:
        from scipy.io import loadmat

        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        return {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets}
    except Exception as error:  # SciPy raises many kinds
        raise ValueError(
            f"{meta}: expected meta.mat of ImageNet's development kit ({error})"
        ) from error


def _joined(
    folder: Path,
    labels: Path,
    rows: Sequence[tuple[str, str]],
    there: Mapping[str, Path],
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
        plain = str(PurePosixPath(wanted))
        found = [plain] if plain in there else by_name.get(plain, [])
        if len(found) == 1:
            paths.append(found[0])
        else:
            (unclear if found else missing).append(wanted)
    if unclear:
        raise ValueError(f"{labels}: several files in {folder} may be meant by {_some(unclear)}")
    if missing:
        raise ValueError(
            f"{labels}: expected its {len(rows)} images in {folder}, but {len(missing)} are not "
            f"there ({_some(missing)})"
        )
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(f"{labels}: expected each image once, got {_some(twice)} more often")
    unlisted = len(there) - len(paths)
    if unlisted:
        what = "1 image is" if unlisted == 1 else f"{unlisted} images are"
        notes = [*notes, f"left out of {folder}: {what} not in {labels.name}"]
    names = _class_names([label for _, label in rows])
    number = {name: place for place, name in enumerate(names)}
    files = [
        ImageFile(there[path], image_id, number[label], there[path].stat().st_size)
        for path, image_id, (_, label) in zip(paths, unique_ids(paths), rows, strict=True)
    ]
    return Labelled(names, tuple(files), tuple(notes))


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    distinct = sorted(set(labels))
    if all(name.isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=int))
    return tuple(distinct)


def is_numbered(names: Sequence[str]) -> bool:
    """Whether labels are numbers of outputs, and not names."""
    return all(name.isascii() and name.isdecimal() for name in names)


def _images(folder: Path) -> dict[str, Path]:
    """The image files of a folder at any depth, by their paths in it."""
    found, waiting, seen = {}, [folder], set()
    while waiting:
        here = waiting.pop()
        real = here.resolve()
        if real in seen:
            continue
        seen.add(real)
        for path in here.iterdir():
            if is_hidden(path.name):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.suffix.lower() in suffixes():
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
