"""One process at a time in a folder, and any after one that was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from certmask_jax.files.folder_locks import FolderLock

# As another process that holds the lock, without what takes long to import.
_HOLDS = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_keeps_others_out_until_it_is_closed_or_dropped(tmp_path):
    with FolderLock(tmp_path, "this table") as first:
        with pytest.raises(FileExistsError) as told:
            FolderLock(tmp_path, "this table")
        assert str(told.value) == (
            f"{tmp_path}: another process is writing this table; wait for it, or choose another "
            "folder"
        )
        first.close()
        dropped = FolderLock(tmp_path, "this table")
    first.close()  # closes no handle of another
    with pytest.raises(FileExistsError):
        FolderLock(tmp_path, "this table")
    del dropped
    FolderLock(tmp_path, "this table").close()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    command = [sys.executable, "-S", "-c", _HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(FileExistsError, match="another process is writing this attack"):
                FolderLock(tmp_path, "this attack")
        finally:
            other.send_signal(signal.SIGKILL)
    FolderLock(tmp_path, "this attack").close()


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with FolderLock(tmp_path, "this table"):
        FolderLock(tmp_path, "this table").close()
