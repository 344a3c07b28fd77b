"""Work on masked images that are in groups, each with programs of its own, sent as one chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.chunk_flight import ChunkFlight
from certmask_jax.inference.engine import Indices
from certmask_jax.tables.outputs import Outputs


class GroupedFlight:
    """The flight (see ``engine.Flight``) of several, each for a group of the masked images.

    Args:
      flights: of each group.
      sizes: items of a chunk of each, ascending.
      group_of, place: ``int[V]``, of each masked image its group and its place there.
    """

    def __init__(
        self,
        flights: Sequence[ChunkFlight],
        sizes: Sequence[tuple[int, ...]],
        group_of: NDArray[np.intp],
        place: NDArray[np.intp],
    ) -> None:
        self._flights = flights
        self._sizes = sizes
        self._group_of = group_of
        self._place = place
        self._sent: deque[tuple[int, list[tuple[ChunkFlight, NDArray[np.intp]]]]] = deque()

    def __len__(self) -> int:
        """Chunks that were sent and not received."""
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether another chunk should be sent before one is received."""
        return len(self._sent) < 2  # one runs and one waits

    def send(self, image_of: Indices, columns: Indices) -> int:
        """Starts work on ``image_of int[W]`` and ``columns int[W]``; gives the slots it takes."""
        slots = 0
        parts: list[tuple[ChunkFlight, NDArray[np.intp]]] = []
        groups = self._group_of[columns]
        for number, (flight, sizes) in enumerate(zip(self._flights, self._sizes, strict=True)):
            waiting = np.flatnonzero(groups == number)
            while len(waiting):
                some = waiting[: chunk_sizes.next_items(len(waiting), sizes)]
                slots += flight.send(image_of[some], self._place[columns[some]])
                parts.append((flight, some))
                waiting = waiting[len(some) :]
        self._sent.append((len(columns), parts))
        return slots

    def receive(self) -> Outputs:
        """Waits for the chunk that was sent first: NumPy arrays ``[W]``."""
        count, parts = self._sent.popleft()
        outputs = Outputs.unknown((count,))
        for flight, some in parts:
            for column, said in zip(outputs, flight.receive(), strict=True):
                column[some] = said
        return outputs
