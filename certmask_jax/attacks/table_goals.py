"""Goals: which labels an attacker wants under which masks, so that a defense answers wrongly.

A patch at one place leaves alone what the masks say that hide it. All others are the attacker's in
a table, and a goal names labels for them. What the rule then answers is computed, not guessed: a
goal *wins* if the answer is wrong. Of an image that a worst case certifies no goal wins; there the
strongest that are known are tried all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.patched_pixels import Placement, check_places, shows
from certmask_jax.attacks.wanted_labels import ANY, Case, Choices, LabelPlan, plans
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee
from certmask_jax.tables.prediction_table import from_labels

__all__ = ["ANY", "Goal", "counts_of", "goal_of", "goals_at", "undefended_goals"]


class Goal(NamedTuple):
    """What to make of one image at one place.

    Attributes:
      place: ``int64[K, 4]``, height, width, row and column of each patch.
      wanted: ``int32[V]``, labels of the masked images that show the patch, else ``ANY``.
      changed: ``bool[V]``, those of which something else is wanted than the clean image has.
      answer: what the rule answers then.
      wins: whether that is a wrong answer.
      effort: how far the hardest of those that have to change is from it, in logits.
      avoids: the labels named are to be left, for whatever others.
      target: the label that is to be answered; ``ANY`` where any wrong one will do.
      number: how many masked images say the target then, where one more would be too many; else 0.
    """

    place: Placement
    wanted: NDArray[np.int32]
    changed: NDArray[np.bool_]
    answer: int
    wins: bool
    effort: float
    avoids: bool = False
    target: int = ANY
    number: int = 0

    @property
    def objective(self) -> str:
        """What is aimed at, in words."""
        if self.avoids:
            return "leave the true label"
        if self.number:
            return f"exactly {self.number} masked images say the target"
        changed = int(np.count_nonzero(self.changed))
        if changed == len(self.wanted) == 1:
            return "say the target"
        return f"{changed} masked images say the target" if changed else "evidence of the target"


def undefended_goals(label: int, *, places: NDArray[np.int64], target: int = ANY) -> list[Goal]:
    """To have the model itself leave the true label at each of some places ``int64[P, K, 4]``.

    For attacks on no defense at all: the one column is the image as it is.

    Args:
      label: the true one.
      places: where.
      target: the label that it is to say instead; any by default.

    Raises:
      ValueError: for a patch of no pixels or one that begins outside; ``attack_images`` knows
        where the image ends.
    """
    check_places(places, None)
    leaves = target == ANY
    named = np.asarray([label if leaves else target], np.int32)
    here = np.ones(1, np.bool_)
    return [
        Goal(place, named, here, ANY, True, 0.0, avoids=leaves, target=target) for place in places
    ]


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

    At each place and for each target z the rule is asked about tables in which the easiest few of
    the masked images that show the patch say z, or about half of them, all but a few, as many as
    hide the patch (CertMask trusts a label with exactly k votes), all of them, those that hide one
    mask alone, or those that hide one mask among others.

    Args:
      defense: whose rule is to err.
      predictions: ``int[V]``, what the clean image's masked images say.
      margins: ``float[V]``, by how much.
      label: the true label.
      places: ``int64[P, K, 4]``.
      targets: wrong labels that are tried.
      num_classes: K of the model.

    Returns:
      One goal for each place and target at most: the one that wins with least effort, else the
      unanimous one.

    Raises:
      ValueError: for a place that the threat of the defense does not allow.
    """
    check_places(places, defense.threat)
    boxes = defense.masked_images.boxes
    clean = np.maximum(np.asarray(predictions, np.int32), 0)  # where logits are not finite no rule
    held = np.where(np.isfinite(margins), margins, 0).astype(np.float64)  # is held to anything
    cases, where = [], []
    for place in places:
        seen = shows(boxes, place)
        for target in targets:
            if target != label and seen.any():
                lag = np.where(clean == target, -held, held)
                cases.append(Case(0, seen, lag, int(target), int(label)))
                where.append(place)

    def answers(
        _: NDArray[np.float32],
        of: NDArray[np.intp],
        chosen: NDArray[np.bool_],
        aims: NDArray[np.intp],
    ) -> NDArray[np.int32]:
        del of
        rows = np.where(chosen, aims[:, None], clean)
        return defense.rule(from_labels(rows, defense.masked_images, num_classes=num_classes))

    made = plans(
        Choices(boxes, counts_of(defense)),
        answers,
        np.eye(num_classes, dtype=np.float32)[clean][None],
        cases,
        may_alert=defense.guarantee == Guarantee.DETECTION,
        alert=ALERT,
    )
    goals = [
        goal_of(plan, case, place, clean)
        for plan, case, place in zip(made, cases, where, strict=True)
    ]
    return sorted(goals, key=lambda goal: (not goal.wins, goal.effort))


def goal_of(plan: LabelPlan, case: Case, place: Placement, clean: NDArray[np.integer]) -> Goal:
    """A plan as a goal; what is not chosen is to stay as it is, ``clean int[V]``."""
    wanted = np.where(case.shown, clean, ANY).astype(np.int32)
    wanted[plan.chosen] = case.target
    return Goal(
        place,
        wanted,
        (wanted != ANY) & (wanted != clean),
        plan.answer,
        plan.wins,
        plan.effort,
        target=case.target,
        number=plan.number,
    )


def counts_of(defense: object) -> tuple[int, ...]:
    """Numbers of masked images on which a rule may turn: how many masks hide every place."""
    promise = getattr(getattr(defense, "masks", None), "promise", None)
    return () if promise is None else (int(promise),)
