"""Lists of work items through an engine in whole chunks, the next one while the last one runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.engine import Engine, Indices, Told
from certmask_jax.tables.outputs import Outputs


def evaluate_items(
    engine: Engine,
    images: Any,
    image_of: Indices,
    columns: Indices,
    progress: Told | None = None,
) -> Outputs:
    """``Engine.evaluate`` for one that is ``by_items``.

    Args:
      engine: sends them.
      images: ``uint8[B, h, w, c]``, or as the engine uploaded them.
      image_of, columns: ``int[W]``, see ``Flight.send``.
      progress: see ``Told``.

    Returns:
      NumPy arrays ``[W]``.
    """
    return _streamed(
        engine, images, len(image_of), lambda part: (image_of[part], columns[part]), progress
    )


def table_by_items(engine: Engine, images: Any, progress: Told | None = None) -> Outputs:
    """``Engine.table`` for one that is ``by_items``: image by image, NumPy arrays ``[B, V]``."""
    width, count = len(engine.masked_images), len(images)

    def work(part: slice) -> tuple[Indices, Indices]:
        return np.divmod(np.arange(part.start, part.stop), width)

    flat = _streamed(engine, images, count * width, work, progress)
    return Outputs(*(np.asarray(column).reshape(count, width) for column in flat))


def _streamed(
    engine: Engine,
    images: Any,
    items: int,
    work: Callable[[slice], tuple[Indices, Indices]],
    progress: Told | None,
) -> Outputs:
    """Sends ``items`` work items; ``work`` gives image and column of some of them."""
    results = Outputs.unknown((items,))
    flight = engine.flight(images)
    taken: deque[int] = deque()
    sent, received = 0, 0
    while received < items:
        while sent < items and flight.has_room:
            part = slice(sent, sent + chunk_sizes.next_items(items - sent, engine.chunk_sizes))
            taken.append(flight.send(*work(part)))
            sent = part.stop
        outputs = flight.receive()
        count = len(outputs.predictions)
        for result, output in zip(results, outputs, strict=True):
            result[received : received + count] = output
        received += count
        slots = taken.popleft()
        if progress is not None:
            progress(count, slots)
    return results
