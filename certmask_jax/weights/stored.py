"""What a weights file holds, before its numbers are read: names, shapes, kinds of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.weights.cards import Card


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a file.

    Attributes:
      shape: of the array, in the file's layout.
      kind: what its numbers are: NumPy's name of the dtype (``"float32"``, ``"bfloat16"``), or
        words for what is no plain array (``"float32 sparse_coo"``).
      read: gives the array. Only for kinds that NumPy can hold.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], NDArray[Any]] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, array: NDArray[Any]) -> Entry:
        """An array that is in memory."""
        return cls(tuple(array.shape), kind_of(array.dtype), lambda: array)

    def laid_out(self, axes: tuple[int, ...]) -> Entry:
        """An entry with its axes in another order, as ``transpose`` takes it."""
        shape = tuple(self.shape[axis] for axis in axes)
        return Entry(shape, self.kind, lambda: self.read().transpose(axes))


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsFile:
    """A weights file that was opened by ``read``.

    Attributes:
      path: where it is.
      entries: its arrays by full name. What is nested has its place in front, with ``/`` between:
        ``state_dict/module.conv1.weight``, ``params/blocks_0/norm1/scale``.
      others: what lies in the file beside arrays, by full name: the name of its type.
      nested: whether the file has places apart, as a training state has, so that weights in one
        say nothing of another. A flat file is its weights and no more.
      asked: which set of weights the caller wants, where the file has several.
      card: what is said of the weights where they are from: model and preprocessing.
      source: where that is, for the provenance of results; empty for a file that was given.
    """

    path: Path
    entries: Mapping[str, Entry] = dataclasses.field(repr=False)
    others: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    nested: bool = False
    asked: str | None = None
    card: Card | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"WeightsFile({str(self.path)!r}, {len(self.entries)} arrays)"


def kind_of(dtype: np.dtype[Any]) -> str:
    """What numbers of a NumPy dtype are, whatever their byte order; see ``Entry``."""
    return dtype.name if dtype.kind == "f" else str(dtype)
