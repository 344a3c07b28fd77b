"""Files that say which output of a model each class is."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from certmask_jax._text import encodable, json_of, text_in

# Titles of the column of outputs, in small letters without anything else.
_OUTPUTS = frozenset(
    {"output", "index", "idx", "number", "label", "labelindex", "classindex", "classid", "id",
     "target", "imagenetindex"}
)  # fmt: skip


def read_class_index(path: Path) -> dict[str, int]:
    """Name -> output, from a file.

    JSON: ``{"name": 3}``; ``{"3": "name"}`` or ``{"3": ["n02085620", "Chihuahua"]}`` (Keras's:
    all of its names, except those that stand under several numbers, as ``crane`` does); or
    ``["name 0", "name 1", ...]``. Else text: ``name,3`` in every line (also ; or tabs; a first line
    of titles may be there, and says which is which), or a name in every line, the first of which
    is 0.

    Raises:
      FileNotFoundError: when it is not there.
      ValueError: for anything else, or a name with two outputs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a class index, found no file")
    text = text_in(path)
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        try:
            pairs = _of_json(json_of(text, each_object=_each_once))
        except ValueError as error:
            raise ValueError(f"{path}: expected JSON of names and outputs ({error})") from error
    else:
        pairs = _of_lines(path, text)
    if not pairs:
        raise ValueError(f"{path}: expected names and outputs, got none")
    index: dict[str, int] = {}
    for name, output in pairs:
        if index.setdefault(encodable(name), output) != output:
            raise ValueError(
                f"{path}: expected one output for each name, got {index[encodable(name)]} and "
                f"{output} for {name}"
            )
    return index


def _of_json(content: Any) -> list[tuple[str, int]]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(name, number) for number, name in enumerate(content)]
    if not isinstance(content, dict):
        raise ValueError(f"got a {type(content).__name__}")
    pairs: list[tuple[str, int]] = []
    others: list[tuple[str, int]] = []
    for key, value in content.items():
        if isinstance(value, int) and not isinstance(value, bool):
            pairs.append((key, value))
            continue
        names = [value] if isinstance(value, str) else value
        if not (key.isdecimal() and isinstance(names, list) and all(map(_is_text, names))):
            raise ValueError(f"got {key!r}: {value!r}")
        pairs += [(name, int(key)) for name in names[:1]]
        others += [(name, int(key)) for name in names[1:]]
    outputs: dict[str, set[int]] = {}
    for name, output in (*pairs, *others):
        outputs.setdefault(name, set()).add(output)
    return pairs + [(name, output) for name, output in others if len(outputs[name]) == 1]


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    once: dict[str, Any] = {}
    for key, value in pairs:
        if key in once:  # of which the reader of JSON would keep the last
            raise ValueError(f"got {key!r} twice")
        once[key] = value
    return once


def _of_lines(path: Path, text: str) -> list[tuple[str, int]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    delimiter = max(",;\t", key=lines[-1].count)
    if delimiter not in lines[-1]:
        return [(line.strip(), number) for number, line in enumerate(lines)]
    try:
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
        ]
    except csv.Error as error:
        raise ValueError(f"{path}: expected name,output in every line ({error})") from error
    titles: list[str] = []
    if len(rows) > 1 and not any(cell.isdecimal() for cell in rows[0]):
        titles = [re.sub("[^a-z]", "", cell.lower()) for cell in rows[0]]
        rows = rows[1:]
    # Two numbers in a row: the titles say which is the name; without titles the first is.
    output_first = len(titles) == 2 and titles[0] in _OUTPUTS and titles[1] not in _OUTPUTS
    pairs = []
    for number, row in enumerate(rows, 1 + bool(titles)):
        numbers = [cell.isascii() and cell.isdecimal() for cell in row]
        if len(row) != 2 or not any(numbers):
            raise ValueError(f"{path}, row {number}: expected name,output, got {row}")
        first = output_first if all(numbers) else numbers[0]
        name, output = (row[1], row[0]) if first else (row[0], row[1])
        pairs.append((name, int(output)))
    return pairs


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
