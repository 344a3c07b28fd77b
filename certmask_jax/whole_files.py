"""Files that are whole or not there, whatever happens to the process or the machine."""

from __future__ import annotations

import os
from pathlib import Path

from certmask_jax.storage import AnyPath

UNFINISHED = ".unfinished"
"""How the names of files end that a killed process was writing: rubbish."""


def write(path: AnyPath, content: bytes) -> None:
    """Writes beside the file and moves it into place, both down to the disk.

    In a bucket one request puts the object there as a whole.

    Raises:
      OSError: when it cannot be written; what was there before still is.
    """
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
