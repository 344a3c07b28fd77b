"""The defended classifier as one pure function of images, for ``jit`` and ``jax.export``.

``defended`` decides on the host which masked images to look at next. Here that is part of the
program, image by image, so what is answered does not depend on the batch: all that matters at first
is evaluated, and the rest only for an image whose first labels do not settle the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.defense import ALERT, Defense, Seen, rule
from certmask_jax.inference.masked_pass import masked_logits, outputs_of
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables.outputs import SCHEMA, Outputs
from certmask_jax.tables.prediction_table import PredictionTable


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """What is evaluated of an image at first, and what may follow.

    Attributes:
      first: ``int[F]``, columns of the defense's masked images.
      rest: ``int[V - F]``, the others: evaluated unless all of the first agree.
    """

    first: NDArray[np.intp]
    rest: NDArray[np.intp]


def rounds_of(defense: Defense, num_classes: int) -> Rounds:
    """The rounds of a defense: one where labels that agree do not settle its answer, else two.

    That they do is asked of ``defense.undecided`` for every class, so it is no guess.
    """
    count = len(defense.masked_images)
    first = np.sort(defense.open_columns(Seen.nothing(count), None))
    rest = np.setdiff1d(np.arange(count), first)
    known = np.zeros(count, np.bool_)
    known[first] = True
    for label in range(num_classes):
        if not len(rest):
            break
        predictions = np.where(known, label, SCHEMA["predictions"].unknown).astype(np.int16)
        # Whatever the margins: what a rule asks is labels, and confidences where it says so.
        seen = Seen(predictions, np.where(known, 1, np.inf).astype(np.float16), known)
        if defense.undecided(seen, None).any():
            return Rounds(np.arange(count), np.arange(0))
    return Rounds(first, rest)


def guard_program(
    apply_fn: ApplyFn,
    params: Any,
    defense: Defense,
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    masks_at_once: int = 16,
) -> Callable[[Array], tuple[Array, Array]]:
    """A function ``uint8[B, h, w, c]`` -> labels ``int32[B]`` and alerts ``bool[B]``.

    Labels are those of ``defense.rule`` of the whole table: ``ALERT`` (-2) for an alert, -1 where
    logits were not finite. Images are looked at one after another, ``masks_at_once`` masked images
    together, so memory does not depend on B.

    Args:
      apply_fn, params: any model; ``params`` become constants of the program.
      defense: what guards it.
      num_classes: K of the model.
      preprocessing: as for certification.
      masks_at_once: masked images of an image in one forward pass.

    Raises:
      ValueError: for ``masks_at_once`` below 1.
    """
    if masks_at_once < 1:
        raise ValueError(f"masks_at_once: expected at least 1, got {masks_at_once}")
    rounds = rounds_of(defense, num_classes)
    masks = defense.masked_images

    def evaluated(image: Array, columns: NDArray[np.intp], so_far: Outputs) -> Outputs:
        """What is known with these columns too."""
        some = min(masks_at_once, len(columns))
        lacking = -len(columns) % some
        whole = np.concatenate([columns, np.repeat(columns[:1], lacking)])
        boxes = jnp.asarray(masks.boxes[whole].reshape(-1, some, *masks.boxes.shape[1:]))

        def chunk(boxes: Array) -> Outputs:
            logits = masked_logits(
                apply_fn,
                params,
                image[None],
                boxes,
                preprocessing=preprocessing,
                image_of=np.zeros(some, np.int32),
            )
            return outputs_of(logits)

        outputs = jax.lax.map(chunk, boxes)
        return Outputs(
            *(
                known.at[columns].set(new.reshape(-1)[: len(columns)].astype(known.dtype))
                for known, new in zip(so_far, outputs, strict=True)
            )
        )

    def answer(image: Array) -> Array:
        nothing = Outputs.unknown((len(masks),)).map(jnp.asarray)
        outputs = evaluated(image, rounds.first, nothing)
        if len(rounds.rest):
            labels = outputs.predictions[rounds.first]
            is_settled = (labels >= 0).all() & (labels == labels[0]).all()
            is_settled &= (outputs.margins[rounds.first] > 0).all()
            outputs = jax.lax.cond(
                is_settled, lambda: outputs, lambda: evaluated(image, rounds.rest, outputs)
            )
        row = outputs.map(lambda column: column[None])
        return rule(defense, PredictionTable.of(row, masks, num_classes))[0].astype(jnp.int32)

    def guard(images: Array) -> tuple[Array, Array]:
        answers = jax.lax.map(answer, images)
        return answers, answers == ALERT

    return guard
