"""Double masking with two mask sets, and the table adversary over many rows at once: NumPy only.

Nothing here imports certmask_jax.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np


def two_rounds(one_mask: Any, table: Any, ties: str = "largest") -> int:
    """PatchCleanser, Algorithm 1, where the second round has masks of its own."""
    labels = [int(v) for v in one_mask]
    if len(set(labels)) == 1:
        return labels[0]
    counts = Counter(labels)
    leaders = [z for z, c in counts.items() if c == max(counts.values())]
    most = max(leaders) if ties == "largest" else min(leaders)
    for i, label in enumerate(labels):
        if label != most and all(int(v) == label for v in table[i]):
            return label
    return most


def two_rounds_of_rows(
    one_mask: np.ndarray, table: np.ndarray, num_classes: int, ties: str
) -> np.ndarray:
    """The same for ``one_mask [B, N1]`` and ``table [B, N1, N2]`` at once."""
    classes = np.arange(num_classes)
    counts = (one_mask[:, :, None] == classes).sum(axis=1)
    rank = classes if ties == "largest" else classes[::-1]
    most = (counts * num_classes + rank).argmax(axis=1)
    stands = (table == one_mask[:, :, None]).all(axis=2) & (one_mask != most[:, None])
    first = one_mask[np.arange(len(one_mask)), stands.argmax(axis=1)]
    return np.where(stands.any(axis=1), first, most)


def good_rows(one_mask: Any, table: Any, y: int, hiding: Any, second_hiding: Any) -> bool:
    """Good rows cover, and every row keeps an entry y: location by location, entry by entry.

    ``hiding [N1, L]``, ``second_hiding [N1, N2, L]`` (of the unions).
    """
    num_first, num_second = np.shape(table)
    for loc in range(np.shape(hiding)[1]):
        good = [
            i
            for i in range(num_first)
            if hiding[i, loc] and one_mask[i] == y and all(v == y for v in table[i])
        ]
        if not good:
            return False
        for r in range(num_first):
            kept = [int(table[r, j]) for j in range(num_second) if second_hiding[r, j, loc]]
            if y not in kept:
                return False
    return True


def table_adversary(
    rule: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    hidden: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """Recovery by exhaustion: ``bool[B]`` for ``rows int[B, V]`` and ``hidden bool[V, L]``.

    ``rule`` takes rows ``int[M, V]`` and gives labels ``[M]``.
    """
    robust = rule(rows) == labels
    for location in np.unique(hidden.T, axis=0):
        free = np.flatnonzero(~location)
        for pick in itertools.product(range(num_classes), repeat=len(free)):
            left = np.flatnonzero(robust)
            attacked = rows[left]
            attacked[:, free] = pick
            robust[left] = rule(attacked) == labels[left]
    return robust
