"""Files that say which output of a model each class is."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from certmask_jax.text import encodable


def read_class_index(path: Path) -> dict[str, int]:
    """Name -> output, from a file.

    JSON: ``{"name": 3}``; ``{"3": "name"}`` or ``{"3": ["n02085620", "Chihuahua"]}`` (Keras's,
    all names); or ``["name 0", "name 1", ...]``. Else text: ``name,3`` in every line (also ; or
    tabs, a first line of titles may be there), or a name in every line, the first of which is 0.

    Raises:
      FileNotFoundError: when it is not there.
      ValueError: for anything else, or a name with two outputs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a class index, found no file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got other bytes ({error})") from error
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        try:
            pairs = _of_json(json.loads(text))
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


def _of_json(found: Any) -> list[tuple[str, int]]:
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return [(name, number) for number, name in enumerate(found)]
    if not isinstance(found, dict):
        raise ValueError(f"got a {type(found).__name__}")
    pairs = []
    for key, value in found.items():
        if isinstance(value, int) and not isinstance(value, bool):
            pairs.append((key, value))
            continue
        names = [value] if isinstance(value, str) else value
        if not (key.isdecimal() and isinstance(names, list) and all(map(_is_text, names))):
            raise ValueError(f"got {key!r}: {value!r}")
        pairs += [(name, int(key)) for name in names]
    return pairs


def _of_lines(path: Path, text: str) -> list[tuple[str, int]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    delimiter = max(",;\t", key=lines[-1].count)
    if delimiter not in lines[-1]:
        return [(line.strip(), number) for number, line in enumerate(lines)]
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    ]
    if len(rows) > 1 and not any(cell.isdecimal() for cell in rows[0]):
        rows = rows[1:]
    pairs = []
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or (row[0].isdecimal() == row[1].isdecimal() and not row[1].isdecimal()):
            raise ValueError(f"{path}, row {number}: expected name,output, got {row}")
        name, output = row if row[1].isdecimal() else (row[1], row[0])
        pairs.append((name, int(output)))
    return pairs


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
