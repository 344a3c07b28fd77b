"""Certified sizes by brute force: each size by itself, whole tables, every attack.

Nothing here imports certmask_jax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import oracle


def _row(
    image: np.ndarray, unions: Sequence[np.ndarray], classify: Callable[[np.ndarray], int]
) -> list[int]:
    """The label of the image under each union of masks (``bool[h, w]``), hidden pixels zero."""
    return [classify(np.where(union, 0, image)) for union in unions]


def _hidden(unions: Sequence[np.ndarray], patch: tuple[int, int]) -> np.ndarray:
    """Which union hides the patch at which location, pixel by pixel: ``bool[V, L]``."""
    (h, w), (ph, pw) = unions[0].shape, patch
    corners = [(row, col) for row in range(h - ph + 1) for col in range(w - pw + 1)]
    return np.array([[union[r : r + ph, c : c + pw].all() for r, c in corners] for union in unions])


def double_masking_survives(
    image: np.ndarray,
    label: int,
    boxes: Any,
    patch: tuple[int, int],
    classify: Callable[[np.ndarray], int],
    num_classes: int,
) -> tuple[int, bool]:
    """Double masking's answer, and whether it is ``label`` whatever one patch of this size does."""
    masks = [oracle.paint([box], image.shape) for box in boxes]
    unions: list[np.ndarray] = []
    pair = np.empty((len(masks), len(masks)), dtype=int)
    for i, first in enumerate(masks):
        for j, second in enumerate(masks):
            union = first | second
            same = [v for v, other in enumerate(unions) if (other == union).all()]
            pair[i, j] = same[0] if same else len(unions)
            unions += [] if same else [union]
    row = _row(image, unions, classify)

    def rule(labels: np.ndarray) -> int:
        return oracle.double_masking(labels[pair])

    survives = oracle.table_adversary(rule, row, _hidden(unions, patch), label, num_classes)
    return rule(np.array(row)), survives


def detection_survives(
    image: np.ndarray,
    label: int,
    boxes: Any,
    patch: tuple[int, int],
    classify: Callable[[np.ndarray], int],
    num_classes: int,
) -> tuple[int, bool]:
    """The same for "the label that all masks say, or an alert" (soundness, 2.2)."""
    masks = [oracle.paint([box], image.shape) for box in boxes]
    row = _row(image, masks, classify)

    def rule(labels: np.ndarray) -> int:
        return oracle.tolerant_detection(labels, 0)

    hidden = _hidden(masks, patch)
    survives = oracle.table_adversary(rule, row, hidden, label, num_classes, "detection")
    return rule(np.array(row)), survives


def largest(certified: Sequence[bool]) -> int:
    """The number of the last size, from 1, at which an image is certified; 0 for none."""
    numbers = [number for number, is_certified in enumerate(certified, 1) if is_certified]
    return max(numbers, default=0)


def robust_on_every_table(
    answers: np.ndarray, tables: np.ndarray, hidden: np.ndarray, label: int, allowed: Sequence[int]
) -> np.ndarray:
    """The table adversary on *all* tables at once, by definition.

    Args:
      answers: what a rule says on each of ``tables int[M, V]``, all that there are.
      hidden: ``bool[V, L]``.
      allowed: answers with which the attacker has not won.

    Returns:
      ``bool[M]``: clean answer ``label``, and at no location is there a table that agrees on all
      that hides it and has an answer that is not allowed.
    """
    wrong = ~np.isin(answers, allowed)
    robust = answers == label
    for location in hidden.T:
        kept = tables[:, location]
        _, group = np.unique(kept, axis=0, return_inverse=True)
        lost = np.zeros(group.max() + 1, dtype=bool)
        lost[group[wrong]] = True
        robust &= ~lost[group]
    return robust
