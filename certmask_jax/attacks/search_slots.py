"""Who is searched for in which slot, and what came of whom.

A fixed number of searches runs at once. One that is over makes room: for another start, for the
next goal of its image, or for the next image.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.attacks.goals_in_time import GoalsInTime
from certmask_jax.attacks.patched_pixels import corners_of
from certmask_jax.attacks.search_objectives import Goals
from certmask_jax.attacks.table_goals import ANY, Goal
from certmask_jax.defenses.defense import ALERT


@dataclasses.dataclass(eq=False)
class Slot:
    """A search under way.

    Attributes:
      image, number, start: which image, which of its goals, which start.
      goal: what it is after now, at that place.
      wanted, changed, weight: of each masked image, what the search is told, see ``Goals``.
      below: ``uint8[h, w, c]``, the image when last too few masked images said the target.
      done: steps so far.
    """

    image: int
    number: int
    start: int
    goal: Goal
    wanted: NDArray[np.int32]
    changed: NDArray[np.bool_]
    weight: NDArray[np.float32]
    below: NDArray[np.uint8]
    done: int = 0


class SearchSlots:
    """The searches that run at once, and what came of B images so far.

    Args:
      images: ``uint8[B, h, w, c]``, without patches.
      labels: ``int32[B]``.
      numbers: of the images, on which with the seed all randomness depends.
      columns: V, masked images of the defense.
      goals: of each image.
      starts: searches for each goal.
      slots: searches at once.
      seed: of all randomness.
      allows_alert: an alert is no wrong answer.
      targeted: an image is done with when the target of its goal is answered, not when any other
        wrong label is; one that was answered wrongly stays as it was then until the target is.

    Attributes:
      settled, broken: ``bool[B]``: done with, and answered wrongly.
      patched, answers, places, targets, steps, objectives: as of ``AttackedImages``.
      untried: images without a goal, whose answers are not known here.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        numbers: Sequence[int],
        columns: int,
        goals: Sequence[Sequence[Goal]] | GoalsInTime,
        starts: int,
        slots: int,
        seed: int,
        *,
        allows_alert: bool,
        targeted: bool = False,
    ) -> None:
        self._images, self._labels, self._numbers, self._goals = images, labels, numbers, goals
        self.targeted = targeted
        self._starts, self._columns, self._allows_alert = starts, columns, allows_alert
        self._patches = _patches_of(goals)
        self._waiting = deque(range(len(images)))
        self._slots: list[Slot | None] = [None] * slots
        self._fresh = np.zeros(slots, np.bool_)
        self._key = jax.random.key(seed)
        self.untried: list[int] = []
        self.settled, self.broken = (np.zeros(len(images), np.bool_) for _ in range(2))
        self.patched, self.answers = images.copy(), np.zeros(len(images), np.int32)
        self.places = np.zeros((len(images), self._patches, 4), np.int64)
        self.targets = np.full(len(images), ANY, np.int32)
        self.objectives = [""] * len(images)
        self.steps = np.zeros(len(images), np.int64)
        self._least = np.full(len(images), np.inf)  # loss of what is kept of each

    def fill(self) -> bool:
        """Puts waiting images into free slots; whether any slot is in use."""
        for number in range(len(self._slots)):
            while self._slots[number] is None and self._waiting:
                image = self._waiting.popleft()
                if not self._goals[image]:
                    self.settled[image] = True
                    self.untried.append(image)
                    continue
                self._slots[number] = self._begun(image, 0, 0)
                self._fresh[number] = True
        return any(slot is not None for slot in self._slots)

    def in_use(self) -> list[tuple[int, Slot]]:
        """The slots that are in use, with their numbers."""
        return [(n, slot) for n, slot in enumerate(self._slots) if slot is not None]

    def is_wrong(self, slot: Slot, answer: int) -> bool:
        """Whether an answer to a patched image breaks it."""
        return answer != self._labels[slot.image] and not (self._allows_alert and answer == ALERT)

    def is_reached(self, slot: Slot, answer: int) -> bool:
        """Whether an answer to a patched image is what is searched for."""
        return self.is_wrong(slot, answer) and not (self.targeted and answer != slot.goal.target)

    def arrays(self) -> tuple[Goals, Array, Array, Array]:
        """The goals of all slots, their keys, which of them begin, and which from the image."""
        count, shape = len(self._slots), self._images.shape[1:]
        images = np.zeros((count, *shape), np.uint8)
        corners = np.zeros((count, self._patches, 4), np.int32)
        wanted = np.full((count, self._columns), ANY, np.int32)
        changed = np.zeros((count, self._columns), np.bool_)
        weight = np.ones((count, self._columns), np.float32)
        avoids, from_image = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        label, target = (np.zeros(count, np.int32) for _ in range(2))
        keys = [self._key] * count
        for number, slot in self.in_use():
            goal = slot.goal
            images[number], corners[number] = self._images[slot.image], corners_of(goal.place)
            wanted[number], changed[number] = slot.wanted, slot.changed
            weight[number], avoids[number] = slot.weight, goal.avoids
            label[number], target[number] = self._labels[slot.image], max(goal.target, 0)
            from_image[number] = slot.start == 0
            for part in (self._numbers[slot.image], slot.number, slot.start, slot.done):
                keys[number] = jax.random.fold_in(keys[number], part)
        goals = Goals(
            *map(jnp.asarray, (images, corners, wanted, changed, weight, avoids, label, target))
        )
        fresh, self._fresh = self._fresh, np.zeros(count, np.bool_)
        return goals, jnp.stack(keys), jnp.asarray(fresh), jnp.asarray(from_image)

    def settle(
        self,
        number: int,
        slot: Slot,
        patched: NDArray[np.uint8],
        answer: int,
        *,
        loss: float,
        steps: int,
    ) -> None:
        """Takes in what came of a slot: frees it, or gives it another start or goal, or nothing.

        Args:
          number, slot: as of ``in_use``.
          patched: ``uint8[h, w, c]``.
          answer: what is answered to it.
          loss: of the search there. Of what breaks nothing the least is kept, of equals the last.
          steps: after which a search is at its end.
        """
        image, goal = slot.image, slot.goal
        wrong, reached = self.is_wrong(slot, answer), self.is_reached(slot, answer)
        left = np.inf if np.isnan(loss) else loss
        nearer = wrong or left <= self._least[image]
        if reached or (nearer and not self.broken[image]):
            self._least[image] = left
            self.patched[image], self.answers[image] = patched, answer
            self.places[image] = goal.place
            self.objectives[image] = goal.objective
            self.targets[image] = _target(goal, int(self._labels[image]))
            self.broken[image] = wrong
        if reached:
            self.settled[image] = True
            self._slots[number] = None
        elif slot.done >= steps:
            self._slots[number] = self._next(slot)
            self.settled[image] = self._slots[number] is None
            self._fresh[number] = True

    def took(self, slot: Slot, count: int) -> None:
        """Counts steps."""
        slot.done += count
        self.steps[slot.image] += count

    def _begun(self, image: int, number: int, start: int) -> Slot:
        goal, weight = self._goals[image][number], np.ones(self._columns, np.float32)
        return Slot(
            image, number, start, goal, goal.wanted, goal.changed, weight, self._images[image]
        )

    def _next(self, slot: Slot) -> Slot | None:
        if slot.start + 1 < self._starts:
            return self._begun(slot.image, slot.number, slot.start + 1)
        if slot.number + 1 < len(self._goals[slot.image]):
            return self._begun(slot.image, slot.number + 1, 0)
        return None


def _patches_of(goals: Sequence[Sequence[Goal]] | GoalsInTime) -> int:
    if isinstance(goals, GoalsInTime):
        return goals.patches
    patches = {len(goal.place) for some in goals for goal in some} or {1}
    if len(patches) > 1:
        raise ValueError(f"goals: expected equally many patches in all, got {sorted(patches)}")
    return patches.pop()


def _target(goal: Goal, label: int) -> int:
    if goal.target != ANY:
        return goal.target
    others = goal.wanted[(goal.wanted >= 0) & (goal.wanted != label)]
    return int(np.bincount(others).argmax()) if len(others) else ANY
