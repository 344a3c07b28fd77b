"""Early exit: of many images, only the masked images that can still change an answer or a verdict.

Every image advances in waves of its own: it names what matters most to it, waits for that, and
names more. The work of all images is packed into full chunks of one fixed shape, and the next chunk
is sent while one runs. What is evaluated for an image depends on that image alone (not on its
neighbours, the others or the devices), and how it is packed on the images that are given together
alone, so a run that is stopped and resumed does the same work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen, each_once
from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.engine import Engine
from certmask_jax.tables.outputs import Outputs

# For each defense an image asks for a quarter of what it knows already: more would look at what the
# ones before may make needless; fewer would end in many small waves, as one that is certified needs
# all. What it knows for other defenses does not count, or with many of them each would ask for all.
_LEAST_A_WAVE = 8
_SHARE_A_WAVE = 4


class Question(NamedTuple):
    """A defense, and where its masked images stand among the engine's: ``int[V_defense]``."""

    defense: Defense
    columns: NDArray[np.integer[Any]]


def evaluate(
    engine: Engine,
    images: Any,
    questions: Sequence[Question],
    labels: NDArray[np.int32] | None,
    *,
    always: Sequence[int] = (),
    progress: Callable[[int, int, int], None] | None = None,
) -> Outputs:
    """Evaluates what decides the questions, image by image.

    Args:
      engine: the model on V masked images. One that is not ``by_items`` evaluates everything: that
        takes less.
      images: ``uint8[B, h, w, c]``, B at most ``engine.images_at_once()``, or as uploaded.
      questions: the defenses to decide.
      labels: true labels ``int32[B]``: answers and verdicts are decided. None: the answers alone,
        and all that may matter to them is evaluated at once, in the fewest rounds.
      always: columns that are evaluated in any case.
      progress: called with the number of entries settled (evaluated, or found needless), of those
        evaluated, and of the slots that these took, since the last call.

    Returns:
      NumPy arrays ``[B, V]``; ``UNKNOWN``, an infinite margin and confidence 0 where nothing was
      evaluated.
    """
    if not engine.by_items:
        told = None if progress is None else (lambda count, slots: progress(count, count, slots))
        return engine.table(images, told)
    shape = (len(images), len(engine.masked_images))
    outputs_so_far = Outputs.unknown(shape)
    known = np.zeros(shape, np.bool_)
    queue = _Queue()
    awaited = np.zeros(shape[0], np.int64)  # how much of its wave each image waits for

    def asks_more(image: int) -> bool:
        label = None if labels is None else int(labels[image])
        seen = Seen.in_row(outputs_so_far, image, known[image])
        wanted = next_wave(seen, questions, label, always)
        queue.add(image, wanted)
        awaited[image] = len(wanted)
        return len(wanted) > 0

    finished = sum(not asks_more(image) for image in range(shape[0]))
    if progress is not None and finished:
        progress(finished * shape[1], 0, 0)
    flight = engine.flight(images)
    sent: deque[tuple[_Work, int]] = deque()
    while queue.length or len(flight):
        # Whole chunks while there is work for them; a smaller one only rather than none.
        while flight.has_room and queue.length >= (engine.chunk if len(flight) else 1):
            work = queue.next(chunk_sizes.next_items(queue.length, engine.chunk_sizes))
            sent.append((work, flight.send(*work)))
        outputs = flight.receive()
        (image_of, columns), slots = sent.popleft()
        for column, output in zip(outputs_so_far, outputs, strict=True):
            column[image_of, columns] = output
        known[image_of, columns] = True
        settled = len(image_of)
        served = np.bincount(image_of, minlength=len(awaited))
        awaited -= served
        for image in np.flatnonzero((served > 0) & (awaited == 0)):
            if not asks_more(int(image)):
                settled += int((~known[image]).sum())
        if progress is not None:
            progress(settled, len(image_of), slots)
    return outputs_so_far


class _Work(NamedTuple):
    """Work items, one chunk at most."""

    image_of: NDArray[np.integer[Any]]  # [W]
    columns: NDArray[np.integer[Any]]  # [W]


class _Queue:
    """Work that waits for a chunk, in the order in which images asked for it."""

    def __init__(self) -> None:
        self.length = 0
        self._waves: deque[tuple[int, NDArray[np.integer[Any]]]] = deque()

    def add(self, image: int, columns: NDArray[np.integer[Any]]) -> None:
        if len(columns):
            self._waves.append((image, columns))
            self.length += len(columns)

    def next(self, items: int) -> _Work:
        """The first of what waits; ``items`` is at most ``length``."""
        parts: list[tuple[int, NDArray[np.integer[Any]]]] = []
        room = items
        while room and self._waves:
            image, columns = self._waves.popleft()
            if len(columns) > room:
                self._waves.appendleft((image, columns[room:]))
            parts.append((image, columns[:room]))
            room -= len(parts[-1][1])
        self.length -= items - room
        counts = [len(columns) for _, columns in parts]
        image_of = np.repeat([image for image, _ in parts], counts)
        return _Work(image_of, np.concatenate([columns for _, columns in parts]))


def next_wave(
    seen: Seen, questions: Sequence[Question], label: int | None, always: Sequence[int]
) -> NDArray[np.integer[Any]]:
    """What one image asks for next: columns, none twice.

    Everything at first, and where the answer alone is asked for; later, of each defense, a quarter
    of what is known for it, but 8 columns at least.

    Args:
      seen: what is known of the image, of all columns.
      questions: the defenses to decide.
      label: the true label; None for the answers alone.
      always: columns that are evaluated in any case.
    """
    begun = bool(seen.known.any())
    wanted: list[NDArray[np.integer[Any]]] = [np.array(() if begun else always, np.intp)]
    for defense, columns in questions:
        own = seen.of(columns)
        open_columns = columns[defense.open_columns(own, label)]
        # All of a first round matters; later ones tell which of the rest do.
        most = max(_LEAST_A_WAVE, int(own.known.sum()) // _SHARE_A_WAVE)
        wanted.append(open_columns[:most] if begun and label is not None else open_columns)
    return each_once(np.concatenate(wanted))
