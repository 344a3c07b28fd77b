"""What some file systems cannot do: sync a folder (SMB, VirtualBox, DrvFs), or lock (some NFS).

What cannot be done is left undone, as nobody could do it there; real errors (a full or a broken
disk) stay errors.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# How a system says "not here". EACCES: a folder that may be written to and not be read.
_CANNOT_SYNC = frozenset(
    getattr(errno, name)
    for name in (
        "EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "ENOTTY", "EBADF", "EISDIR", "EACCES", "EPERM",
        "EROFS",
    )
    if hasattr(errno, name)
)  # fmt: skip
_CANNOT_LOCK = frozenset(
    getattr(errno, name)
    for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EINVAL")
    if hasattr(errno, name)
)


def sync_folder(folder: Path) -> bool:
    """Brings the names in a folder down to the disk; False where its file system cannot.

    Raises:
      OSError: for a disk that fails.
    """
    return os.name == "posix" and _synced(folder)  # elsewhere a folder cannot be opened


def sync_file(file: Path) -> bool:
    """Makes sure that the content of a file is on the disk, as far as the system can."""
    return _synced(file)


def sync_handle(handle: int) -> bool:
    """Makes sure that the content of an open file is on the disk, as far as the system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _CANNOT_SYNC:
            return False
        raise
    return True


def tensorstore_options(folder: Path) -> dict[str, Any]:
    """What TensorStore's ``file`` driver is to leave out in a folder, or where that will be."""
    for there in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return dict(_options(there.stat().st_dev, there))
    return {}


def can_sync(folder: Path) -> bool:
    """Whether TensorStore syncs what it writes in a folder: contents and names, or neither."""
    return bool(tensorstore_options(folder).get("file_io_sync", True))


@contextlib.contextmanager
def orbax_in(folder: Path) -> Iterator[None]:
    """Lets Orbax write in ``folder``, or where that will be: it has no option for TensorStore's."""
    options = tensorstore_options(folder)
    if not options:
        yield
        return
    from orbax.checkpoint._src.serialization import tensorstore_utils

    contexts = [
        getattr(tensorstore_utils, name, {})
        for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT")
    ]
    before = [dict(context) for context in contexts]
    for context in contexts:
        context.update(options)
    try:
        yield
    finally:
        for context, old in zip(contexts, before, strict=True):
            context.clear()
            context.update(old)


@functools.lru_cache(maxsize=64)
def _options(device: int, folder: Path) -> dict[str, Any]:
    """Asked of each folder once; ``device`` is in the key for what is mounted over it."""
    options: dict[str, Any] = {}
    try:
        if os.name == "posix" and not _synced(folder):
            options["file_io_sync"] = False
    except OSError:  # a disk that fails: whoever writes there says so
        pass
    if not _locks(folder):
        options["file_io_locking"] = {"mode": "none"}
    return options


def _synced(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return False
    try:
        return sync_handle(handle)
    finally:
        os.close(handle)


def _locks(folder: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: TensorStore has another way there
        return True
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # one that another process holds is one that there is
        return error.errno not in _CANNOT_LOCK
    finally:
        os.close(handle)
    return True
