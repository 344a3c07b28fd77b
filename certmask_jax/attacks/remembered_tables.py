"""Tables of logits that are asked for twice: when goals are chosen, and when a search begins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 1 << 27
"""Of all tables that are remembered together."""


class RememberedTables:
    """All logits of some images, computed once for each image while there is room.

    Args:
      compute: ``uint8[B, h, w, c]`` -> ``float32[B, V, K]``, each image's its own.
      most_bytes: of what is remembered; the tables asked for longest ago are forgotten first.
    """

    def __init__(
        self,
        compute: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        *,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._compute, self._most_bytes = compute, most_bytes
        self._known: dict[bytes, NDArray[np.float32]] = {}

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``uint8[B, h, w, c]`` -> ``float32[B, V, K]``; only new images are computed."""
        keys = [image.tobytes() for image in images]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new or not keys:
            computed = self._compute(images[new])
            self._known |= {keys[row]: table for row, table in zip(new, computed, strict=True)}
            if not keys:
                return computed
        for key in keys:
            self._known[key] = self._known.pop(key)  # the last asked for is the last forgotten
        tables = np.stack([self._known[key] for key in keys])
        room = max(1, self._most_bytes // (tables[0].nbytes + images[0].nbytes))
        for key in list(self._known)[:-room]:
            del self._known[key]
        return tables
