"""The independent oracle: literal, slow transcriptions of each paper, in NumPy and plain Python.

Nothing here imports certmask_jax. Where a paper is wrong, the statement that was proved takes its
place and the docstring says so.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

ALERT = -2


def paint(boxes: Any, image_size: tuple[int, int]) -> np.ndarray:
    """One mask's hidden pixels, by slicing: ``bool[h, w]``."""
    hidden = np.zeros(image_size, dtype=bool)
    for top, left, bottom, right in np.asarray(boxes):
        hidden[top:bottom, left:right] = True
    return hidden


def hides(boxes: Any, image_size: tuple[int, int], patch_size: tuple[int, int]) -> np.ndarray:
    """Definition 1 of both papers, pixel by pixel: ``bool[N, Ph, Pw]``."""
    (h, w), (ph, pw) = image_size, patch_size
    covers = np.zeros((len(boxes), h - ph + 1, w - pw + 1), dtype=bool)
    for number, mask in enumerate(boxes):
        hidden = paint(mask, image_size)
        for row in range(h - ph + 1):
            for col in range(w - pw + 1):
                covers[number, row, col] = all(
                    hidden[y, x] for y in range(row, row + ph) for x in range(col, col + pw)
                )
    return covers


def coverage(boxes: Any, image_size: tuple[int, int], patch_size: tuple[int, int]) -> np.ndarray:
    """Masks that hide each location."""
    return hides(boxes, image_size, patch_size).sum(axis=0)


def patchcleanser_boxes(
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    masks_per_axis: int | None = None,
    stride: int | None = None,
) -> list[tuple[int, int, int, int]]:
    """PatchCleanser, Eq. 1-3, and how its program ends an axis: the last mask at the border."""
    axes = []
    for n, p in zip(image_size, patch_size, strict=True):
        s = math.ceil((n - p + 1) / masks_per_axis) if stride is None else stride
        m = min(p + s - 1, n)
        starts = []
        start = 0
        while start + m <= n:
            starts.append(start)
            start += s
        if starts[-1] + m != n:
            starts.append(n - m)
        axes.append([(a, a + m) for a in starts])
    return [(t, left, b, right) for (t, b) in axes[0] for (left, right) in axes[1]]


def certmask_centres(n: int, p: int, q: int, m: int) -> list[int]:
    """CertMask, Eq. 5 on one axis: starts of ceil(n m / (q - p)) masks centred at i (q - p) / m."""
    stride = Fraction(q - p, m)
    count = math.ceil(Fraction(n) / stride)
    return [math.floor(i * stride - Fraction(q, 2)) for i in range(count)]


