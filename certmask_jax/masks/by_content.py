"""Values that hold arrays: equal and hashable by their content, so that it can be a key."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


class ByContent:
    """A base of frozen dataclasses with ``eq=False`` whose arrays nobody writes to.

    Two of one class are equal when their fields are; arrays when they have the same dtype, shape
    and numbers. The hash is computed once, and does not travel when the value is pickled.
    """

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        pairs = zip(_fields(self).values(), _fields(other).values(), strict=True)
        return hash(self) == hash(other) and all(_is_same(one, two) for one, two in pairs)

    def __hash__(self) -> int:
        if "_hash" not in self.__dict__:
            content = tuple(_hashable(value) for value in _fields(self).values())
            object.__setattr__(self, "_hash", hash((type(self).__qualname__, content)))
        known: int = self.__dict__["_hash"]
        return known

    def __getstate__(self) -> dict[str, Any]:
        return _fields(self)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _hashable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return value


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)
