"""The next images are read while the last ones are worked on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Name = TypeVar("_Name")
_Read = TypeVar("_Read")


def ahead(
    read: Callable[[int, int], _Read],
    spans: Mapping[_Name, tuple[int, int]],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[tuple[_Name, _Read]]:
    """The name of each span, and what ``read`` gives of it, one span ahead of who asks.

    What a read raises surfaces where its span would have been given. ``stop`` is asked before each
    span is given, and before any is read; where it says so, no more are.
    """
    names = list(spans)
    if not names or stop():
        return
    if len(names) == 1:  # nothing to be read meanwhile
        yield names[0], read(*spans[names[0]])
        return
    with ThreadPoolExecutor(1, "certmask_jax reads ahead") as reader:
        waiting = reader.submit(read, *spans[names[0]])
        for name, following in zip(names, [*names[1:], None], strict=True):
            batch = waiting.result()
            if following is not None:
                waiting = reader.submit(read, *spans[following])
            yield name, batch
            if following is not None and stop():
                return
