"""The time of an audit, shared fairly: whichever defense has had least goes next.

How long an image takes is measured on the way, so a search is not begun that the time would not do
for, and what is begun has few images where little time is left.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Clock = Callable[[], float]


class Taken(NamedTuple):
    """What came of attacking some images.

    Attributes:
      settled: how many are; fewer than there were if the time was over.
      once: seconds of it that another time would not take.
    """

    settled: int
    once: float = 0.0


class Watch:
    """Ends a search when the time is over, and knows how fast it went.

    Args:
      end: on the clock.
      steps: between two questions.
      clock: seconds.

    Attributes:
      seconds_a_step: None before two questions were asked in one search.
    """

    def __init__(self, end: float, steps: int, clock: Clock = time.monotonic) -> None:
        self._end, self._steps, self._clock = end, steps, clock
        self._began = clock()
        self._first: float | None = None
        self._questions = 0
        self.seconds_a_step: float | None = None

    def begin(self) -> None:
        """A search begins, whose first steps are slow: they are compiled."""
        self._began, self._first, self._questions = self._clock(), None, 0

    @property
    def seconds_to_begin(self) -> float:
        """What the last search took up to the first question: another one like it may not."""
        return 0.0 if self._first is None else self._first - self._began

    def is_late(self) -> bool:
        """Whether the time is over, asked before there are steps."""
        return self._clock() >= self._end

    def is_over(self) -> bool:
        """Asked after every few steps: whether the time is over, and the speed known."""
        now = self._clock()
        if self._first is None:
            self._first = now
            return False
        self._questions += 1
        self.seconds_a_step = (now - self._first) / (self._questions * self._steps)
        return now >= self._end


def spend(
    waiting: Mapping[str, Sequence[int]],
    end: float,
    attack: Callable[[str, Sequence[int]], Taken],
    *,
    least: int = 1,
    most: int,
    clock: Clock = time.monotonic,
) -> bool:
    """Attacks images until the time is over, by turns; whether all were.

    Args:
      waiting: numbers of images of each defense, in the order in which they are to be attacked.
      end: on the clock.
      attack: attacks images under a defense.
      least, most: images at once; what takes the same time is the first.
      clock: seconds.
    """
    queues = {spec: deque(numbers) for spec, numbers in waiting.items() if numbers}
    spent = dict.fromkeys(queues, 0.0)
    each: dict[str, float] = {}  # seconds of an image
    left_out = False
    while queues:
        spec = min(queues, key=lambda one: spent[one])
        size = least if spec not in each else _fitting(end - clock(), each[spec], least, most)
        began = clock()
        if not size or (each and began >= end):
            left_out = True
            del queues[spec]
            continue
        numbers = [queues[spec].popleft() for _ in range(min(size, len(queues[spec])))]
        taken = attack(spec, numbers)
        if taken.settled < len(numbers):
            return False
        spent[spec] += clock() - began
        each[spec] = (clock() - began - taken.once) / len(numbers)
        if not queues[spec]:
            del queues[spec]
    return not left_out


def _fitting(seconds: float, each: float, least: int, most: int) -> int:
    """The larger of two sizes that the time does for, as every size is compiled; 0 for none."""
    return next((size for size in (most, least) if size * each <= seconds), 0)
