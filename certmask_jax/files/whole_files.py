"""Files that are whole or not there, whatever happens to the process or the machine.

Where a file system cannot sync a folder the process may be killed at any moment as everywhere; a
machine that loses power then may lose the newest names.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from certmask_jax._text import encodable
from certmask_jax.files import file_systems
from certmask_jax.files.storage import AnyPath

UNFINISHED = ".unfinished"
"""How the names of files end that a killed process was writing: rubbish."""


def write(path: AnyPath, content: bytes) -> None:
    """Writes beside the file and moves it into place, both down to the disk where it can.

    In a bucket one request puts the object there as a whole.

    Raises:
      OSError: when it cannot be written; what was there before still is.
    """
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    unfinished = path.with_name(path.name + UNFINISHED)
    with named(path):
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            file_systems.sync_handle(file.fileno())
        os.replace(unfinished, path)
        file_systems.sync_folder(path.parent)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Lets an error of the system say which file it is about: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror is not None:
            error.filename = str(path)
        raise


def try_folder(path: Path) -> None:
    """Makes the folder that a file is to lie in, and ``OSError`` unless it can be written to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write_text(path: AnyPath, text: str) -> None:
    """``write`` for text, as UTF-8; what that cannot hold becomes escapes.

    A name that cannot be encoded, of an image, say, does not cost the results it stands in.
    """
    write(path, encodable(text).encode())
