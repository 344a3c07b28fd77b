"""The one gate for weights of all formats: floating numbers, finite once they are what is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from certmask_jax._text import some
from certmask_jax.weights.names import Arrays
from certmask_jax.weights.stored import Entry

FLOATING = ("float16", "bfloat16", "float32", "float64")
"""Kinds of numbers that weights are stored in here."""

_SHOWN = 8


def check_kinds(path: Path, entries: Mapping[str, Entry]) -> None:
    """``ValueError`` naming every entry that is not stored in one of ``FLOATING``.

    Whole numbers, truth values, dates, quantised and 8-bit floating numbers mean something that
    only the program that wrote them knows (a scale, an offset); a cast would make other weights.
    """
    other = [f"{name} ({e.kind})" for name, e in entries.items() if e.kind not in FLOATING]
    if other:
        raise ValueError(
            f"{path}: expected weights of floating numbers ({', '.join(FLOATING)}), got others. "
            f"{listed('other kinds', other)}Save the weights as they were before they were "
            "quantised or converted"
        )


def read_floats(path: Path, entries: Mapping[str, Entry]) -> Arrays:
    """The arrays of entries that have passed ``check_kinds``, as ``float32``.

    Raises:
      ValueError: naming those with a NaN, an infinity, or a number that is infinite as float32.
    """
    floats: Arrays = {}
    broken: list[str] = []
    too_large: list[str] = []
    for name, entry in entries.items():
        array = np.asarray(entry.read())
        with np.errstate(over="ignore"):
            floats[name] = array.astype(np.float32)
        if not np.isfinite(floats[name]).all():
            lost = array.dtype.kind == "f" and bool(np.isfinite(array).all())
            (too_large if lost else broken).append(name)
    if broken or too_large:
        half = any(entries[name].kind == "float16" for name in broken)
        raise ValueError(
            f"{path}: expected finite weights. {listed('NaN or infinite', broken)}"
            f"{listed('too large for float32', too_large)}"
            f"{'float16 ends at 65504: save the weights in float32' if half else ''}".rstrip()
        )
    return floats


def listed(what: str, names: Sequence[str]) -> str:
    """``"what: a, b, ... (9 in all). "``; nothing for no names."""
    if not names:
        return ""
    return f"{what}: {some(names, _SHOWN)}. "
