"""Where the files of a run lie: in a local folder, or in a folder of a bucket.

A local one is a ``pathlib.Path``. One in a bucket (``gs://BUCKET/FOLDER`` of Google Cloud Storage,
``s3://BUCKET/FOLDER`` of Amazon S3 or what speaks its language: ``AWS_ENDPOINT_URL``) is a
``BucketPath``, used alike. An object of a bucket is whole or not there, as one request puts it.
There is no lock in a bucket: nothing keeps two processes from writing the same table at a time.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from certmask_jax.files import buckets, file_systems
from certmask_jax.files.buckets import BucketPath as BucketPath
from certmask_jax.files.local_paths import in_utf8
from certmask_jax.files.local_paths import local_path as local_path

_FEW = 8  # files that are asked for one by one; of more the whole folder is listed

AnyPath = Path | BucketPath


def any_path(where: str | AnyPath) -> AnyPath:
    """A local path (see ``local_path``), or a folder in a bucket, of which nothing is asked.

    Raises:
      ValueError: for another scheme, no folder in the bucket, or a URL that ``pathlib`` shortened;
        and as ``local_path``.
      OSError: as ``local_path``.
    """
    text = str(where)
    expected = f"{text}: expected a local folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
    if isinstance(where, BucketPath):
        return where
    if re.match(r"(gs|s3):/(?!/)", text):
        raise ValueError(
            f"{expected}, got one slash after the colon; pathlib.Path leaves one of two: give text"
        )
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/*(.*)", text, re.DOTALL)
    if isinstance(where, Path) or not match:
        return local_path(where)
    scheme, bucket, path = match.groups()
    if scheme not in buckets.DRIVERS:
        raise ValueError(f"{expected}, got {scheme}://; write to a local folder and copy it there")
    names = [name for name in path.split("/") if name]
    if not bucket or not names or {".", ".."} & {*names}:
        what = "no bucket" if not bucket else "'.' or '..'" if names else "no folder in the bucket"
        raise ValueError(f"{expected}, got {what}")
    return BucketPath(scheme, bucket, "/".join(names))


def contents(files: Iterable[AnyPath]) -> Iterator[bytes]:
    """What each file holds, in their order; those of a bucket are all asked for at once.

    Raises:
      FileNotFoundError: when it comes to one that is missing.
    """
    asked = [f if isinstance(f, Path) else (f, buckets.store_of(f).read(f.path)) for f in files]
    for one in asked:
        yield one.read_bytes() if isinstance(one, Path) else buckets.value_of(one[1], one[0])


def absent(folder: AnyPath, files: Sequence[AnyPath]) -> list[AnyPath]:
    """Those of some files in a folder that are not there, in their order."""
    if isinstance(folder, Path):
        return [file for file in files if not file.is_file()]
    keys = [file.path.encode() for file in files if isinstance(file, BucketPath)]
    if len(files) > _FEW:
        there = {f"{folder.path}/{name}".encode() for name in folder.names_below()}
    else:
        asked = [buckets.listed(folder, key, key + b"\0") for key in keys]
        there = {key for future in asked for key in buckets.answer(future, folder)}
    return [file for file, key in zip(files, keys, strict=True) if key not in there]


def lacking(folder: AnyPath, remedy: str) -> str:
    """What an error got in place of a folder with some file, and what to do.

    ``remedy`` is what to do about a folder without that file. It may be no folder at all.
    """
    if folder.is_dir():
        return f"one without; {remedy}"
    if folder.exists():
        return "a file; give the folder that it is in"
    return "none: there is no such folder; check how its path is written"


def check_no_file(folder: AnyPath, name: str) -> None:
    """``NotADirectoryError`` where a file is in the way of a folder to be; ``name`` begins it."""
    above = folder.parents if isinstance(folder, Path) else ()
    there = next((one for one in (folder, *above) if one.exists()), folder)
    if there.exists() and not there.is_dir():
        which = "a file" if there == folder else f"one below the file {there}"
        raise NotADirectoryError(f"{name}: expected a folder, got {which}; choose another name")


def check_writable(folder: AnyPath) -> None:
    """``OSError`` unless files can be written to a folder, or where it is to be; none stays.

    Of a local one permissions are looked at. To a bucket a file is written, and removed: Google's
    answer to what lies in a bucket that does not exist is that nothing does, and only writing finds
    that out. A table begins to be written after the model is compiled.
    """
    if isinstance(folder, BucketPath):
        probe = folder / "table.json.unfinished"  # counted as rubbish should it stay
        buckets.answer(buckets.store_of(folder).write(probe.path, b""), folder, folder.patience)
        buckets.answer(buckets.store_of(folder).write(probe.path, None), folder, folder.patience)
        return
    for nearest in (folder, *folder.absolute().parents):
        if nearest.exists():
            break
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "it may not be written to" if nearest.is_dir() else "it is a file"
        raise OSError(
            errno.EACCES, f"{folder}: expected a folder for results, but of {nearest}: {why}"
        )


def kvstore(folder: AnyPath) -> dict[str, Any]:
    """TensorStore's JSON for the store of what lies in a folder."""
    if isinstance(folder, Path):
        options = file_systems.tensorstore_options(folder)
        return {"driver": "file", "path": f"{in_utf8(folder)}/", **options}
    return {**buckets.spec_of(folder), "path": f"{folder.path}/"}


def context(folder: AnyPath) -> Any:
    """The ``tensorstore.Context`` to open a folder's arrays in; all of buckets share one log-in."""
    return buckets.shared_context() if isinstance(folder, BucketPath) else None


def os_error(error: Exception, where: AnyPath) -> OSError | None:
    """The ``OSError`` behind one of TensorStore's errors; None where content is missing or bad."""
    text = str(error).split("\n")[0]
    if isinstance(where, Path):
        match = re.search(r"os_error_code='(\d+)'", str(error))
        if not match:
            return None
        return OSError(int(match[1]), text.split(": ", 1)[-1].split(" [os_error_code")[0])
    refused = re.search(r"\[(http_response|curl)_code=", text)
    bad = re.match(r"(DATA_LOSS|FAILED_PRECONDITION|OUT_OF_RANGE): |.* is missing$", text)
    return None if bad and not refused else buckets.explained(text, where)
