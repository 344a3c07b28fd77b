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


@contextlib.contextmanager
def errors_alone(name: str = "absl") -> Iterator[None]:
    """Within it a logger logs errors alone, as far as this thread calls it.

    Args:
      name: of the logger. None is made where there is none, which would be of another class than
        the library makes it of.
    """
    logger, only = logging.Logger.manager.loggerDict.get(name), _ErrorsOfThread()
    if not isinstance(logger, logging.Logger):
        yield
        return
    logger.addFilter(only)
    try:
        yield
    finally:
        logger.removeFilter(only)
