"""One process at a time writes in a folder, by a lock that ends with the process, however it ends.

A folder that a killed process left is free. In a bucket there are no locks, on some file systems
none either: there nobody is kept out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from certmask_jax._settings import FolderTakenError
from certmask_jax.files.storage import AnyPath


class FolderLock:
    """Keeps others out of a folder until it is closed, or dropped; use as a context manager.

    Args:
      folder: that is there.
      what: is written there, for the message: ``this table``.

    Raises:
      FileExistsError: while another process, or another lock of this one, holds it.
    """

    def __init__(self, folder: AnyPath, what: str) -> None:
        self._handle: int | None = None
        if isinstance(folder, Path):
            self._handle = _locked(folder, what)

    def close(self) -> None:
        """Lets others in; closing it again does nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _locked(folder: Path, what: str) -> int | None:
    """The handle that holds the lock; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise FolderTakenError(
            lambda say: (
                f"{folder}: another process is writing {what}; wait for it, or choose another "
                f"{say('folder', None)}"
            )
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle
