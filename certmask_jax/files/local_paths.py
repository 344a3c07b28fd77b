"""Paths of this machine as people give them, made absolute and normal once, where they enter."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import re
import shutil
import tempfile
from pathlib import Path

_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
# What pathlib makes of an address: one slash of two.
_SHORTENED = re.compile(r"\s*(gs|s3|file|hf|https?|ftp|az|abfss?|hdfs):(/|$)", re.IGNORECASE)


def local_path(where: str | os.PathLike[str], *, is_written: bool = False) -> Path:
    """A local path, absolute and without ``..``, as the system and the shell understand it.

    Where ``..`` follows a link the system goes up from what the link leads to, so such paths are
    resolved; others keep their links. (TensorStore takes no ``..``.) ``~`` and ``~user`` in front
    are home folders; ``./~`` is a name. ``$VAR`` is left as it is.
    With ``is_written`` something is to be written there, and the remedy for an address is another.

    Raises:
      ValueError: for no path at all, one with a zero byte, the address of something elsewhere, or
        a home folder that there is not.
      OSError: when the system refuses to look there: no permission, a name that is too long, links
        that lead nowhere or in a loop. That something is missing is no error.
    """
    text = os.fspath(where)
    if not text or "\0" in text:
        raise ValueError(f"expected a local path, got {text!r}")
    if _ADDRESS.match(text) or _SHORTENED.match(text):
        if is_written:
            why = "files are written on this machine alone; write it here, and copy it there then"
        else:
            why = "only local files are read here; copy or download it first"
        raise ValueError(f"{text}: expected a local path, as {why}")
    text = _with_home(text)
    path = Path(os.path.realpath(text) if ".." in Path(text).parts else os.path.abspath(text))
    _look(path)
    return path


def in_utf8(folder: Path) -> Path:
    """Another name of a folder that is UTF-8, for libraries that take no other.

    A folder whose name holds other bytes gets a link to it, which goes when the process ends. What
    is to be made in the folder may be under it already.

    Raises:
      OSError: when what is not there yet has such a name.
    """
    if _is_utf8(folder):
        return folder
    for there in (folder, *folder.parents):
        if there.exists():
            rest = folder.relative_to(there)
            if _is_utf8(rest):
                return _link(there) / rest
            break
    raise OSError(
        errno.EILSEQ,
        f"{folder}: expected a name in UTF-8 for what is to be made there; give another, or make "
        "the folder first",
    )


def _with_home(text: str) -> str:
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = text.split("/")[0]
        why = "HOME is not set, and this user has no entry" if user == "~" else "no such user"
        raise ValueError(
            f"{text}: expected a home folder for {user}, found none ({why}); give the whole path "
            "(./~ is a file that is called so)"
        )
    return expanded


def _look(path: Path) -> None:
    """Raises unless something is there, or could be."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():
            why = f"it is a link to {os.readlink(path)}, which is not there"
        elif error.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        elif error.errno == errno.ELOOP:
            why = "its links lead in a loop"
        else:
            why = (error.strerror or str(error)).lower()
        raise OSError(
            error.errno, f"{path}: expected a path that can be followed, but {why}"
        ) from error
    except ValueError as error:  # what the system's encoding cannot hold
        raise ValueError(f"{path}: expected a local path ({error})") from error


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.cache
def _link(folder: Path) -> Path:
    link = _links() / str(len(os.listdir(_links())))
    os.symlink(folder, link, target_is_directory=True)
    return link


@functools.cache
def _links() -> Path:
    made = tempfile.mkdtemp(prefix="certmask_jax_names_")
    atexit.register(
        shutil.rmtree, made, ignore_errors=True
    )  # links go, and nothing that they lead to
    return Path(made)
