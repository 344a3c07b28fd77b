"""Keys of specs such as ``double_masking:masks_per_axis=6``: name, reader, default, one line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from certmask_jax.masks.geometry import as_size


@dataclasses.dataclass(frozen=True)
class Key:
    """One key that an entry of a table takes.

    Attributes:
      name: as it is typed.
      read: from what is typed to the value; ``ValueError`` says what was expected.
      about: what it means, in a line.
      default: as it would be typed; empty where the builder has none, or chooses.
      argument: what the builder calls it, where that is not ``name``.
    """

    name: str
    read: Callable[[str], Any]
    about: str
    default: str = ""
    argument: str = ""


def values(keys: Iterable[Key], given: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for a builder: those of the keys that are given, read.

    Raises:
      ValueError: naming a key whose value cannot be read.
    """
    read_values = {}
    for key in keys:
        if key.name in given:
            text = given[key.name]
            try:
                read_values[key.argument or key.name] = key.read(text)
            except ValueError as error:
                raise ValueError(f"{key.name}: cannot read {text!r} ({error})") from error
    return read_values


def pairs(text: str, where: str) -> tuple[tuple[str, str], ...]:
    """``"key=value,..."`` as keys and values; ``ValueError`` begins with ``where``."""
    by_key: dict[str, str] = {}
    for item in text.split(",") if text else ():
        key, equals, value = item.partition("=")
        if not equals or not key or not value or key in by_key:
            raise ValueError(f"{where}: expected key=value,key=value (each key once), got {item!r}")
        by_key[key] = value
    return tuple(by_key.items())


def size(text: str) -> int | tuple[int, int]:
    """``"5"`` -> 5, ``"5x9"`` -> (5, 9): height x width in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(is_number(part) and int(part) > 0 for part in parts):
        raise ValueError(f"expected pixels such as 5 or 5x9 (height x width), got {text!r}")
    numbers = tuple(int(part) for part in parts)
    return as_size(numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1]))


def counts(text: str) -> int | tuple[int, int]:
    """``"6"`` -> 6, ``"6x4"`` -> (6, 4): how many down and across."""
    try:
        return size(text)
    except ValueError:
        raise ValueError(f"expected a count such as 6, or 6x4 (down x across), got {text!r}") from (
            None
        )


def is_number(text: str) -> bool:
    """Whether it is a whole number in plain digits, of a size that can be a number of pixels."""
    return re.fullmatch(r"\s*[0-9]{1,9}\s*", text) is not None


def flag(text: str) -> bool:
    """``"true"`` or ``"false"``, also yes and no, 1 and 0."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError(f"expected true or false, got {text!r}")
