"""Rules and proofs of one image, run over the rows of a table: jitted, vmapped, block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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


@reproducible()
def reduced(
    defense: OfOneImage, question: str, table: PredictionTable, labels: ArrayLike | None
) -> NDArray[Any]:
    """The answer to a question for each of T images: ``int32[T]`` or ``bool[T]``.

    Args:
      defense: what is asked.
      question: ``rule``, ``certificate``, ``worst_case``, or the name of a condition.
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
    cost = max(defense.row_cost, len(own.masked_images))
    rows = int(np.clip(_NUMBERS_AT_ONCE // cost, 1, _MAX_ROWS_AT_ONCE))
    rows = min(rows, 1 << max(0, len(own) - 1).bit_length())  # few shapes for small batches
    arrays = (*(np.asarray(a) for a in (own.predictions, own.margins, own.confidences)), true)
    results = []
    for start in range(0, len(own), rows):
        part = [array[start : start + rows] for array in arrays]
        lacking = rows - len(part[0])  # one shape, one compilation
        padded = [np.pad(a, ((0, lacking), *((0, 0),) * (a.ndim - 1))) for a in part]
        found = _reduced(defense, question, table.num_classes, *padded)
        results.append(np.asarray(found)[: rows - lacking])
    return np.concatenate(results) if results else np.zeros(0, dtype=np.int32)


def traced(
    defense: OfOneImage, question: str, table: PredictionTable, labels: ArrayLike | None
) -> Array:
    """A pure function to be traced that gives what ``reduced`` does; a scalar for one image."""
    columns = table.columns(defense.masked_images)
    arrays = [jnp.asarray(column)[..., columns] for column in table]
    true = jnp.zeros(arrays[0].shape[:-1], jnp.int32) if labels is None else jnp.asarray(labels)
    one = functools.partial(_of_row, defense, question, table.num_classes)
    each: Callable[..., Array] = one if arrays[0].ndim == 1 else jax.vmap(one)
    return each(*arrays, true.astype(jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _reduced(
    defense: OfOneImage,
    question: str,
    num_classes: int,
    predictions: Array,
    margins: Array,
    confidences: Array,
    labels: Array,
) -> Array:
    one = functools.partial(_of_row, defense, question, num_classes)
    return jax.vmap(one)(predictions, margins, confidences, labels)


def _of_row(
    defense: OfOneImage,
    question: str,
    num_classes: int,
    predictions: Array,
    margins: Array,
    confidences: Array,
    label: Array,
) -> Array:
    # What was not evaluated does not matter (undecided), so it may be any label.
    labels = jnp.where(predictions == UNKNOWN, 0, predictions).astype(jnp.int32)
    trust = confidences.astype(jnp.float32)
    if question == "rule":
        return defense.row_rule(Row(labels, trust), num_classes).astype(jnp.int32)
    sure = (margins > 0) & (predictions != NO_LABEL)
    if not defense.needs_all_sure:
        labels = jnp.where(sure, labels, NO_LABEL)
    proofs = {
        **defense.row_conditions,
        "certificate": defense.row_certificate,
        "worst_case": defense.row_worst_case,
    }
    proved = proofs[question](Row(labels, trust), label, num_classes)
    return proved & sure.all() if defense.needs_all_sure else proved
