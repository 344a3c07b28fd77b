"""Votes: who has most of them, and who wins where several have."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

Ties = Literal["largest", "smallest"]
"""Which label wins when several have most votes."""


def check_ties(ties: str) -> None:
    """``ValueError`` unless ``ties`` is one of the two orders that rules can break ties in."""
    if ties not in ("largest", "smallest"):
        raise ValueError(f"ties: expected 'largest' or 'smallest' (label), got {ties!r}")


def preference(num_classes: int, ties: str) -> Array:
    """``int32[K]``: which label wins a tie, the highest preference first."""
    order = jnp.arange(num_classes, dtype=jnp.int32)
    return order if ties == "largest" else order[::-1]


def count_votes(labels: Array, weights: Array, num_classes: int) -> Array:
    """``int32[K]`` votes for each class; ``NO_LABEL`` votes for none.

    ``labels int32[V]``, ``weights int32[V]``.
    """
    classes = jnp.where(labels < 0, num_classes, labels)
    empty = jnp.zeros(num_classes, dtype=jnp.int32)
    return empty.at[classes].add(weights, mode="drop")


def majority(counts: Array, ties: str) -> Array:
    """The class with most of ``counts int32[K]``; -1 when nobody voted."""
    num_classes = counts.shape[0]
    key = counts * num_classes + preference(num_classes, ties)
    return jnp.where(counts.max() > 0, key.argmax().astype(jnp.int32), -1)


def majority_label(labels: Array, ties: str) -> Array:
    """The label that most of ``labels int32[N]`` are; -1 when none is a label (0 or more).

    The same as ``majority`` of their counts, for any number of classes.
    """
    valid = labels >= 0
    same = (labels[:, None] == labels[None, :]) & valid[:, None]
    counts = same.sum(axis=1)
    most = valid & (counts == counts.max())
    if ties == "largest":
        return jnp.where(most, labels, -1).max()
    above = np.iinfo(labels.dtype).max
    least = jnp.where(most, labels, above).min()
    return jnp.where(valid.any(), least, -1)
