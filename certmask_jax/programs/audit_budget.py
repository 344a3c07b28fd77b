"""The time of an audit, shared fairly: whichever defense has had least goes next.

How long an image takes is measured on the way, so a search is not begun that the time would not do
for, and what is begun has few images where little time is left.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

Clock = Callable[[], float]


class OutOfTimeError(Exception):
    """A search was ended as there was no more time."""


class Watch:
    """Ends a search when the time is over, and knows how fast it went.

    Args:
      end: on the clock.
      steps: of one tick.
      clock: seconds.
    """

    def __init__(self, end: float, steps: int, clock: Clock = time.monotonic) -> None:
        self._end, self._steps, self._clock = end, steps, clock
        self._began = clock()
        self._first: float | None = None
        self._ticks = 0
        self.seconds_a_step: float | None = None

    def begin(self) -> None:
        """A search begins, whose first steps are slow: they are compiled."""
        self._began, self._first, self._ticks = self._clock(), None, 0

    @property
    def seconds_to_begin(self) -> float:
        """What the last search took up to its first tick, and another one like it may not take."""
        return 0.0 if self._first is None else self._first - self._began

    def tick(self, settled: int, broken: int) -> None:
        """Some steps are done.

        Raises:
          OutOfTimeError: at the end of the time, but not before the speed is known.
        """
        del settled, broken
        now = self._clock()
        if self._first is None:
            self._first = now
            return
        self._ticks += 1
        self.seconds_a_step = (now - self._first) / (self._ticks * self._steps)
        if now >= self._end:
            raise OutOfTimeError


def spend(
    waiting: Mapping[str, Sequence[int]],
    end: float,
    attack: Callable[[str, Sequence[int]], float],
    *,
    least: int = 1,
    most: int,
    clock: Clock = time.monotonic,
) -> bool:
    """Attacks images until the time is over, by turns; whether all were.

    Args:
      waiting: numbers of images of each defense, in the order in which they are to be attacked.
      end: on the clock.
      attack: attacks images under a defense, and gives the seconds that another time would not
        take; may raise ``OutOfTimeError``, which ends everything.
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
        try:
            once = attack(spec, numbers)
        except OutOfTimeError:
            return False
        took = clock() - began
        spent[spec] += took
        each[spec] = (took - once) / len(numbers)
        if not queues[spec]:
            del queues[spec]
    return not left_out


def _fitting(seconds: float, each: float, least: int, most: int) -> int:
    """The larger of two sizes that the time does for, as every size is compiled; 0 for none."""
    return next((size for size in (most, least) if size * each <= seconds), 0)
