"""What is made of searches under way: answers, ways between two patches, and goals chosen anew.

What is easiest to change is not what it was before the patch. So after some steps the rule is
asked again which masked images had best say the target, as they are said now. And a rule that errs
only when a certain number of them say it, as CertMask's does, is met on the way between a patch
under which too few do and one under which too many do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import shows
from certmask_jax.attacks.search_slots import SearchSlots, Slot
from certmask_jax.attacks.table_goals import counts_of, goal_of
from certmask_jax.attacks.wanted_labels import ANY, Case, Choices, lag_of, plans
from certmask_jax.defenses.defense import ALERT

_LEAST_WEIGHT = 0.05  # in logits, of what is done
_MOST_WEIGHT = 10.0
_BETTER = 0.8  # of the effort of a plan, for another one to be gone over to


class Replans:
    """Judges the patched images of all slots, and gives their searches new goals.

    Args:
      asked: what is attacked.
      run: the slots.
      images: ``uint8[B, h, w, c]``, without patches.
      labels: ``int32[B]``.
      search: how it is searched.
      halvings: of the way between a patch under which too few masks say a label and one under
        which too many do.
    """

    def __init__(
        self,
        asked: Attacked,
        run: SearchSlots,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        *,
        search: PatchSearch,
        halvings: int = 8,
    ) -> None:
        self._halvings = halvings
        self._asked, self._run, self._labels = asked, run, labels
        self._surplus, self._at_once = search.surplus, search.masks_a_step
        self._choices = Choices(asked.boxes, counts_of(asked.defense))
        self._images, self._has_tables = images, True
        self._clean: dict[int, NDArray[np.float32]] = {}

    def begin(self) -> None:
        """Says what to look at first, of searches that have not taken a step."""
        self._look()
        for _, slot in self._run.in_use():
            if self._has_tables and slot.done == 0 and slot.goal.target != ANY:
                self._aim(slot, self._clean[slot.image])

    def _look(self) -> None:
        """At the tables of images that are searched for now, and of no others: they take long."""
        now = {slot.image for _, slot in self._run.in_use()}
        self._clean = {image: logits for image, logits in self._clean.items() if image in now}
        new = sorted(now - set(self._clean))
        if self._has_tables and new:
            tables = self._asked.tables(self._images[new])
            self._has_tables = tables is not None
            self._clean |= {} if tables is None else dict(zip(new, tables, strict=True))

    def judge(
        self, patched: NDArray[np.uint8], losses: NDArray[np.float32], count: int, steps: int
    ) -> None:
        """Settles what is broken or at its end, and plans anew for the others.

        Args:
          patched: ``uint8[slots, h, w, c]``, after ``count`` more steps.
          losses: ``float32[slots]``, of the last of these.
          count: steps since the last call.
          steps: of one search.
        """
        run = self._run
        in_use = run.in_use()
        numbers = [number for number, _ in in_use]
        slots = [slot for _, slot in in_use]
        images = patched[numbers]
        seen = self._asked.seen(images)
        answers = self._confirmed(slots, images, seen.answers)
        if seen.logits is not None:
            self._between(slots, images, answers, seen.logits)
        for number, slot, image, answer in zip(numbers, slots, images, answers, strict=True):
            run.took(slot, count)
            run.settle(number, slot, image, int(answer), loss=float(losses[number]), steps=steps)
        if seen.logits is None:
            return
        there = [slot for _, slot in run.in_use()]
        rows = [row for row, slot in enumerate(slots) if slot in there]
        self._plan([slots[row] for row in rows], seen.logits[rows])

    def _confirmed(
        self, slots: list[Slot], images: NDArray[np.uint8], answers: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """The answers, those that are wrong as the engine of a run gives them."""
        said = np.array(answers)
        wrong = [
            row
            for row, (slot, answer) in enumerate(zip(slots, answers.tolist(), strict=True))
            if self._run.is_wrong(slot, answer)
        ]
        if wrong:
            said[wrong] = self._asked.answers(images[wrong])
        return said

    def _between(
        self,
        slots: list[Slot],
        images: NDArray[np.uint8],
        answers: NDArray[np.int32],
        logits: NDArray[np.float32],
    ) -> None:
        """Halves the way between too few and too many, where a rule errs in the middle alone.

        Writes what is found into ``images`` and ``answers``.
        """
        above: dict[int, NDArray[np.uint8]] = {}
        below: dict[int, NDArray[np.uint8]] = {}
        for row, slot in enumerate(slots):
            if not slot.goal.number or self._run.is_reached(slot, int(answers[row])):
                continue
            if _count(logits[row], slot) > slot.goal.number:
                above[row], below[row] = images[row], slot.below
            else:
                slot.below = images[row].copy()
        for _ in range(self._halvings):
            rows = list(above)
            if not rows:
                return
            middle = np.stack([(above[r].astype(np.int32) + below[r]) // 2 for r in rows]).astype(
                np.uint8
            )
            seen = self._asked.seen(middle)
            assert seen.logits is not None
            said = self._confirmed([slots[r] for r in rows], middle, seen.answers)
            for at, row in enumerate(rows):
                slot = slots[row]
                if self._run.is_reached(slot, int(said[at])):
                    images[row], answers[row] = middle[at], said[at]
                elif _count(seen.logits[at], slot) > slot.goal.number:
                    if not (middle[at] == above[row]).all():
                        above[row] = middle[at]
                        continue
                elif not (middle[at] == below[row]).all():
                    below[row] = middle[at]
                    continue
                del above[row], below[row]

    def _plan(self, slots: list[Slot], logits: NDArray[np.float32]) -> None:
        """Chooses anew which masked images are to change, and how often each is looked at."""
        cases, planned = [], []
        clean: list[NDArray[np.float32]] = []
        for row, slot in enumerate(slots):
            if slot.goal.target == ANY:
                continue
            shown = shows(self._asked.boxes, self._asked.reached(slot.goal.place))
            lag = lag_of(logits[row], slot.goal.target)
            label = int(self._labels[slot.image])
            targeted = self._run.targeted
            cases.append(Case(len(clean), shown, lag, slot.goal.target, label, targeted))
            clean.append(self._clean[slot.image])
            planned.append((row, slot))
        if not cases:
            return
        replans = plans(
            self._choices,
            self._asked.answers_if,
            np.stack(clean),
            cases,
            may_alert=self._asked.may_alert,
            alert=ALERT,
        )
        for (row, slot), case, plan in zip(planned, cases, replans, strict=True):
            known = slot.goal
            chosen = known.wanted == known.target
            effort = float(case.lag[chosen].max()) if chosen.any() else np.inf
            if plan.wins and (not known.wins or plan.effort < _BETTER * max(effort, 0)):
                said = self._clean[slot.image].argmax(axis=-1)
                slot.goal = goal_of(plan, case, known.place, said)
            self._aim(slot, logits[row])

    def _aim(self, slot: Slot, logits: NDArray[np.float32]) -> None:
        """Says which masked images a search looks at, and how often each.

        What is not chosen may say what it likes, and the next few are pushed as well; but where too
        many say the target, the others have to stay as they are.
        """
        goal = slot.goal
        slot.wanted, slot.changed = goal.wanted, goal.changed
        if not (goal.number and _count(logits, slot) > goal.number):
            chosen = goal.wanted == goal.target
            lag = np.where(goal.wanted == ANY, np.inf, lag_of(logits, goal.target))
            lag = np.where(chosen, -np.inf, lag)
            most = max(int(chosen.sum()), self._at_once)
            for column in np.argsort(lag, kind="stable")[:most]:
                chosen[column] |= np.isfinite(lag[column])
            slot.wanted = np.where(chosen, goal.target, ANY).astype(np.int32)
            slot.changed = chosen
        wanted = np.maximum(slot.wanted, 0)
        own = np.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
        others = np.array(logits)
        np.put_along_axis(others, wanted[:, None], -np.inf, axis=1)
        lack = np.nan_to_num(others.max(axis=1) - own) + self._surplus
        slot.weight = np.clip(lack, _LEAST_WEIGHT, _MOST_WEIGHT).astype(np.float32)


def _count(logits: NDArray[np.float32], slot: Slot) -> int:
    """How many masked images say the target."""
    return int((logits.argmax(axis=-1) == slot.goal.target).sum())
