"""Scores of votes, and whether they are monotone, on which the exact worst case of votes rests."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

from certmask_jax._own_settings import reproducible

Score = Callable[[Array], Array]
"""``bool[V]``, which of the distinct masks say a label -> its score, a number; monotone.

Distinct masks stand in order of first appearance: all N masks, where none is listed twice.
"""

# How monotonicity is checked: all sets of few masks, else random chains of sets.
_ALL_SETS_UP_TO = 10
_CHAINS = 16


@reproducible()
def check_monotone(score: Score, num_masks: int) -> None:
    """``ValueError`` if a mask that is added to a set lowers its score, in any set tried here."""
    if num_masks <= _ALL_SETS_UP_TO:
        every = np.arange(1 << num_masks)[:, None] >> np.arange(num_masks) & 1
        smaller = np.repeat(every.astype(np.bool_), num_masks, axis=0)
        larger = smaller | np.tile(np.eye(num_masks, dtype=np.bool_), (len(every), 1))
    else:
        rng = np.random.default_rng(0)
        orders = rng.permuted(np.tile(np.arange(num_masks), (_CHAINS, 1)), axis=1)
        chains = orders[:, None, :] < np.arange(num_masks + 1)[None, :, None]
        smaller = chains[:, :-1].reshape(-1, num_masks)
        larger = chains[:, 1:].reshape(-1, num_masks)
    scores = jax.jit(jax.vmap(score))
    below, above = np.asarray(scores(smaller)), np.asarray(scores(larger))
    if below.shape != (len(smaller),):
        raise ValueError(
            f"score: expected one number for bool[{num_masks}], got shape {below.shape[1:]}"
        )
    falling = np.flatnonzero(~(below <= above))
    if len(falling):
        first = falling[0]
        (added,) = np.flatnonzero(larger[first] & ~smaller[first])
        raise ValueError(
            f"score: expected a monotone score, got {below[first]} for the masks "
            f"{np.flatnonzero(smaller[first]).tolist()} and {above[first]} with mask {added} "
            "added; the certificate holds only where another vote never lowers a score"
        )
