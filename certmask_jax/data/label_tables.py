"""CSV files with a column of files and one of labels -> pairs of both, or an error.

Which column is which follows from their names. Where several may be the labels they have to agree,
or one of them has to say what it is: ``imagenet_index`` beside ``label``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from certmask_jax.data.class_mapping import imagenet_wnids

# Names of columns, in small letters without anything but letters and digits.
FILE_COLUMNS = ("file", "filename", "filepath", "image", "imageid", "imagename", "imagepath",
                "path", "img", "imgname", "imgpath", "name", "id")  # fmt: skip
_IDS = ("wnid", "synset", "synsetid", "wordnetid", "predictionstring")
_NUMBERS = ("imagenetindex", "classindex", "labelindex", "classidx", "labelidx", "truelabel")
# What may hold numbers or names, or count the rows.
_ANY = ("label", "labels", "class", "classid", "classname", "category", "target", "groundtruth",
        "index")  # fmt: skip
_FROM_ONE = ("truelabel",)  # of the NIPS 2017 data set, whose labels are 1 to 1,000
_NUMBER = re.compile(r"[+-]?[0-9]+(\.0*)?")


class LabelRow(NamedTuple):
    """A line of a list."""

    file: str
    label: str  # a number from 0 as Python writes it, or a name


def read_table(labels: Path, text: str) -> tuple[list[LabelRow], list[str]]:
    """The rows of a CSV file (also ; or tabs), and in lines what was taken for what.

    Raises:
      ValueError: for columns that are not known, or may be read in several ways, for rows without
        file or label, and for numbers below 0.
    """
    header, rows = _cells(labels, text)
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header]
    files = [plain.index(name) for name in FILE_COLUMNS if name in plain]
    sure = [plain.index(name) for name in (*_IDS, *_NUMBERS) if name in plain]
    others = [plain.index(name) for name in _ANY if name in plain]
    if not files or not (sure or others):
        raise ValueError(
            f"{labels}: expected a first line with a column of files (such as file) and one of "
            f"labels (such as label, imagenet_index or wnid), got {', '.join(header)}"
        )
    file, candidates = files[0], sure or others
    for number, row in enumerate(rows, 2):
        if len(row) <= max(file, *candidates) or not row[file] or not row[candidates[0]]:
            raise ValueError(f"{labels}, row {number}: expected a file and a label, got {row}")
    columns = {at: _column(labels, plain[at], [row[at] for row in rows]) for at in candidates}
    label = candidates[0]
    for other in candidates[1:]:
        if not _agree(plain[label], columns[label], plain[other], columns[other], is_sure=sure):
            raise ValueError(
                f"{labels}: expected one column of labels, but {header[label]} and {header[other]} "
                "both may be and differ; leave only the one in that says which class it is"
            )
    pairs = [
        LabelRow(row[file].replace("\\", "/"), name)
        for row, name in zip(rows, columns[label], strict=True)
    ]
    notes = [f"labels from column {header[label]!r} of {labels.name}, files from {header[file]!r}"]
    return pairs, notes if len(sure) + len(others) > 1 or len(files) > 1 else []


def _cells(labels: Path, text: str) -> tuple[list[str], list[list[str]]]:
    """The first line, and the others as far as they are not blank."""
    first = next(line for line in text.splitlines() if line.strip())
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text.lstrip("\r\n")), delimiter=delimiter)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise ValueError(f"{labels}: expected a CSV file, got another ({error})") from error
    return rows[0], rows[1:]


def _column(labels: Path, name: str, values: Sequence[str]) -> list[str]:
    """The labels of a column; whole numbers, also such as ``3.0``, in one way of writing."""
    if name == "predictionstring":  # a class, and a box
        return [(value.split() or [""])[0] for value in values]
    if not all(map(_NUMBER.fullmatch, values)):
        if name in _FROM_ONE:
            odd = next(value for value in values if not _NUMBER.fullmatch(value))
            raise ValueError(f"{labels}: expected labels from 1 in TrueLabel, got {odd!r}")
        return list(values)
    numbers = [int(value.partition(".")[0]) for value in values]
    first = int(name in _FROM_ONE)
    if numbers and min(numbers) < first:
        where = " in TrueLabel" if first else ""
        raise ValueError(f"{labels}: expected labels from {first}{where}, got {min(numbers)}")
    return [str(number - first) for number in numbers]


def _agree(
    name: str, labels: list[str], other: str, others: list[str], *, is_sure: Sequence[int]
) -> bool:
    """Whether two columns may both be there: they say the same, or nothing that compares."""
    if labels == others:
        return True
    if not is_sure:
        return False
    if name in _IDS and other == "imagenetindex":
        place = {one: str(number) for number, one in enumerate(imagenet_wnids())}
        return [place.get(one.lower(), "") for one in labels] == others
    return (name in _IDS) != (other in _IDS)
