"""Early exit: of many images, only the masked images that can still change an answer or a verdict.

Every image advances in waves of its own: it names what matters most to it, waits for that, and
names more. The work of all images is packed into full chunks of one fixed shape, and the next chunk
is sent while one runs. What is evaluated for an image depends on that image alone (not on its
neighbours, the block or the devices), and how it is packed on the block alone, so a run that is
stopped and resumed does the same work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.compiled import Outputs
from certmask_jax.defenses.defense import Defense, Seen
from certmask_jax.defenses.second_round import each_once
from certmask_jax.forward import MaskedForward, Uploaded
from certmask_jax.masked_images import MaskedImages
from certmask_jax.prediction_table import UNKNOWN

# An image asks for a quarter of what it knows already: more would look at what the ones before may
# make needless; fewer would end in many small waves, as an image that is certified needs all.
_LEAST_A_WAVE = 8
_SHARE_A_WAVE = 4


class Question(NamedTuple):
    """A defense, and where its masked images stand among all that are there: ``int[V_defense]``."""

    defense: Defense
    columns: NDArray[np.integer[Any]]


def evaluate(
    forward: MaskedForward,
    images: NDArray[np.uint8] | Uploaded,
    masks: MaskedImages,
    questions: Sequence[Question],
    labels: NDArray[np.int32] | None,
    *,
    always: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Outputs:
    """Evaluates what decides the questions, image by image.

    Args:
      forward: the compiled model.
      images: ``uint8[B, h, w, c]``, B at most ``forward.images_at_once()``, or as uploaded.
      masks: V masked images.
      questions: the defenses to decide.
      labels: true labels ``int32[B]``: answers and verdicts are decided. None: the answers alone,
        and all that may matter to them is evaluated at once, in the fewest rounds.
      always: columns that are evaluated in any case.
      progress: called with the number of entries settled (evaluated, or found needless) and of
        those evaluated since the last call.

    Returns:
      NumPy arrays ``[B, V]``; ``UNKNOWN``, an infinite margin and confidence 0 where nothing was
      evaluated.
    """
    shape = (len(images), len(masks))
    predictions = np.full(shape, UNKNOWN, np.int16)
    margins = np.full(shape, np.inf, np.float16)
    confidences = np.zeros(shape, np.float16)
    known = np.zeros(shape, np.bool_)
    # Work that waits for a chunk, image by image, and how much of its wave each image waits for.
    queue: deque[tuple[int, NDArray[np.integer[Any]]]] = deque()
    queued = 0
    awaited = np.zeros(shape[0], np.int64)

    def ask(image: int) -> bool:
        """Queues the next wave of an image; false when it needs no more."""
        nonlocal queued
        wanted = _wave(
            predictions[image], margins[image], known[image], questions,
            None if labels is None else int(labels[image]), always,
        )  # fmt: skip
        if len(wanted):
            queue.append((image, wanted))
            awaited[image] = len(wanted)
            queued += len(wanted)
        return len(wanted) > 0

    def next_chunk() -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]:
        nonlocal queued
        parts = []
        room = forward.chunk
        while room and queue:
            image, columns = queue.popleft()
            if len(columns) > room:
                queue.appendleft((image, columns[room:]))
            parts.append((image, columns[:room]))
            room -= len(parts[-1][1])
        queued -= forward.chunk - room
        counts = [len(columns) for _, columns in parts]
        return np.repeat([image for image, _ in parts], counts), np.concatenate(
            [columns for _, columns in parts]
        )

    finished = sum(not ask(image) for image in range(shape[0]))
    if progress is not None and finished:
        progress(finished * shape[1], 0)
    flight = forward.flight(images)
    sent: deque[tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]]] = deque()
    while queue or len(flight):
        # Whole chunks while there is work for them; a ragged one only rather than none.
        while flight.has_room and queue and (queued >= forward.chunk or not len(flight)):
            sent.append(next_chunk())
            image_of, mask_of = sent[-1]
            flight.send(masks.boxes[mask_of], image_of)
        outputs = flight.receive()
        image_of, mask_of = sent.popleft()
        predictions[image_of, mask_of] = outputs.predictions
        margins[image_of, mask_of] = outputs.margins
        confidences[image_of, mask_of] = outputs.confidences
        known[image_of, mask_of] = True
        settled = len(image_of)
        served, counts = np.unique(image_of, return_counts=True)
        awaited[served] -= counts
        for image in served[awaited[served] == 0]:
            if not ask(int(image)):
                settled += int((~known[image]).sum())
        if progress is not None:
            progress(settled, len(image_of))
    return Outputs(predictions, margins, confidences)  # type: ignore[arg-type]


def _wave(
    predictions: NDArray[np.int16],
    margins: NDArray[np.float16],
    known: NDArray[np.bool_],
    questions: Sequence[Question],
    label: int | None,
    always: Sequence[int],
) -> NDArray[np.integer[Any]]:
    """What one image asks for next: columns, none twice."""
    evaluated = int(known.sum())
    most = max(_LEAST_A_WAVE, evaluated // _SHARE_A_WAVE)
    found: list[NDArray[np.integer[Any]]] = [np.array(always if not evaluated else (), np.intp)]
    for defense, columns in questions:
        seen = Seen(predictions[columns], margins[columns], known[columns])
        open_columns = columns[defense.open_columns(seen, label)]
        # All of a first round matters; later ones tell which of the rest do.
        found.append(open_columns if not evaluated or label is None else open_columns[:most])
    return each_once(np.concatenate(found))
