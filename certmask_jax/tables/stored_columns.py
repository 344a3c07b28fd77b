"""A column of a table on disk that stands in for an array: rows are read when they are asked."""

from __future__ import annotations

import math
import operator
import re
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from certmask_jax.files import storage
from certmask_jax.files.storage import AnyPath


class StoredColumn(np.lib.mixins.NDArrayOperatorsMixin):
    """A column, as an array of NumPy where it is used as one.

    Reading raises ``ValueError`` when a chunk is missing or damaged: its file, then ``remedy``.
    """

    def __init__(self, store: Any, folder: AnyPath, remedy: str) -> None:
        self._store = store
        self._folder = folder
        self._remedy = remedy
        self.shape: tuple[int, ...] = tuple(store.shape)
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        self.dtype: np.dtype[Any] = store.dtype.numpy_dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._read(slice(start, max(start, stop)))[(slice(None), *rest)]
        elif isinstance(rows, int | np.integer):
            number = range(len(self))[operator.index(rows)]
            return self._read(slice(number, number + 1))[(0, *rest)]
        return self._read(slice(0, len(self)))[key]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a column on disk: expected that a copy may be made, got copy=False")
        return self._read(slice(0, len(self))).astype(dtype or self.dtype, copy=False)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        loaded = [np.asarray(i) if isinstance(i, StoredColumn) else i for i in inputs]
        return getattr(ufunc, method)(*loaded, **options)

    def start(self, rows: slice) -> Any:
        """Begins to read rows; ``finish`` gives them."""
        return self._store[rows].read()

    def finish(self, started: Any) -> NDArray[Any]:
        """The rows that ``start`` began to read; raises as reading does."""
        try:
            return np.asarray(started.result())
        except ValueError as error:
            raise_os_error(error, self._folder)
            text = str(error).split("\n")[0]
            match = re.match(r'.*/(c/[\d/]+)"?(?:: | is missing)', text)
            file = self._folder / match[1] if match else self._folder
            reason = text[match.end() if match else 0 :][:120]
            what = "is missing" if text.endswith("is missing") else f"is damaged ({reason})"
            raise ValueError(f"{file}: {what}{self._remedy}") from error

    def _read(self, rows: slice) -> NDArray[Any]:
        return self.finish(self.start(rows))


def raise_os_error(error: Exception, folder: AnyPath) -> None:
    """Raises the ``OSError`` behind one of TensorStore's errors, if there is one."""
    own = storage.os_error(error, folder)
    if own is not None:
        raise own from error
