"""The next images are read while the last ones are worked on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Read = TypeVar("_Read")


def ahead(
    read: Callable[[int, int], _Read],
    spans: Mapping[int, tuple[int, int]],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[tuple[int, _Read]]:
    """The number of each block, and what ``read`` gives of its span, one span ahead of who asks.

    What a read raises surfaces where its span would have been given. ``stop`` is asked before each
    span is given, and before any is read; where it says so, no more are.
    """
    numbers = list(spans)
    if not numbers or stop():
        return
    with ThreadPoolExecutor(1, "certmask_jax reads ahead") as reader:
        waiting = reader.submit(read, *spans[numbers[0]])
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            batch = waiting.result()
            if following is not None:
                waiting = reader.submit(read, *spans[following])
            yield number, batch
            if following is not None and stop():
                return
