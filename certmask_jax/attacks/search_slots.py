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

from certmask_jax.attacks.patch_search import Goals
from certmask_jax.attacks.patched_pixels import corners_of
from certmask_jax.attacks.table_goals import ANY, Goal
from certmask_jax.defenses.defense import ALERT


@dataclasses.dataclass
class Slot:
    """A search under way: which image, which of its goals, which start, and its steps so far."""

    image: int
    goal: int = 0
    start: int = 0
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

    Attributes:
      settled, broken: ``bool[B]``: done with, and answered wrongly.
      patched, answers, places, targets, steps: as of ``AttackedImages``.
      untried: images without a goal, whose answers are not known here.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        numbers: Sequence[int],
        columns: int,
        goals: Sequence[Sequence[Goal]],
        starts: int,
        slots: int,
        seed: int,
        *,
        allows_alert: bool,
    ) -> None:
        self._images, self._labels, self._numbers, self._goals = images, labels, numbers, goals
        self._starts, self._columns, self._allows_alert = starts, columns, allows_alert
        patches = {len(goal.place) for some in goals for goal in some} or {1}
        if len(patches) > 1:
            raise ValueError(f"goals: expected equally many patches in all, got {sorted(patches)}")
        self._patches = patches.pop()
        self._waiting = deque(range(len(images)))
        self._slots: list[Slot | None] = [None] * slots
        self._fresh = np.zeros(slots, np.bool_)
        self._key = jax.random.key(seed)
        self.untried: list[int] = []
        self.settled, self.broken = (np.zeros(len(images), np.bool_) for _ in range(2))
        self.patched, self.answers = images.copy(), np.zeros(len(images), np.int32)
        self.places = np.zeros((len(images), self._patches, 4), np.int64)
        self.targets = np.full(len(images), ANY, np.int32)
        self.steps = np.zeros(len(images), np.int64)

    def fill(self) -> bool:
        """Puts waiting images into free slots; whether any slot is in use."""
        for number in range(len(self._slots)):
            while self._slots[number] is None and self._waiting:
                image = self._waiting.popleft()
                if not self._goals[image]:
                    self.settled[image] = True
                    self.untried.append(image)
                    continue
                self._slots[number] = Slot(image)
                self._fresh[number] = True
        return any(slot is not None for slot in self._slots)

    def arrays(self) -> tuple[Goals, Array, Array, Array]:
        """The goals of all slots, their keys, which of them begin, and which from the image."""
        count, shape = len(self._slots), self._images.shape[1:]
        images = np.zeros((count, *shape), np.uint8)
        corners = np.zeros((count, self._patches, 4), np.int32)
        wanted = np.full((count, self._columns), ANY, np.int32)
        changed = np.zeros((count, self._columns), np.bool_)
        avoids, from_image = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        keys = []
        for number, slot in enumerate(self._slots):
            key = self._key
            if slot is not None:
                goal = self._goals[slot.image][slot.goal]
                images[number] = self._images[slot.image]
                corners[number] = corners_of(goal.place)
                wanted[number], changed[number] = goal.wanted, goal.changed
                avoids[number] = goal.avoids
                from_image[number] = slot.start == 0
                for part in (self._numbers[slot.image], slot.goal, slot.start, slot.done):
                    key = jax.random.fold_in(key, part)
            keys.append(key)
        goals = Goals(*map(jnp.asarray, (images, corners, wanted, changed, avoids)))
        fresh, self._fresh = self._fresh, np.zeros(count, np.bool_)
        return goals, jnp.stack(keys), jnp.asarray(fresh), jnp.asarray(from_image)

    def settle(
        self, patched: NDArray[np.uint8], answers: NDArray[np.int32], count: int, steps: int
    ) -> None:
        """Takes the broken ones out, and gives those at their end another goal, or none."""
        for number, slot in enumerate(self._slots):
            if slot is None:
                continue
            image, answer = slot.image, int(answers[number])
            goal, label = self._goals[image][slot.goal], int(self._labels[image])
            slot.done += count
            self.steps[image] += count
            self.patched[image], self.answers[image] = patched[number], answer
            self.places[image], self.targets[image] = goal.place, _target(goal, label)
            if answer != label and not (self._allows_alert and answer == ALERT):
                self.broken[image] = self.settled[image] = True
                self._slots[number] = None
            elif slot.done >= steps:
                self._slots[number] = self._next(slot)
                self.settled[image] = self._slots[number] is None
                self._fresh[number] = True

    def _next(self, slot: Slot) -> Slot | None:
        if slot.start + 1 < self._starts:
            return Slot(slot.image, slot.goal, slot.start + 1)
        if slot.goal + 1 < len(self._goals[slot.image]):
            return Slot(slot.image, slot.goal + 1)
        return None


def _target(goal: Goal, label: int) -> int:
    others = goal.wanted[(goal.wanted >= 0) & (goal.wanted != label)]
    return int(np.bincount(others).argmax()) if len(others) else ANY
