"""Which masked images are to say a label, so that a rule falls for it with least effort.

Choices are tried on the rule itself: the first few of the masked images that are easiest to change,
all of them, a row of pairs that hide one mask. What is easiest changes while a patch is searched
for, so a search chooses anew from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ANY = -1
"""Stands where a masked image may say what it likes."""

Answers = Callable[..., NDArray[np.int32]]
"""As ``Attacked.answers_if``."""


class Case(NamedTuple):
    """An image at one place with one target.

    Attributes:
      image: its number among the logits that are given.
      shown: ``bool[V]``, the masked images that show the patch.
      lag: ``float[V]``, by how much the target lags behind in each.
      target: the label that is to be said.
      label: the true one.
      targeted: nothing but the target will do.
    """

    image: int
    shown: NDArray[np.bool_]
    lag: NDArray[np.floating]
    target: int
    label: int
    targeted: bool = False

    def wins(self, answer: int, allowed: Sequence[int]) -> bool:
        """Whether an answer is what is wanted; ``allowed`` are no errors beside the true label."""
        if self.targeted:
            return answer == self.target
        return answer != self.label and answer not in allowed


class LabelPlan(NamedTuple):
    """What is to be said in one case.

    Attributes:
      chosen: ``bool[V]``, the masked images that are to say the target.
      answer: what the rule answers then.
      wins: whether that is wrong, or the target where nothing else will do.
      effort: the largest lag of those chosen.
      number: how many masked images, of all, say the target then, if ``narrow``; else 0.
      narrow: one masked image more that says the target, and the rule answers rightly again.
    """

    chosen: NDArray[np.bool_]
    answer: int
    wins: bool
    effort: float
    number: int
    narrow: bool


class Choices:
    """Which masked images may be chosen.

    Args:
      boxes: ``int32[V, R, 4]``.
      counts: numbers of masked images on which the rule may turn, beside those that follow from a
        place, such as k of CertMask.
    """

    def __init__(self, boxes: NDArray[np.int32], counts: Sequence[int] = ()) -> None:
        used = ((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])).sum(axis=1)
        self._single = used == 1
        self._counts = tuple(counts)
        self._rows: list[NDArray[np.bool_]] = []
        if not self._single.all():
            for one in np.flatnonzero(self._single):
                box = boxes[one][(boxes[one, :, 2] > boxes[one, :, 0])][0]
                self._rows.append((boxes == box).all(axis=2).any(axis=1))

    def of(self, case: Case, clean: NDArray[np.integer]) -> list[tuple[NDArray[np.bool_], int]]:
        """Choices ``bool[V]``, each with how many of the easiest it is, 0 for others."""
        shown, lag, target = case.shown, case.lag, case.target
        made: dict[bytes, tuple[NDArray[np.bool_], int]] = {}

        def add(chosen: NDArray[np.bool_], count: int) -> None:
            if chosen.any():
                made.setdefault(chosen.tobytes(), (chosen, count))

        many, hidden = int(shown.sum()), int((~shown).sum())
        order = np.flatnonzero(shown)[np.argsort(lag[shown], kind="stable")]
        half = many // 2
        turning = {1, 2, half, half + 1, many - 2, many - 1, many, hidden, *self._counts}
        for count in sorted({n + more for n in turning for more in (0, 1)}):
            if 0 < count <= many:
                chosen = np.zeros(len(shown), np.bool_)
                chosen[order[:count]] = True
                add(chosen, count)
        if self._rows:
            add(shown & self._single, 0)
            for row in self._rows:
                if (clean[row & ~shown] == target).all():
                    add(row & shown, 0)
        return list(made.values())


def plans(
    choices: Choices,
    answers: Answers,
    logits: NDArray[np.float32],
    cases: Sequence[Case],
    *,
    may_alert: bool,
    alert: int,
) -> list[LabelPlan]:
    """For each case the choice that wins with least effort, else that all shown say the target.

    Args:
      choices: of these masked images.
      answers: asks the rule, see ``Attacked.answers_if``.
      logits: ``float32[B, V, K]`` of the images without patches.
      cases: at which place, with which target.
      may_alert: whether an alert is no wrong answer.
      alert: its number.
    """
    clean = logits.argmax(axis=-1)
    each = [choices.of(case, clean[case.image]) for case in cases]
    rows = [(case, chosen) for case, some in zip(cases, each, strict=True) for chosen, _ in some]
    if not rows:
        return []
    said = answers(
        logits,
        np.asarray([case.image for case, _ in rows], np.intp),
        np.stack([chosen for _, chosen in rows]),
        np.asarray([case.target for case, _ in rows], np.intp),
    ).tolist()
    made, at = [], 0
    for case, some in zip(cases, each, strict=True):
        own, at = said[at : at + len(some)], at + len(some)
        wins = [case.wins(answer, (alert,) if may_alert else ()) for answer in own]
        by_count = {count: won for (_, count), won in zip(some, wins, strict=True) if count}
        tried = []
        for (chosen, count), answer, won in zip(some, own, wins, strict=True):
            narrow = won and count > 0 and not by_count.get(count + 1, True)
            total = int((chosen | (clean[case.image] == case.target)).sum()) if narrow else 0
            effort = float(case.lag[chosen].max())
            tried.append(LabelPlan(chosen, answer, won, effort, total, narrow))
        winning = [plan for plan in tried if plan.wins]
        if winning:
            made.append(min(winning, key=lambda plan: plan.effort))
        else:
            made.append(max(tried, key=lambda plan: int(plan.chosen.sum())))
    return made


def lag_of(logits: NDArray[np.float32], target: int) -> NDArray[np.float32]:
    """By how much a label lags behind the best of the others: ``[..., K]`` -> ``[...]``."""
    others = np.delete(logits, target, axis=-1).max(axis=-1)
    return np.where(np.isfinite(logits).all(axis=-1), others - logits[..., target], 0)
