"""Goals of many images that are chosen when a search comes to them, some images at a time.

To choose goals can take as long as to search: of all images at once it would keep the first search
waiting, and a kill would lose it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from certmask_jax.attacks.table_goals import Goal


class StoppedChoosing(Exception):
    """The time was over while goals were chosen."""


Choose = Callable[[range], Sequence[Sequence[Goal]]]
"""Numbers of some images in a row -> the goals of each; may raise ``StoppedChoosing``."""


class GoalsInTime:
    """The goals of each of B images, of some images as soon as those of the first are asked for.

    Args:
      count: B.
      choose: chooses them.
      patches: K, how many patches each goal places.
      at_once: images whose goals are chosen together.

    Raises:
      ValueError: for less than one of ``patches`` or ``at_once``.
    """

    def __init__(self, count: int, choose: Choose, *, patches: int, at_once: int) -> None:
        for name, number in (("patches", patches), ("at_once", at_once)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        self.patches = patches
        self._count, self._choose, self._at_once = count, choose, at_once
        self._known: dict[int, Sequence[Sequence[Goal]]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Sequence[Goal]:
        if not 0 <= number < self._count:
            raise IndexError(number)
        block, row = divmod(number, self._at_once)
        if block not in self._known:
            start = block * self._at_once
            numbers = range(start, min(start + self._at_once, self._count))
            self._known[block] = self._choose(numbers)
        return self._known[block][row]

    def each(self, check: Callable[[Iterator[Goal]], None]) -> GoalsInTime:
        """These, of which ``check`` is told as they are chosen."""

        def choose(numbers: range) -> Sequence[Sequence[Goal]]:
            chosen = self._choose(numbers)
            check(goal for some in chosen for goal in some)
            return chosen

        return GoalsInTime(self._count, choose, patches=self.patches, at_once=self._at_once)
