"""The next images are read while the last ones are worked on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Read = TypeVar("_Read")


def ahead(read: Callable[[int, int], _Read], spans: Sequence[tuple[int, int]]) -> Generator[_Read]:
    """What ``read(start, stop)`` gives of each span, one span ahead of who asks.

    What a read raises surfaces where its span would have been given. ``close()`` ends the reading.
    """
    if not spans:
        return
    with ThreadPoolExecutor(1, "certmask_jax reads ahead") as reader:
        waiting = reader.submit(read, *spans[0])
        for following in [*spans[1:], None]:
            batch = waiting.result()
            if following is not None:
                waiting = reader.submit(read, *following)
            yield batch
