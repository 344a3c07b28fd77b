"""Goals: which labels an attacker wants under which masks, so that a defense answers wrongly.

A patch at one place leaves alone what the masks say that hide it. All others are the attacker's in
a table, and a goal names labels for them. What the rule then answers is computed, not guessed: a
goal *wins* if the answer is wrong. Of an image that a worst case certifies no goal wins; there the
strongest that are known are tried all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.patched_pixels import Placement, shows
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee
from certmask_jax.tables.prediction_table import from_labels

ANY = -1
"""Stands where a masked image may say what it likes."""


class Goal(NamedTuple):
    """What to make of one image at one place.

    Attributes:
      place: ``int64[K, 4]``, height, width, row and column of each patch.
      wanted: ``int32[V]``, labels of the masked images that show the patch, else ``ANY``.
      changed: ``bool[V]``, those of which something else is wanted than the clean image has.
      answer: what the rule answers then.
      wins: whether that is a wrong answer.
      effort: the mean margin by which the clean labels of those that have to change are held.
      avoids: the labels named are to be left, for whatever others.
    """

    place: Placement
    wanted: NDArray[np.int32]
    changed: NDArray[np.bool_]
    answer: int
    wins: bool
    effort: float
    avoids: bool = False


def undefended_goals(label: int, *, places: NDArray[np.int64]) -> list[Goal]:
    """To have the model itself leave the true label at each of some places ``int64[P, K, 4]``.

    For attacks on no defense at all: the one column is the image as it is.
    """
    named = np.asarray([label], np.int32)
    here = np.ones(1, np.bool_)
    return [Goal(place, named, here, ANY, True, 0.0, avoids=True) for place in places]


def goals_at(
    defense: Defense,
    predictions: NDArray[np.integer],
    margins: NDArray[np.floating],
    label: int,
    *,
    places: NDArray[np.int64],
    targets: Sequence[int],
    num_classes: int,
) -> list[Goal]:
    """Goals at some places, those that win first, and of these the ones that take least.

    At each place and for each target z: all masked images that show the patch say z; all but the
    one that is hardest to change (where a rule trusts those that stand against all others, such
    as CertMask's exactly k); one more than half of them; as many as hide the patch; and one more.

    Args:
      defense: whose rule is to err.
      predictions: ``int[V]``, what the clean image's masked images say.
      margins: ``float[V]``, by how much.
      label: the true label.
      places: ``int64[P, K, 4]``.
      targets: wrong labels that are tried.
      num_classes: K of the model.

    Returns:
      One goal for each place and target at most: the first that wins, else the unanimous one.
    """
    boxes = defense.masked_images.boxes
    clean = np.asarray(predictions, np.int32)
    held = np.where(np.isfinite(margins), margins, 0).astype(np.float64)
    tried: list[tuple[int, int, Placement, NDArray[np.int32]]] = []
    for number, place in enumerate(places):
        seen = shows(boxes, place)
        for target in targets:
            if target == label:
                continue
            for chosen in _choices(seen, held):
                wanted = np.where(seen, clean, ANY).astype(np.int32)
                wanted[chosen] = target
                tried.append((number, target, place, wanted))
    if not tried:
        return []
    rows = np.stack([np.where(wanted == ANY, clean, wanted) for *_, wanted in tried])
    rows = np.maximum(rows, 0)  # where logits are not finite no rule is held to anything
    answers = defense.rule(from_labels(rows, defense.masked_images, num_classes=num_classes))
    right = (label,) if defense.guarantee == Guarantee.RECOVERY else (label, ALERT)
    best: dict[tuple[int, int], Goal] = {}
    for (number, target, place, wanted), answer in zip(tried, answers.tolist(), strict=True):
        changed = (wanted != ANY) & (wanted != clean)
        effort = float(held[changed].mean()) if changed.any() else 0.0
        goal = Goal(place, wanted, changed, answer, answer not in right, effort)
        known = best.get((number, target))
        if known is None or (goal.wins and not known.wins):
            best[number, target] = goal
    return sorted(best.values(), key=lambda goal: (not goal.wins, goal.effort))


def _choices(seen: NDArray[np.bool_], held: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
    """Which masked images that show the patch are to say the target: all, then fewer."""
    shown = np.flatnonzero(seen)
    yield shown
    easiest = shown[np.argsort(held[shown], kind="stable")]
    hidden = len(seen) - len(shown)
    for count in dict.fromkeys((len(shown) - 1, len(shown) // 2 + 1, hidden, hidden + 1)):
        if 0 < count < len(shown):
            yield easiest[:count]
