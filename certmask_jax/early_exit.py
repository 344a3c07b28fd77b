"""Early exit: of many images, only the masked images that can still change an answer or a verdict.

Images advance together, in waves. In a wave every open image names what matters most to it, and the
work of all is packed into full chunks of one fixed shape, so that the devices never see a ragged
one but at the end. What is evaluated for an image depends on that image alone (not on its
neighbours, the block or the devices), so a run that is stopped and resumed does the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.defense import Defense, Seen
from certmask_jax.defenses.second_round import each_once
from certmask_jax.forward import MaskedForward, Outputs
from certmask_jax.masked_images import MaskedImages
from certmask_jax.prediction_table import UNKNOWN

# Of V masked images an image asks for this many a wave after its first: more would look at what the
# ones before may make needless, fewer would keep the devices waiting.
_LEAST_A_WAVE = 8
_WAVES = 64


class Question(NamedTuple):
    """A defense, and where its masked images stand among all that are there: ``int[V_defense]``."""

    defense: Defense
    columns: NDArray[np.integer[Any]]


def evaluate(
    forward: MaskedForward,
    images: NDArray[np.uint8],
    masks: MaskedImages,
    questions: Sequence[Question],
    labels: NDArray[np.int32] | None,
    *,
    always: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> Outputs:
    """Evaluates what decides the questions, image by image.

    Args:
      forward: the compiled model.
      images: ``uint8[B, h, w, c]``, B at most ``forward.images_at_once()``.
      masks: V masked images.
      questions: the defenses to decide.
      labels: true labels ``int32[B]``: answers and verdicts are decided. None: the answers alone,
        and all that may matter to them is evaluated at once, in the fewest rounds.
      always: columns that are evaluated in any case.
      progress: called with the number of entries settled (evaluated, or found needless) since the
        last call.

    Returns:
      NumPy arrays ``[B, V]``; ``UNKNOWN``, an infinite margin and confidence 0 where nothing was
      evaluated.
    """
    shape = (len(images), len(masks))
    predictions = np.full(shape, UNKNOWN, np.int16)
    margins = np.full(shape, np.inf, np.float16)
    confidences = np.zeros(shape, np.float16)
    known = np.zeros(shape, np.bool_)
    a_wave = max(_LEAST_A_WAVE, -(-shape[1] // _WAVES))
    settled = np.zeros(shape[0], np.int64)

    def wanted(image: np.intp) -> NDArray[np.integer[Any]]:
        first = not known[image].any()
        found: list[NDArray[np.integer[Any]]] = [np.array(always, np.intp)] if first else []
        for defense, columns in questions:
            seen = Seen(predictions[image, columns], margins[image, columns], known[image, columns])
            label = None if labels is None else int(labels[image])
            open_columns = columns[defense.open_columns(seen, label)]
            # All of a first round matters; later ones tell which of the rest do.
            found.append(open_columns if first or labels is None else open_columns[:a_wave])
        return each_once(np.concatenate(found))

    on_device = forward.upload(images)
    open_images = np.arange(shape[0])
    told = 0
    while len(open_images):
        parts = [wanted(image) for image in open_images]
        counts = np.array([len(part) for part in parts])
        mask_of, image_of = np.concatenate(parts), np.repeat(open_images, counts)
        settled[open_images[counts == 0]] = shape[1]
        if len(mask_of):
            # Whole chunks, or nearly: the last images wait for the next wave, each with all of its
            # work, so that no image's work depends on another's.
            whole = len(mask_of) // forward.chunk * forward.chunk or len(mask_of)
            ends = np.cumsum(counts)
            served = max(int(ends[counts > 0][0]), int(ends[ends <= whole].max(initial=0)))
            mask_of, image_of = mask_of[:served], image_of[:served]
        open_images = open_images[counts > 0]
        if len(mask_of):
            found = forward.labels(on_device, masks.boxes[mask_of], image_of)
            predictions[image_of, mask_of] = found.predictions
            margins[image_of, mask_of] = found.margins
            confidences[image_of, mask_of] = found.confidences
            known[image_of, mask_of] = True
            settled[open_images] = known[open_images].sum(axis=1)
        if progress is not None:
            progress(int(settled.sum()) - told)
            told = int(settled.sum())
    return Outputs(predictions, margins, confidences)  # type: ignore[arg-type]
