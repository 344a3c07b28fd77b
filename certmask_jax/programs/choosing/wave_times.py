"""What answers take in milliseconds, from the time of a chunk on this machine, measured once.

A guarded classifier answers an image in waves: what it asks for at once goes through the devices in
chunks of a few compiled sizes, and an empty place in a chunk costs what a full one does. So the
waves of an answer, which a table tells, and the time of a chunk of each size are its time, but for
what the host does between them.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import json_of, words_of
from certmask_jax.files import whole_files
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.engine import Engine

FILE = "milliseconds.json"
_ROUNDS, _MOST_ROUNDS = 5, 25
_SECONDS = 5.0  # after which no more rounds than the least are begun


@dataclasses.dataclass(frozen=True)
class WaveTimes:
    """Milliseconds of a chunk of masked images of one image.

    Attributes:
      sizes: of chunks that were timed, ascending.
      milliseconds: of each, upload of the image included.
      ladder: sizes that every guard has, ascending, beside the one for its own first wave.
      devices: that share a chunk, of whose number sizes are multiples.
    """

    sizes: tuple[int, ...]
    milliseconds: tuple[float, ...]
    ladder: tuple[int, ...]
    devices: int = 1

    def of_answer(self, waves: Sequence[int], first: int) -> float:
        """Milliseconds of an answer.

        Args:
          waves: how many masked images it asks for at once, one number a wave.
          first: the first wave of the defense, for which its guard has a program of its own.
        """
        few = -(-first // self.devices) * self.devices
        sizes = chunk_sizes.with_size(self.ladder, few)
        total = 0.0
        for waiting in waves:
            while waiting > 0:
                taken = min(waiting, chunk_sizes.next_items(waiting, sizes))
                places = chunk_sizes.slots(taken, sizes)
                total += float(np.interp(places, self.sizes, self.milliseconds))
                waiting -= taken
        return total


def measured(
    engine: Engine,
    image: NDArray[np.uint8],
    least: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> WaveTimes:
    """Times a chunk of each size, in turn, after one that is not counted; medians.

    A smaller chunk that took longer than a larger one, as other work on the machine has it, counts
    as the larger one.

    Args:
      engine: the model on at least one masked image; ``by_items``.
      image: ``uint8[1, h, w, c]``, a real one.
      least: the smallest first wave of all guards; sizes between are interpolated.
      clock: in seconds.
    """
    ladder = engine.chunk_sizes
    engine = engine.for_few(least)
    sizes = engine.chunk_sizes
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    began = clock()
    for number in range(_MOST_ROUNDS + 1):
        if number > _ROUNDS and clock() - began > _SECONDS:
            break
        for size in sizes:
            columns = np.arange(size) % len(engine.masked_images)
            started = clock()
            outputs = engine.evaluate(engine.upload(image), np.zeros(size, np.intp), columns)
            np.asarray(outputs.predictions)
            if number:
                seconds[size].append(clock() - started)
    medians = [1e3 * statistics.median(of) for of in seconds.values()]
    ascending = np.minimum.accumulate(medians[::-1])[::-1].tolist()
    return WaveTimes(sizes, tuple(ascending), ladder, engine.mesh.size)


def kept(folder: AnyPath, name: str, measure: Callable[[], WaveTimes]) -> WaveTimes:
    """The times of a model variant, as an earlier session wrote them, or measured and written.

    A choice that goes on counts by the times that it began with. ``name`` tells it from others that
    may have been begun in the same folder.

    Raises:
      ValueError: when the file is damaged.
    """
    file = folder / FILE
    try:
        known = dict(json_of(file.read_bytes()))
        if name in known:
            one = known[name]
            chunks = {int(size): float(ms) for size, ms in one["chunks"].items()}
            ladder = tuple(map(int, one["ladder"]))
            return WaveTimes(tuple(chunks), tuple(chunks.values()), ladder, int(one["devices"]))
    except FileNotFoundError:
        known = {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: is damaged ({words_of(error)}); remove it to measure anew"
        ) from error
    times = measure()
    folder.mkdir(parents=True, exist_ok=True)
    content = {**known, name: as_json(times)}
    whole_files.write_text(file, json.dumps(content, indent=1))
    return times


def as_json(times: WaveTimes) -> dict[str, Any]:
    """``chunks``, size -> milliseconds, and the other members."""
    chunks = dict(zip(map(str, times.sizes), times.milliseconds, strict=True))
    return {"chunks": chunks, "ladder": list(times.ladder), "devices": times.devices}
