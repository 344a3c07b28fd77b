"""What people call the classes of a data set, from files that come with it: ``n01440764`` is tench.

ImageNet names its classes by ids, and says in files beside its images what these are. Nothing is
downloaded and no such list is part of this package.
"""

from __future__ import annotations

import collections
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from certmask_jax._text import encodable, json_of, some, text_in
from certmask_jax.data.class_mapping import wnid

FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "imagenet_class_index.json")
"""What data sets of ImageNet's classes call such a file."""

_ABOVE = 4  # folders: LOC_synset_mapping.txt lies beside ILSVRC, images in ILSVRC/Data/CLS-LOC/val


def read(
    path: Path, names: Sequence[str], *, outputs: Sequence[int] | None = None
) -> tuple[str, ...]:
    """The names of classes for people.

    Args:
      path: text with a line for each class, ``n01440764 tench, Tinca tinca`` (as ImageNet's
        ``LOC_synset_mapping.txt``), ``id,name`` or ``0,name`` (also ; or tabs), or only a name, the
        first of output 0; or JSON: ``{"id": "name"}``, ``{"0": "name"}``, ``{"0": ["id", "name"]}``
        or ``["name 0", ...]``.
      names: of the outputs of a model, as a run has them; "" where there is none.
      outputs: which outputs of a larger model these are, where a run kept some alone.

    Returns:
      A name for each of ``names``: up to the first comma, with the id behind it where two classes
      are called alike; what the file does not know stays as it is.

    Raises:
      FileNotFoundError: when it is not there.
      ValueError: for what cannot be read, or knows none of the classes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected names of classes, found no file")
    text = text_in(path)
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        by_id, by_number = _of_json(path, text)
    else:
        by_id, by_number = _of_lines(text, names)
    places = range(len(names)) if outputs is None else outputs
    fits = len(by_number) == len(names) if outputs is None else max(outputs) < len(by_number)
    if by_number and not by_id and not fits:
        raise ValueError(
            f"{path}: expected a name for each of the {len(names)} classes of the run, in their "
            f"order, got {len(by_number)}"
        )
    titles = [
        _title(name, by_id) or (by_number[place] if place < len(by_number) else "")
        for name, place in zip(names, places, strict=True)
    ]
    if not any(titles):
        raise ValueError(
            f"{path}: expected names of the classes of the run ({some(list(filter(None, names)))}),"
            " got none of these"
        )
    return _told_apart(titles, names)


def find(data_dir: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    """The names for people that lie in a data set's folder or above it; None where none do.

    It is looked for only where classes are called by ImageNet's ids.
    """
    if not any(map(wnid, names)):
        return None
    whole = data_dir.absolute()  # a path as it was typed may name none of the folders above
    for folder in (whole, *whole.parents[:_ABOVE]):
        for name in FILES:
            if (folder / name).is_file():
                try:
                    return read(folder / name, names)
                except (ValueError, OSError):  # of something else: ids are shown
                    continue
    return None


def _of_json(path: Path, text: str) -> tuple[dict[str, str], list[str]]:
    try:
        content = json_of(text)
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON of names ({error})") from error
    if isinstance(content, list) and all(isinstance(one, str) for one in content):
        return {}, [encodable(one) for one in content]
    by_id: dict[str, str] = {}
    by_number: dict[int, str] = {}
    entries: list[tuple[str, Any]] = (
        list(content.items()) if isinstance(content, dict) else [("", content)]
    )
    for key, value in entries:
        parts: list[Any] = [value] if isinstance(value, str) else value
        if not isinstance(parts, list) or not parts or not all(isinstance(p, str) for p in parts):
            raise ValueError(
                f'{path}: expected {{"id": "name"}} or {{"0": ["id", "name"]}}, got {key!r}: '
                f"{value!r}"
            )
        if len(parts) > 1:
            by_id[encodable(parts[0])] = encodable(parts[1])
        elif key.isdecimal():
            by_number[int(key)] = encodable(parts[0])
        else:
            by_id[encodable(key)] = encodable(parts[0])
    if not _is_gapless(by_number):
        return by_id | {str(number): title for number, title in by_number.items()}, []
    return by_id, [by_number[number] for number in range(len(by_number))]


def _of_lines(text: str, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    lines = [encodable(line.strip()) for line in text.splitlines() if line.strip()]
    by_id = {}
    for line in lines:
        first, _, rest = line.replace("\t", " ").partition(" ")
        if wnid(first) == first.lower() and rest.strip():
            by_id[first.lower()] = rest.strip()
    if len(by_id) == len(lines):
        return by_id, []
    known = {part for name in names for part in (name, *name.split("/"))}
    known |= set(filter(None, map(wnid, known)))
    for delimiter in ",;\t":
        try:
            rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
        except csv.Error:
            continue
        pairs = {row[0].strip(): row[1].strip() for row in rows if len(row) >= 2}
        if known & set(pairs):
            return pairs, []
        numbered = {int(key): title for key, title in pairs.items() if key.isdecimal()}
        titled = not rows[0][0].strip().isdecimal()
        if numbered and _is_gapless(numbered) and len(numbered) == len(lines) - titled:
            return {}, [numbered[number] for number in range(len(numbered))]
    return {}, lines


def _is_gapless(by_number: Mapping[int, str]) -> bool:
    """Whether each output has a name, from 0 to the last."""
    return sorted(by_number) == list(range(len(by_number)))


def _title(name: str, by_id: Mapping[str, str]) -> str:
    """The title of a class, or of several that share an output."""
    if name in by_id:
        return by_id[name]
    parts = name.split("/")
    titles = [by_id.get(part) or by_id.get(wnid(part) or "") for part in parts]
    return " / ".join(_short(one) for one in titles if one) if all(titles) else ""


def _short(title: str) -> str:
    return title.partition(",")[0].strip()


def _told_apart(titles: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    short = [_short(title) or name for title, name in zip(titles, names, strict=True)]
    count = collections.Counter(short)
    return tuple(
        f"{one} ({name})" if count[one] > 1 and name and name != one else one
        for one, name in zip(short, names, strict=True)
    )
