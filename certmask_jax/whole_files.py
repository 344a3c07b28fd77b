"""Files that are whole or not there, whatever happens to the process or the machine."""

from __future__ import annotations

import os
from pathlib import Path

UNFINISHED = ".unfinished"
"""How the names of files end that a killed process was writing: rubbish."""


def write(path: Path, content: bytes) -> None:
    """Writes beside the file and moves it into place, both down to the disk.

    Raises:
      OSError: when it cannot be written; what was there before still is.
    """
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
