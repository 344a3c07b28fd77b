"""The defended classifier as one pure function of images, for ``jit`` and ``jax.export``.

``defended`` decides on the host which masked images to look at next. Here that is part of the
program, a loop for each image: what the answer needs is evaluated, a few masked images at a time,
until nothing can change it. So what is answered does not depend on the batch, and neither does
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.defenses.defense import ALERT, Defense, Guarantee, certificate, rule
from certmask_jax.defenses.masking_only import check_masking
from certmask_jax.defenses.over_tables import Row
from certmask_jax.inference.masked_pass import masked_outputs
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables.outputs import NO_LABEL, Outputs
from certmask_jax.tables.prediction_table import PredictionTable

Guard = Callable[[Array], tuple[Array, ...]]
"""``uint8[B, h, w, c]`` -> labels ``int32[B]`` and alerts ``bool[B]``, and perhaps certified labels
``int32[B]``."""


def guard_program(
    apply_fn: ApplyFn,
    params: Any,
    defense: Defense,
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    masks_at_once: int = 16,
    certified: bool = False,
) -> Guard:
    """A function ``uint8[B, h, w, c]`` -> labels ``int32[B]`` and alerts ``bool[B]``.

    Labels are those of ``defense.rule`` of the whole table: ``ALERT`` (-2) for an alert, -1 where
    logits were not finite. Images are looked at one after another, so memory does not depend on B.

    Args:
      apply_fn, params: any model of JAX; ``params`` become constants of the program.
      defense: what guards it.
      num_classes: K of the model.
      preprocessing: as for certification.
      masks_at_once: masked images of an image in one forward pass, at most; fewer where the first
        round then fills all its passes.
      certified: also gives ``defense.certified_labels``, ``int32[B]``: the label where it is
        certified, else -1. The whole table of every image is evaluated for it.

    Raises:
      ValueError: for ``masks_at_once`` that is no whole number of at least 1, certified labels of a
        defense that detects, a defense whose rule JAX cannot trace, or what is no masking defense.
    """
    check_masking(defense)
    if not isinstance(masks_at_once, int | np.integer) or masks_at_once < 1:
        raise ValueError(
            f"masks_at_once: expected a whole number, at least 1, got {masks_at_once!r}"
        )
    if certified and defense.guarantee is not Guarantee.RECOVERY:
        raise ValueError(
            f"certified: expected a defense that recovers the label, got {defense.name}, which "
            "detects patches; leave it out"
        )
    masks = defense.masked_images
    check_traceable(defense, num_classes, certified=certified)

    def needs(outputs: Outputs, known: Array) -> Array:
        row = Row(outputs.predictions.astype(jnp.int32), outputs.confidences.astype(jnp.float32))
        return ~known if certified else defense.row_needs(row, known) & ~known

    with jax.ensure_compile_time_eval():
        first = int(needs(*_nothing(len(masks))).sum())
    at_once = first_round_filled(first, masks_at_once)

    def answer(image: Array) -> tuple[Array, ...]:
        def evaluate(columns: Array) -> Outputs:
            return masked_outputs(
                apply_fn,
                params,
                image[None],
                jnp.asarray(masks.boxes)[columns],
                preprocessing=preprocessing,
                image_of=jnp.zeros(at_once, jnp.int32),
            )

        outputs, _ = evaluated(evaluate, needs, len(masks), at_once)
        return _answers(defense, outputs, num_classes, certified=certified)

    def guard(images: Array) -> tuple[Array, ...]:
        labels, *more = jax.lax.map(answer, images)
        return labels, labels == ALERT, *more

    return guard


def evaluated(
    evaluate: Callable[[Array], Outputs],
    needs: Callable[[Outputs, Array], Array],
    count: int,
    at_once: int,
) -> tuple[Outputs, Array]:
    """What is known of one image once nothing more is needed, and which of it is known.

    Args:
      evaluate: columns ``int32[at_once]`` -> outputs ``[at_once]``; columns from ``count`` on fill
        it up, and what is said of them is dropped.
      needs: what is known so far, outputs ``[V]`` and ``bool[V]`` -> what is needed, ``bool[V]``;
        of it the first ``at_once`` are evaluated next. Nothing that is known already.
      count: V.
    """

    def step(state: tuple[Outputs, Array, Array]) -> tuple[Outputs, Array, Array]:
        so_far, known, needed = state
        columns = jnp.flatnonzero(needed, size=at_once, fill_value=count).astype(jnp.int32)
        new = evaluate(columns)
        so_far = Outputs(
            *(
                old.at[columns].set(said.astype(old.dtype), mode="drop")
                for old, said in zip(so_far, new, strict=True)
            )
        )
        known = known.at[columns].set(True, mode="drop")
        return so_far, known, needs(so_far, known)

    start = _nothing(count)
    outputs, known, _ = jax.lax.while_loop(
        lambda state: state[2].any(), step, (*start, needs(*start))
    )
    return outputs, known


def first_round_filled(first: int, most: int) -> int:
    """The smallest number at once that takes a first round in as few passes as ``most`` does."""
    return -(-first // -(-first // most))


def check_traceable(defense: Defense, num_classes: int, *, certified: bool = False) -> None:
    """``ValueError`` for a defense whose answers cannot be part of a program, with the reason."""
    if type(defense).rule is not Defense.rule or (
        certified and type(defense).certified_labels is not Defense.certified_labels
    ):
        raise ValueError(
            f"{defense.name}: expected a defense whose rule is its row_rule, which JAX traces, but "
            "it has a rule of its own for whole tables, which no program can hold"
        )
    outputs, known = _nothing(len(defense.masked_images))

    def asked(outputs: Outputs, known: Array) -> Any:
        row = Row(outputs.predictions.astype(jnp.int32), outputs.confidences.astype(jnp.float32))
        return _answers(defense, outputs, num_classes, certified=certified), defense.row_needs(
            row, known
        )

    try:
        jax.eval_shape(asked, outputs, known)
    except Exception as error:  # the defense's own, of any kind
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{defense.name}: expected a rule that JAX traces, as it becomes part of the program, "
            f"but it raised {type(error).__name__}: {why}"
        ) from error


def _answers(
    defense: Defense, outputs: Outputs, num_classes: int, *, certified: bool
) -> tuple[Array, ...]:
    """The label of one image, and its certified label where that is asked for."""
    row = outputs.map(lambda column: column[None])
    table = PredictionTable.of(row, defense.masked_images, num_classes)
    label = rule(defense, table).astype(jnp.int32)
    if not certified:
        return (label[0],)
    holds = certificate(defense, table, jnp.maximum(label, 0)) & (label >= 0)
    return label[0], jnp.where(holds, label, NO_LABEL)[0]


def _nothing(count: int) -> tuple[Outputs, Array]:
    """What is known of an image before any of its masked images is evaluated."""
    return Outputs.unknown((count,)).map(jnp.asarray), jnp.zeros(count, jnp.bool_)
