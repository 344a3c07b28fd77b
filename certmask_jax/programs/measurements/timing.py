"""Timing that a drifting machine does not decide: what is compared runs in turn, A B A B ..."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Spread = dict[str, float]


def in_turn(runs: Mapping[str, Callable[[], float | None]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one round that is not counted.

    A run that returns a number has taken its own time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeat + 1):
        for name, function in runs.items():
            start = time.perf_counter()
            own = function()
            taken = time.perf_counter() - start if own is None else own
            if number:
                seconds[name].append(taken)
    return seconds


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratio of each round; then median, least and most."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
