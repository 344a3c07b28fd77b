"""Literal, slow transcriptions for pair covers (soundness, 2.5). Nothing imports certmask_jax."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np


def pair_cover_rule(labels: Any, hidden: np.ndarray, ties: str = "largest", need: Any = all) -> int:
    """For every location, in turn: if all masks that hide it say one label, that; else majority.

    ``labels int[N]``, ``hidden bool[N, L]``. ``need=any`` is the mutant: a location settles the
    label of any mask that hides it.
    """
    labels = [int(v) for v in labels]
    for location in range(hidden.shape[1]):
        inside = [v for v, hides in zip(labels, hidden[:, location], strict=True) if hides]
        for z in sorted(set(inside)):
            if z >= 0 and need(v == z for v in inside):
                return z
    counts = Counter(v for v in labels if v >= 0)
    if not counts:
        return -1
    most = max(counts.values())
    leaders = [z for z, c in counts.items() if c == most]
    return max(leaders) if ties == "largest" else min(leaders)


def settled_labels(labels: Any, hidden: np.ndarray) -> set[int]:
    """Every label that some location settles."""
    settled = set()
    for location in range(hidden.shape[1]):
        inside = {int(v) for v, hides in zip(labels, hidden[:, location], strict=True) if hides}
        if len(inside) == 1:
            settled |= inside
    return settled


def rules_of_many(rows: np.ndarray, hidden: np.ndarray, classes: int, ties: str) -> np.ndarray:
    """The same rule for many rows ``int[M, N]`` at once, for exhaustion: ``int[M]``."""
    votes = np.stack([(rows == z).sum(axis=1) for z in range(classes)], axis=1)
    if ties == "largest":
        answer = classes - 1 - votes[:, ::-1].argmax(axis=1)
    else:
        answer = votes.argmax(axis=1)
    for location in range(hidden.shape[1]):
        inside = rows[:, hidden[:, location]]
        agree = (inside == inside[:, :1]).all(axis=1)
        answer = np.where(agree, inside[:, 0], answer)
    return answer


def robust(row: Any, hidden: np.ndarray, y: int, classes: int, ties: str) -> bool:
    """The table adversary by exhaustion over ``rules_of_many``."""
    for location in np.unique(hidden, axis=1).T:
        free = np.flatnonzero(~location)
        picks = np.array(list(itertools.product(range(classes), repeat=len(free))), dtype=int)
        rows = np.repeat(np.asarray(row)[None], len(picks), axis=0)
        rows[:, free] = picks
        if (rules_of_many(rows, hidden, classes, ties) != y).any():
            return False
    return True


def unpaired(hidden: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of locations that no mask hides together, one pair at a time."""
    count = hidden.shape[1]
    return [
        (a, b)
        for a in range(count)
        for b in range(a, count)
        if not any(mask[a] and mask[b] for mask in hidden)
    ]


def is_affine_plane(lines: Any, q: int) -> bool:
    """q^2 points, q^2 + q lines of q points, every two points on exactly one line."""
    lines = [set(map(int, line)) for line in lines]
    points = set().union(*lines)
    return (
        len(points) == q * q
        and len(lines) == q * q + q
        and all(len(line) == q for line in lines)
        and all(
            sum(a in line and b in line for line in lines) == 1
            for a, b in itertools.combinations(sorted(points), 2)
        )
    )
