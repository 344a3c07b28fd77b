"""Votes of one round of masks, literally: sets of masks, location by location.

Nothing here imports certmask_jax. ``votes[i]`` is the label under mask i, masks that are listed
twice are there twice; ``hides bool[N, L]``, every location and not only those that matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Score = Callable[[set[int], Any], Any]


def plurality(says: set[int], hides: Any) -> int:
    """How many masks."""
    del hides
    return len(says)


def minimum_explanation(says: set[int], hides: Any) -> tuple[int, int]:
    """The least number of masks that hide a location and say something else, negated; votes."""
    errors = [
        sum(1 for i in range(len(hides)) if hides[i, loc] and i not in says)
        for loc in range(np.shape(hides)[1])
    ]
    return -min(errors), len(says)


def robust_masking(says: set[int], hides: Any) -> tuple[int, int]:
    """Votes less the largest window: those of masks that a patch at one location reaches; votes."""
    windows = [sum(1 for i in says if not hides[i, loc]) for loc in range(np.shape(hides)[1])]
    return len(says) - max(windows), len(says)


def rule(votes: Any, hides: Any, score: Score, num_classes: int, ties: str = "largest") -> int:
    """The label with the highest score."""
    scores = {
        z: score({i for i, v in enumerate(votes) if v == z}, hides) for z in range(num_classes)
    }
    best = max(scores.values())
    leaders = [z for z in range(num_classes) if scores[z] == best]
    return max(leaders) if ties == "largest" else min(leaders)


def robust(votes: Any, y: int, hides: Any, score: Score, num_classes: int) -> bool:
    """Soundness, section 6: phi(Y_l) > phi(Z_l) for every location and every z != y."""
    everyone = set(range(len(votes)))
    for loc in range(np.shape(hides)[1]):
        hiding = {i for i in everyone if hides[i, loc]}
        true = {i for i in hiding if votes[i] == y}
        for z in range(num_classes):
            wrong = {i for i in hiding if votes[i] == z} | (everyone - hiding)
            if z != y and not score(true, hides) > score(wrong, hides):
                return False
    return True


def plurality_margin(votes: Any, y: int, hides: Any, num_classes: int) -> bool:
    """n_y(C(l)) - n_z(C(l)) > N - c(l)."""
    for loc in range(np.shape(hides)[1]):
        inside = [int(v) for v, h in zip(votes, hides[:, loc], strict=True) if h]
        for z in range(num_classes):
            if z != y and not inside.count(y) - inside.count(z) > len(votes) - len(inside):
                return False
    return True
