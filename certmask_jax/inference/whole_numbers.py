"""Whole numbers as they are given, of Python or of NumPy; True is none of them, and nor is 3.0."""

from __future__ import annotations

import operator
from typing import Any


def as_whole(value: Any) -> int | None:
    """The number as an int; None where it is no whole number."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def checked_whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """The number as an int; ``ValueError``, naming it, unless it is whole and in these bounds."""
    number = as_whole(value)
    if number is None or number < least or (most is not None and number > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value!r}")
    return number
