"""What other libraries log while they work for this one: their errors, and not their advice.

TFDS advises through ``absl`` which packages would be faster, in the midst of what a program
prints. Only what is logged by the thread that is inside, while it is inside, is looked at: whoever
uses such a library too has its log as before.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator


class _ErrorsOfThread(logging.Filter):
    """Drops what one thread logs below ``ERROR``."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.thread != self._thread


class _NoTracebacks(logging.Filter):
    """Drops exceptions that are logged, of any thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.exc_info


def errors_alone(name: str = "absl") -> contextlib.AbstractContextManager[None]:
    """Within it a logger logs errors alone, as far as this thread calls it.

    Args:
      name: of the logger. None is made where there is none, which would be of another class than
        the library makes it of.
    """
    return _filtered(name, _ErrorsOfThread())


def raised_alone(name: str = "absl") -> contextlib.AbstractContextManager[None]:
    """Within it a logger logs no exceptions: for calls that raise what their threads log too.

    Orbax logs a traceback for each of its threads in which a write failed, and raises the first.
    """
    return _filtered(name, _NoTracebacks())


@contextlib.contextmanager
def _filtered(name: str, only: logging.Filter) -> Iterator[None]:
    logger = logging.Logger.manager.loggerDict.get(name)
    if not isinstance(logger, logging.Logger):
        yield
        return
    logger.addFilter(only)
    try:
        yield
    finally:
        logger.removeFilter(only)
