"""Chunks of masked images on their way through the devices."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.devices import AXIS
from certmask_jax.inference.engine import Indices
from certmask_jax.tables.outputs import Outputs

_CHUNKS_AT_ONCE = 2  # one runs and one waits; more only adds to the peak of memory


class ChunkFlight:
    """The flight (see ``engine.Flight``) of an engine that sends boxes to its program.

    Args:
      executable: of a number of items: ``(params, images, boxes, image_of) -> Outputs``.
      params, images: what it takes first, on the devices.
      mesh: the devices, over which items are split.
      boxes: ``int32[V, R', 4]``, of each masked image.
      boxes_per_mask: R of the program, at least R'.
      sizes: items of a program, ascending; fewer are filled up with items that hide nothing.
    """

    def __init__(
        self,
        executable: Callable[[int], Any],
        params: Any,
        images: Array,
        *,
        mesh: Mesh,
        boxes: NDArray[np.int32],
        boxes_per_mask: int,
        sizes: Sequence[int],
    ) -> None:
        self._executable = functools.cache(executable)  # looked up once a flight
        self._params = params
        self._images = images
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._boxes = boxes
        self._boxes_per_mask = boxes_per_mask
        self._is_apart = mesh.devices.flat[0].platform != "cpu"  # else in this memory already
        self._sizes = sizes
        self._sent: deque[tuple[int, Outputs]] = deque()

    def __len__(self) -> int:
        """Chunks that were sent and not received."""
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether another chunk should be sent before one is received."""
        return len(self._sent) < _CHUNKS_AT_ONCE

    def send(self, image_of: Indices, columns: Indices) -> int:
        """Starts work on ``image_of int[W]`` and ``columns int[W]``; gives the slots it takes."""
        count = len(columns)
        size = chunk_sizes.slots(count, self._sizes)
        boxes = np.zeros((size, self._boxes_per_mask, 4), np.int32)
        boxes[:count, : self._boxes.shape[1]] = self._boxes[columns]
        images = np.zeros(size, np.int32)
        images[:count] = image_of
        on_devices = jax.device_put((boxes, images), self._split)
        executable = self._executable(size)
        with unguarded():
            outputs = executable(self._params, self._images, *on_devices)
            for output in outputs if self._is_apart else ():
                output.copy_to_host_async()
        self._sent.append((count, outputs))
        return size

    def receive(self) -> Outputs:
        """Waits for the chunk that was sent first: NumPy arrays ``[W]``."""
        count, outputs = self._sent.popleft()
        return Outputs(*(column[:count] for column in jax.device_get(outputs)))
