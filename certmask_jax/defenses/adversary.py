"""The table adversary by exhaustion: the strongest attacker a certificate may assume.

A patch at one location; every masked image that does not hide it gets whatever label the attacker
likes, every masked image that hides it keeps its clean label. Small cases only: the work is
``num_classes ** (free masked images)``. It is the oracle that every closed form is held against,
and lets users audit a rule of their own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.defenses.defense import ALERT, Guarantee
from certmask_jax.defenses.over_tables import Row, RowRule
from certmask_jax.tables.prediction_table import check_labels

_MAX_CHOICES = 1 << 22
_ROWS_AT_ONCE = 1 << 10


@functools.lru_cache(maxsize=64)
def _compiled(rule: RowRule, num_classes: int) -> Callable[[Array, Array], Array]:
    """The rule over many rows; the same function object for the same rule compiles once."""
    return jax.jit(jax.vmap(lambda p, c: rule(Row(p, c), num_classes)))


@reproducible()
def worst_case(
    rule: RowRule,
    predictions: ArrayLike,
    hides: ArrayLike,
    label: int,
    *,
    num_classes: int,
    guarantee: Guarantee = Guarantee.RECOVERY,
    confidences: ArrayLike | None = None,
    confidence_choices: Sequence[float] = (1.0,),
) -> bool:
    """Whether ``rule`` survives every choice of the table adversary on one image.

    Args:
      rule: ``(Row, num_classes) -> label or ALERT``, traceable by JAX.
      predictions: ``int[V]``, the labels of the clean image's masked images.
      hides: ``bool[L, V]``, which masked images hide the patch at each of L locations.
      label: the true label.
      num_classes: K; the adversary chooses labels in ``[0, K)``.
      guarantee: recovery: every outcome is the true label. Detection: every outcome is the true
        label or an alert, and the outcome on the clean row is the true label.
      confidences: ``float[V]`` of the clean rows; all 1 by default.
      confidence_choices: confidences that the adversary may give to a free masked image.

    Raises:
      ValueError: when there are more than about four million choices at one location.
    """
    clean = np.asarray(predictions, dtype=np.int32)
    trust = np.ones(clean.shape) if confidences is None else np.asarray(confidences)
    hidden = np.atleast_2d(np.asarray(hides, dtype=np.bool_))
    if clean.ndim != 1 or trust.shape != clean.shape or hidden.shape[1:] != clean.shape:
        raise ValueError(
            "adversary: expected predictions [V], confidences [V] and hides [L, V], got shapes "
            f"{clean.shape}, {trust.shape} and {hidden.shape}"
        )
    check_labels(np.asarray([label]), 1, num_classes)
    answers = _compiled(rule, num_classes)

    def outcomes(rows: NDArray[np.int32], trusts: NDArray[np.float64]) -> NDArray[np.int32]:
        answers_so_far = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):  # one shape, so one compilation
            pad = ((0, max(0, start + _ROWS_AT_ONCE - len(rows))), (0, 0))
            part = slice(start, start + _ROWS_AT_ONCE)
            block = answers(
                jnp.asarray(np.pad(rows[part], pad)),
                jnp.asarray(np.pad(trusts[part], pad), dtype=jnp.float32),
            )
            answers_so_far.append(np.asarray(block)[: len(rows[part])])
        return np.concatenate(answers_so_far)

    allowed = [label] if guarantee == Guarantee.RECOVERY else [label, ALERT]
    if outcomes(clean[None], trust[None])[0] != label:
        return False
    choices = list(itertools.product(range(num_classes), confidence_choices))
    for location in np.unique(hidden, axis=0):
        free = np.flatnonzero(~location)
        total = len(choices) ** len(free)
        if total > _MAX_CHOICES:
            raise ValueError(
                f"adversary: expected a small case, got {len(free)} free masked images with "
                f"{len(choices)} choices each, {total:.3g} in all (at most {_MAX_CHOICES})"
            )
        picks = np.indices((len(choices),) * len(free)).reshape(len(free), total).T
        rows = np.repeat(clean[None], total, axis=0)
        trusts = np.repeat(trust[None], total, axis=0)
        rows[:, free] = np.asarray([z for z, _ in choices], dtype=np.int32)[picks]
        trusts[:, free] = np.asarray([c for _, c in choices])[picks]
        if not np.isin(outcomes(rows, trusts), allowed).all():
            return False
    return True
