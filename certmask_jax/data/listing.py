"""Data sets of files: which there are, of which class, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Listing(NamedTuple):
    """T image files, before any is opened.

    Attributes:
      ids: what each is called in results: its path in the folder, each once.
      labels: ``int32[T]``, output of the model.
      sizes: ``int64[T]``, bytes.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int32]
    sizes: NDArray[np.int64]

    def take(self, chosen: Sequence[int] | NDArray[np.intp]) -> Listing:
        """Some of them, in the order of ``chosen``."""
        at = np.asarray(chosen, np.intp)
        return Listing(tuple(self.ids[i] for i in at), self.labels[at], self.sizes[at])


class ImageFile(NamedTuple):
    """One file of a data set."""

    path: Path
    image_id: str
    number: int  # of its class
    size: int  # bytes
