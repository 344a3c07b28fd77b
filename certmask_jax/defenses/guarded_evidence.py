"""What another device may make of evidence: logits that differ by less than half a margin guard.

An image that is certified under a margin guard E is answered and certified the same wherever all
its logits are less than E / 2 from those here (soundness, section 15). What an attack gains by
evidence only grows where evidence of the label falls and that of other classes rises, and rounding
and clipping keep the order of numbers. So it is enough to look at the label with the least that
its evidence may be, and at all other classes with the most.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.defenses.derandomized_smoothing import (
    shared_top_votes,
    threshold_votes,
    top_one_votes,
)
from certmask_jax.defenses.plain_arrays import AnyArray, as_given
from certmask_jax.defenses.quantised_evidence import Evidence, Grid, quantised_within

_MOST_GUARD = 64.0
"""Beyond it a softmax may be anything: its ``exp`` would leave the range of float32."""


def checked_guard(margin_guard: float) -> float:
    """The guard; ``ValueError`` unless it is a finite number of at least 0."""
    if not (math.isfinite(margin_guard) and margin_guard >= 0):
        raise ValueError(f"margin guard: expected a number of at least 0, got {margin_guard}")
    return float(margin_guard)


def against_label(least: AnyArray, most: AnyArray, labels: AnyArray) -> AnyArray:
    """The least of the label ``int[T]`` of each image, and the most of others: ``[T, ..., K]``."""
    host = not any(isinstance(one, Array) for one in (least, most, labels))
    xp: Any = np if host else jnp
    true = xp.asarray(labels).astype(np.int32).reshape((-1,) + (1,) * (least.ndim - 1))
    classes = xp.arange(least.shape[-1], dtype=np.int32).reshape((1,) * (least.ndim - 1) + (-1,))
    chosen: AnyArray = xp.where(classes == true, least, most)
    return chosen


def quantised_against(
    evidence: Evidence, grid: Grid, labels: AnyArray, margin_guard: float
) -> Evidence:
    """Evidence ``[T, ..., K]`` as integers that are worst for the labels, within half the guard."""
    return against_label(*quantised_within(evidence, grid, margin_guard / 2), labels)


def softmax_within(logits: AnyArray, margin_guard: float) -> tuple[Array, Array]:
    """The least and the most that the softmax of logits within half the guard is.

    The odds against a class are a sum of ``exp`` of differences, each of which moves by less than
    the guard. On top of that the softmax of either device may be wrong by a share of
    ``(K + 64) * 2**-23``, as adding K numbers in any order and 64 further roundings may make it.

    Args:
      logits: ``float[..., K]``.
      margin_guard: 0 or more.

    Returns:
      Two ``float32[..., K]`` in [0, 1]; at a guard of 0 both are the softmax itself.
    """
    given = jnp.asarray(logits, jnp.float32)
    if not margin_guard:
        plain = jax.nn.softmax(given, axis=-1)
        return plain, plain
    if margin_guard > _MOST_GUARD:
        return jnp.zeros_like(given), jnp.ones_like(given)
    return _softmax_within(given, float(np.float32(margin_guard)))


@jax.jit
def _softmax_within(logits: Array, margin_guard: Array | float) -> tuple[Array, Array]:
    classes = logits.shape[-1]
    wrong = (classes + 64) * 2.0**-22  # twice, for what is computed here is rounded too
    powers = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    best = jax.nn.one_hot(logits.argmax(axis=-1), classes, dtype=jnp.bool_)
    rest = jnp.where(best, 0, powers).sum(axis=-1, keepdims=True)
    others = jnp.where(best, rest, 1 + jnp.maximum(rest - powers, 0))
    worse = jnp.exp(margin_guard) * (1 + wrong)
    least = (1 - wrong) / (1 + others / powers * worse)
    most = (1 + wrong) / (1 + others / jnp.maximum(powers, 2.0**-100) / worse)
    return least, jnp.minimum(most, 1)


def votes_against(
    logits: AnyArray,
    labels: AnyArray,
    *,
    margin_guard: float,
    threshold: float | None = None,
    shared: bool = False,
) -> AnyArray:
    """Votes of bands that are worst for the labels, of logits within half the guard.

    A band votes for the label only if it does so for all such logits, and for another class if it
    does for any of them. ``derandomized_smoothing.worst_case`` of these votes then holds for the
    votes of all such logits.

    Args:
      logits: ``float[T, B, K]`` of each band.
      labels: ``int[T]``, the true classes.
      margin_guard: 0 or more.
      threshold: as of ``threshold_votes``; None: a vote for the best class.
      shared: whether all that are best have the vote, see ``shared_top_votes``; without threshold.

    Returns:
      ``bool[T, B, K]``.

    Raises:
      ValueError: for a guard below 0, or a threshold outside (0, 1].
    """
    guard = checked_guard(margin_guard)
    if threshold is not None:
        plain = threshold_votes(logits, threshold)
    else:
        plain = shared_top_votes(logits) if shared else top_one_votes(logits)
    if not guard:
        return plain
    given = jnp.asarray(logits, jnp.float32)
    if threshold is not None:
        least, most = softmax_within(given, guard)
        sure, possible = least >= threshold, most >= threshold
    else:
        sure, possible = _best_within(given, max(guard * (1 + 2.0**-20), 2.0**-100))
    votes = jnp.asarray(against_label(sure, possible, labels))
    return as_given(votes, logits, labels)


@jax.jit
def _best_within(logits: Array, wide: float | Array) -> tuple[Array, Array]:
    """Which classes are best alone for all logits within half of ``wide``, and which for some."""
    most = logits.max(axis=-1, keepdims=True)
    best = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=jnp.bool_)
    second = jnp.where(best, -jnp.inf, logits).max(axis=-1, keepdims=True)
    return best & (most - second > wide), most - logits <= wide