def exact_k_fold_starts(n: int, p: int, q: int, k: int, spread: str) -> list[int]:
    """The exact k-fold set on one axis (soundness, 1.4)."""
    e, locations = q - p + 1, n - p + 1
    if spread == "even":
        residues = [j * e // k for j in range(k)]
    else:
        s = math.ceil(locations / e) * e - locations
        residues = [(e - 1 - s + j) % e for j in range(k)]
    return [b - (e - 1) for b in range(locations + e - 1) if b % e in residues]


def minimum_k_fold(n: int, p: int, q: int, k: int) -> int:
    """Fewest masks (repetition and overhang allowed) that are k-fold on one axis, by trying."""
    locations, e = n - p + 1, q - p + 1
    starts = range(-(e - 1), locations)
    for count in itertools.count(1):
        for chosen in itertools.combinations_with_replacement(starts, count):
            if all(sum(s <= x < s + e for s in chosen) >= k for x in range(locations)):
                return count
    raise AssertionError


def _most_frequent(labels: Any, ties: str) -> int:
    counts = Counter(int(v) for v in labels)
    most = max(counts.values())
    leaders = [z for z, c in counts.items() if c == most]
    return max(leaders) if ties == "largest" else min(leaders)


def double_masking(table: np.ndarray, ties: str = "largest") -> int:
    """PatchCleanser, Algorithm 1."""
    one_mask = [int(table[i, i]) for i in range(len(table))]
    if len(set(one_mask)) == 1:
        return one_mask[0]
    most = _most_frequent(one_mask, ties)
    for i, label in enumerate(one_mask):
        if label != most and all(int(v) == label for v in table[i]):
            return label
    return most


def patchcure(table: np.ndarray, base: int) -> int:
    """PatchCURE's double masking, as its program goes through the masks."""
    one_mask = [int(table[i, i]) for i in range(len(table))]
    if all(label == base for label in one_mask):
        return int(base)
    for i, label in enumerate(one_mask):
        if label == base:
            continue
        if all(int(v) == label for v in table[i]):
            return label
    return int(base)


def challenger_masking(table: np.ndarray) -> int:
    """PatchCleanser, Appendix C; a challenger that does not win retires (so that it ends)."""
    one_mask = [int(table[i, i]) for i in range(len(table))]
    playing = list(range(len(table)))
    candidate = 0
    while len({one_mask[i] for i in playing}) > 1:
        challenger = next(i for i in playing if one_mask[i] != one_mask[candidate])
        if int(table[candidate, challenger]) == one_mask[challenger]:
            playing.remove(candidate)
            candidate = challenger
        else:
            playing.remove(challenger)
    return one_mask[candidate]


def two_mask_correct(table: np.ndarray, y: int) -> bool:
    """PatchCleanser, Algorithm 2."""
    return all(int(v) == y for v in np.asarray(table).ravel())


def good_rows(table: np.ndarray, y: int, hiding: np.ndarray) -> bool:
    """Soundness, 3.2: every location (column of ``hiding bool[N, L]``) has a good row."""
    good = [all(int(v) == y for v in row) for row in table]
    return all(
        any(good[i] and hiding[i, loc] for i in range(len(table))) for loc in range(hiding.shape[1])
    )


def certmask_rule(votes: Any, k: int, ties: str = "largest") -> int:
    """CertMask, Figure 1. Several classes with exactly k votes (the paper is silent): majority."""
    votes = [int(v) for v in votes]
    if len(set(votes)) == 1:
        return votes[0]
    exactly_k = [z for z, c in Counter(votes).items() if c == k]
    if len(exactly_k) == 1:
        return exactly_k[0]
    return _most_frequent(votes, ties)


def tolerant_detection(votes: Any, t: int) -> int:
    """Soundness, 2.3: the label of at least N - t votes, else an alert."""
    for z, c in Counter(int(v) for v in votes).items():
        if c >= len(votes) - t:
            return z
    return ALERT


def tolerant_certificate(votes: Any, y: int, hiding: np.ndarray, t: int, num_classes: int) -> bool:
    """Soundness, 2.3: for every location and z != y, c(l) - (z votes in C(l)) > t."""
    for loc in range(hiding.shape[1]):
        inside = [int(v) for v, h in zip(votes, hiding[:, loc], strict=True) if h]
        for z in range(num_classes):
            if z != y and not len(inside) - inside.count(z) > t:
                return False
    return True


def minority_reports(clean: int, votes: Any, confidences: Any, tau: float) -> int:
    """The one-mask detector of PatchCleanser's authors."""
    for vote, confidence in zip(votes, confidences, strict=True):
        if vote != clean and confidence > tau:
            return ALERT
    return int(clean)


def minority_reports_provable(clean: int, votes: Any, conf: Any, y: int, tau: float) -> bool:
    """What the authors call provable: all labels true, all confidences at least tau."""
    return clean == y and all(v == y for v in votes) and all(c >= tau for c in conf)


def table_adversary(
    rule: Callable[..., int],
    row: Any,
    hidden: np.ndarray,
    y: int,
    num_classes: int,
    guarantee: str = "recovery",
    confidences: Any = None,
) -> bool:
    """Robustness by exhaustion: every location, every choice for what does not hide the patch.

    ``row int[V]``, ``hidden bool[V, L]``; with confidences, the attacker also picks them from
    {0, 1}, and ``rule`` takes (row, confidences).
    """
    row = [int(v) for v in row]

    def outcome(labels: list[int], trust: list[float] | None) -> int:
        return rule(np.array(labels)) if trust is None else rule(np.array(labels), trust)

    if guarantee == "detection" and outcome(row, confidences) != y:
        return False
    allowed = {y} if guarantee == "recovery" else {y, ALERT}
    choices = list(itertools.product(range(num_classes), (0.0, 1.0) if confidences else (None,)))
    for location in {tuple(hidden[:, loc].tolist()) for loc in range(hidden.shape[1])}:
        free = [i for i, hides_it in enumerate(location) if not hides_it]
        for pick in itertools.product(choices, repeat=len(free)):
            labels, trust = list(row), None if confidences is None else list(confidences)
            for i, (label, confidence) in zip(free, pick, strict=True):
                labels[i] = label
                if trust is not None:
                    trust[i] = confidence
            if outcome(labels, trust) not in allowed:
                return False
    return True
