"""The one gate for weights of all formats: floating numbers, finite once they are what is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class NotNumbers:
    """Stands for an entry of a file that is no array of plain numbers: sparse, quantised, ...

    Attributes:
      dtype: what it is, in the words of its format.
      shape: as far as it has one.
    """

    dtype: str
    shape: tuple[int, ...] = ()


def as_float32(path: Path, arrays: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The entries that a model uses, as ``float32``.

    Args:
      path: of the file, for the error.
      arrays: entry -> array of any dtype, or :class:`NotNumbers`.
      names: of the entries that are used.

    Raises:
      ValueError: for entries that are not floating numbers of 16, 32 or 64 bits (integers,
        booleans, 8-bit floats, quantised or sparse tensors are none), or that are NaN or infinite
        as float32: names them.
    """
    other = [f"{name} ({arrays[name].dtype})" for name in names if not _is_floating(arrays[name])]
    if other:
        raise ValueError(
            f"{path}: expected weights of floating numbers (float16, bfloat16, float32, float64), "
            f"got others. {listed('other kinds', other)}Save the weights as they were before they "
            "were quantised or converted"
        )
    with np.errstate(over="ignore"):
        found = {name: np.asarray(arrays[name]).astype(np.float32) for name in names}
    broken = [name for name in names if not np.isfinite(found[name]).all()]
    if broken:
        too_large = [name for name in broken if _is_finite(arrays[name])]
        why = listed("too large for float32", too_large) if too_large else ""
        broken = [name for name in broken if name not in set(too_large)]
        raise ValueError(
            f"{path}: expected finite weights. {listed('NaN or infinite', broken)}{why}".rstrip()
        )
    return found


def listed(what: str, names: Sequence[str]) -> str:
    """``"what: a, b, ... (9 in all). "``; nothing for no names."""
    if not names:
        return ""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}. "


def _is_floating(array: Any) -> bool:
    dtype = getattr(array, "dtype", None)
    return dtype == ml_dtypes.bfloat16 or (
        isinstance(dtype, np.dtype) and np.issubdtype(dtype, np.floating)
    )


def _is_finite(array: NDArray[Any]) -> bool:
    return bool(np.isfinite(array.astype(np.longdouble)).all())
