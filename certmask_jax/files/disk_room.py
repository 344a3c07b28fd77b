"""Whether a disk has room for what is to be written, before any work."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from certmask_jax._settings import WritingError

SPARE_BYTES = 1 << 20
"""For the reports beside what is written."""

SPARE_BYTES_A_FILE = 1 << 12
"""Of the file system."""


def check_room(folder: Path, needed: int, *, what: str) -> None:
    """``OSError`` (no space left) unless ``needed`` bytes more fit the disk of ``folder``.

    Args:
      folder: that they are to lie in, which need not be there yet.
      needed: bytes.
      what: they are, for the message.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise WritingError(
            errno.ENOSPC,
            lambda say: (
                f"{folder}: expected {needed / 1e6:.1f} MB of free disk for {what}, got "
                f"{free / 1e6:.1f} MB; free some space or choose another {say('folder', None)}"
            ),
        )
