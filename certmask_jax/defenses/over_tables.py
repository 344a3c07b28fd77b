"""Rules and proofs of one image, run over the rows of a table: jitted, vmapped, block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import NO_LABEL, UNKNOWN
from certmask_jax.tables.prediction_table import PredictionTable, check_labels

# Rows are reduced in blocks whose intermediate arrays hold about this many numbers.
_NUMBERS_AT_ONCE = 1 << 25
_MAX_ROWS_AT_ONCE = 1024


class Row(NamedTuple):
    """One image's row of the prediction table, restricted to a defense's masked images."""

    predictions: Array  # int32[V]; NO_LABEL (-1) where logits were not finite
    confidences: Array  # float32[V]


RowRule = Callable[[Row, int], Array]
"""(row, num_classes) -> int32 label, or ALERT."""

RowProof = Callable[[Row, Array, int], Array]
"""(row, true label, num_classes) -> bool."""


class OfOneImage(Protocol):
    """A rule and its proofs for one image, and what they look at; every defense is one."""

    @property
    def masked_images(self) -> MaskedImages: ...
    @property
    def needs_all_sure(self) -> bool: ...
    @property
    def row_cost(self) -> int: ...
    @property
    def row_conditions(self) -> Mapping[str, RowProof]: ...
    def row_rule(self, row: Row, num_classes: int) -> Array: ...
    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array: ...
    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array: ...
    def __hash__(self) -> int: ...


RULE, CERTIFICATE, WORST_CASE = "rule", "certificate", "worst_case"
"""Questions that every defense answers, beside the conditions of its paper."""


@reproducible()
def reduced(
    defense: OfOneImage,
    questions: Sequence[str],
    table: PredictionTable,
    labels: ArrayLike | None,
) -> dict[str, NDArray[Any]]:
    """The answer to each question for each of T images: ``int32[T]`` or ``bool[T]``.

    Questions that are asked together are one program, which shares what they have in common.

    Args:
      defense: what is asked.
      questions: ``rule`` alone, or some of ``certificate``, ``worst_case`` and the conditions.
      table: of T images, with all masked images of the defense among its columns.
      labels: true labels ``int[T]``; None for the rule.

    Raises:
      ValueError: for labels that are not T classes; for a table that lacks masked images.
    """
    true = (
        np.zeros(len(table), np.int32)
        if labels is None
        else check_labels(labels, len(table), table.num_classes)
    )
    own = table.select(defense.masked_images)
    predictions, trust = np.asarray(own.predictions), np.asarray(own.confidences)
    # What was not evaluated does not matter (undecided), so it may be any label.
    predictions = np.where(predictions == UNKNOWN, 0, predictions).astype(np.int32)
    sure = np.ones_like(predictions, np.bool_) if labels is None else own.sure
    if not defense.needs_all_sure:  # to its proofs a tie is no label
        predictions, sure = np.where(sure, predictions, NO_LABEL), np.ones_like(sure)
    cost = max(defense.row_cost, len(own.masked_images))
    rows = int(np.clip(_NUMBERS_AT_ONCE // cost, 1, _MAX_ROWS_AT_ONCE))
    rows = min(rows, _shape_for(len(own)))
    asked, blocks = tuple(questions), []
    for start in range(0, len(own), rows):
        part = slice(start, start + rows)
        pad = (0, max(0, start + rows - len(own)))  # one shape, one compilation
        answers = _reduced(
            defense,
            asked,
            table.num_classes,
            np.pad(predictions[part], (pad, (0, 0))),
            np.pad(trust[part].astype(np.float32), (pad, (0, 0))),
            np.pad(true[part], pad),
        )
        blocks.append([np.asarray(answer)[: rows - pad[1]] for answer in answers])
    if not blocks:
        return {name: np.zeros(0, np.int32 if name == RULE else np.bool_) for name in asked}
    columns = dict(zip(asked, map(np.concatenate, zip(*blocks, strict=True)), strict=True))
    is_sure = sure.all(axis=1)
    return {
        name: values.astype(np.int32) if name == RULE else values.astype(np.bool_) & is_sure
        for name, values in columns.items()
    }


def _shape_for(rows: int) -> int:
    """The least power of 4 that is at least ``rows``: few shapes, each a program of its own."""
    return 1 << 2 * -(-max(0, rows - 1).bit_length() // 2)


def traced(
    defense: OfOneImage, question: str, table: PredictionTable, labels: ArrayLike | None
) -> Array:
    """A pure function to be traced that gives what ``reduced`` does; a scalar for one image."""
    columns = table.columns(defense.masked_images)
    predictions = jnp.asarray(table.predictions)[..., columns]
    margins, trust = (jnp.asarray(a)[..., columns] for a in (table.margins, table.confidences))
    known = jnp.where(predictions == UNKNOWN, 0, predictions).astype(jnp.int32)
    sure = (margins > 0) & (predictions != NO_LABEL)
    if question != RULE and not defense.needs_all_sure:
        known = jnp.where(sure, known, NO_LABEL)
    true = jnp.zeros(known.shape[:-1], jnp.int32) if labels is None else jnp.asarray(labels)
    one = functools.partial(_of_row, defense, (question,), table.num_classes)
    each: Callable[..., tuple[Array, ...]] = one if known.ndim == 1 else jax.vmap(one)
    (answer,) = each(known, trust.astype(jnp.float32), true.astype(jnp.int32))
    proves = question != RULE and defense.needs_all_sure
    return answer & sure.all(axis=-1) if proves else answer


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _reduced(
    defense: OfOneImage,
    questions: tuple[str, ...],
    num_classes: int,
    predictions: Array,
    confidences: Array,
    labels: Array,
) -> tuple[Array, ...]:
    one = functools.partial(_of_row, defense, questions, num_classes)
    return jax.vmap(one)(predictions, confidences, labels)


def _of_row(
    defense: OfOneImage,
    questions: tuple[str, ...],
    num_classes: int,
    predictions: Array,
    confidences: Array,
    label: Array,
) -> tuple[Array, ...]:
    row = Row(predictions, confidences)
    if questions == (RULE,):
        return (defense.row_rule(row, num_classes).astype(jnp.int32),)
    proofs = {
        **defense.row_conditions,
        CERTIFICATE: defense.row_certificate,
        WORST_CASE: defense.row_worst_case,
    }
    return tuple(proofs[question](row, label, num_classes) for question in questions)
