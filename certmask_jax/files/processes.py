"""Several processes of one job (``jax.distributed``): who does which part, and who waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np


def is_first() -> bool:
    """Whether this is the process that writes what there is one of."""
    return bool(jax.process_index() == 0)


def share_of_this(share: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """``(i, n)`` of a job -> that of this process: some of the job's blocks (i, i + n, ...)."""
    part, parts = share
    return part + parts * jax.process_index(), parts * jax.process_count()


@contextlib.contextmanager
def first_alone(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enters a context in the first process, then in the others: what it makes is there for them.

    Raises:
      OSError: in the others, when the first could not enter.
    """
    if jax.process_count() == 1:
        with context:
            yield
        return
    with contextlib.ExitStack() as stack:
        entered = False
        try:
            if is_first():
                stack.enter_context(context)
            entered = True
        finally:
            everyone = _gathered(entered)
        if not everyone:
            raise OSError("the first process of this run could not begin; its error says why")
        if not is_first():
            stack.enter_context(context)
        yield


def wait_for_all(name: str) -> None:
    """Returns once all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        with _told_who_is_gone():
            multihost_utils.sync_global_devices(name)


def any_says(yes: bool) -> bool:
    """Whether some process says yes; all have to ask."""
    return not _gathered(not yes) if jax.process_count() > 1 else yes


def _gathered(ok: bool) -> bool:
    from jax.experimental import multihost_utils

    with _told_who_is_gone():
        return bool(np.asarray(multihost_utils.process_allgather(np.array(ok))).all())


@contextlib.contextmanager
def _told_who_is_gone() -> Iterator[None]:
    """``ConnectionError`` in place of JAX's for a process that ended while others wait for it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(
            f"another process of this run is gone ({str(error).splitlines()[0][:120]}); its own "
            "last lines say why. What was finished stays: start all of them again, and they go on"
        ) from error
