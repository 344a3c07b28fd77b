"""Where the files of a run lie: in a local folder, or in a folder of a bucket.

A local one is a ``pathlib.Path``. One in a bucket (``gs://BUCKET/FOLDER`` of Google Cloud Storage,
``s3://BUCKET/FOLDER`` of Amazon S3 or what speaks its language: ``AWS_ENDPOINT_URL``) is a
``BucketPath``, used alike. TensorStore talks to it, which finds the credentials as the
providers' own programs do. An object of a bucket is whole or not there, as one request puts it.
There is no lock in a bucket: nothing keeps two processes from writing the same table at a time.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from certmask_jax.files import file_systems
from certmask_jax.files.local_paths import in_utf8
from certmask_jax.files.local_paths import local_path as local_path

_DRIVERS = {"gs": "gcs", "s3": "s3"}
_LOG_IN = {
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_FIRST_CONTACT_SECONDS = 20.0
# TensorStore repeats a request for a quarter of an hour, which is right in the midst of a run only.
_FIRST_CONTACT_RETRIES = {"max_retries": 2, "initial_delay": "200ms", "max_delay": "1s"}
_FEW = 8  # files that are asked for one by one; of more the whole folder is listed

_contacted: dict[tuple[str, str], Any] = {}  # (scheme, bucket) -> its tensorstore.KvStore


@dataclasses.dataclass(frozen=True)
class BucketPath:
    """A file or folder in a bucket, with as much of ``pathlib.Path`` as tables and reports need.

    A folder is there while something lies in it. Every method that asks the bucket raises
    ``OSError`` when that does not answer, refuses, or does not exist: in the first contact within
    seconds, later after the requests were repeated for minutes.

    Attributes:
      scheme: ``gs`` or ``s3``.
      bucket: its name.
      path: names joined by single slashes; never empty.
    """

    scheme: str
    bucket: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}"

    def __truediv__(self, name: str) -> BucketPath:
        return dataclasses.replace(self, path=f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def absolute(self) -> BucketPath:
        return self

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return not absent(self, [self])

    def is_dir(self) -> bool:
        return bool(self._names())

    def iterdir(self) -> Iterator[BucketPath]:
        first = {name.split("/", 1)[0] for name in self._names()}
        yield from (self / name for name in sorted(first) if name)  # "": made in a web page

    def mkdir(self, *, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: a folder is there once a file is."""

    def read_bytes(self) -> bytes:
        return next(contents([self]))

    def write_bytes(self, content: bytes) -> None:
        _answer(_bucket(self).write(self.path, content), self)

    def unlink(self, *, missing_ok: bool = True) -> None:
        """Removes the file; that one is missing is no error."""
        _answer(_bucket(self).write(self.path, None), self)

    def _names(self) -> list[str]:
        """Of all files below, from here."""
        prefix = f"{self.path}/".encode()
        found = _answer(_list(self, prefix, prefix[:-1] + b"0"), self)  # "0" comes after "/"
        return [key[len(prefix) :].decode() for key in found]


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
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/*(.*)", text, re.DOTALL)
    if isinstance(where, Path) or not found:
        return local_path(where)
    scheme, bucket, path = found.groups()
    if scheme not in _DRIVERS:
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
    asked = [f if isinstance(f, Path) else (f, _bucket(f).read(f.path)) for f in files]
    for one in asked:
        if isinstance(one, Path):
            yield one.read_bytes()
            continue
        result = _answer(one[1], one[0])
        if result.state != "value":
            raise FileNotFoundError(errno.ENOENT, "No such object", str(one[0]))
        yield bytes(result.value)


def absent(folder: AnyPath, files: Sequence[AnyPath]) -> list[AnyPath]:
    """Those of some files in a folder that are not there, in their order."""
    if isinstance(folder, Path):
        return [file for file in files if not file.is_file()]
    keys = [file.path.encode() for file in files if isinstance(file, BucketPath)]
    if len(files) > _FEW:
        there = {f"{folder.path}/{name}".encode() for name in folder._names()}
    else:
        asked = [_list(folder, key, key + b"\0") for key in keys]
        there = {key for future in asked for key in _answer(future, folder)}
    return [file for file, key in zip(files, keys, strict=True) if key not in there]


def check_writable(folder: AnyPath) -> None:
    """``OSError`` unless a file can be written to a bucket and removed; local folders are let be.

    Google's answer to what lies in a bucket that does not exist is that nothing does: only writing
    finds that out, and a table that begins to be written does so after the model is compiled.
    """
    if isinstance(folder, BucketPath):
        probe = folder / "table.json.unfinished"  # counted as rubbish should it stay
        _answer(_bucket(folder).write(probe.path, b""), folder, _FIRST_CONTACT_SECONDS)
        _answer(_bucket(folder).write(probe.path, None), folder, _FIRST_CONTACT_SECONDS)


def kvstore(folder: AnyPath) -> dict[str, Any]:
    """TensorStore's JSON for the store of what lies in a folder."""
    if isinstance(folder, Path):
        options = file_systems.tensorstore_options(folder)
        return {"driver": "file", "path": f"{in_utf8(folder)}/", **options}
    return {**_bucket_spec(folder), "path": f"{folder.path}/"}


def context(folder: AnyPath) -> Any:
    """The ``tensorstore.Context`` to open a folder's arrays in; all of buckets share one log-in."""
    return _shared_context() if isinstance(folder, BucketPath) else None


def os_error(error: Exception, where: AnyPath) -> OSError | None:
    """The ``OSError`` behind one of TensorStore's errors; None where content is missing or bad."""
    text = str(error).split("\n")[0]
    if isinstance(where, Path):
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if not found:
            return None
        return OSError(int(found[1]), text.split(": ", 1)[-1].split(" [os_error_code")[0])
    refused = re.search(r"\[(http_response|curl)_code=", text)
    bad = re.match(r"(DATA_LOSS|FAILED_PRECONDITION|OUT_OF_RANGE): |.* is missing$", text)
    return None if bad and not refused else _explained(text, where)


def _explained(text: str, where: BucketPath) -> OSError:
    root = f"{where.scheme}://{where.bucket}"
    status, reason = found.groups() if (found := re.match(r"([A-Z_]+): (.*)", text)) else ("", text)
    reason = reason.split(" [")[0].rsplit("attempts failed: ", 1)[-1][:200]
    if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        why = f"no permission ({reason}); log in as one who may list, read, write and delete there"
        why += f" ({_LOG_IN[where.scheme]})"
    elif status == "NOT_FOUND" or "resolve aws_region" in text:
        why = f"there is no bucket {root} ({reason}); create it, or give another"
    else:
        why = f"the bucket cannot be reached ({reason}); check its name and the network"
    return OSError(errno.EIO, f"{where}: {why}")


def _bucket(where: BucketPath) -> Any:
    """The ``tensorstore.KvStore`` of the whole bucket.

    The first contact looks for a file that is not there, in the same folder as credentials may be
    for that alone. Whoever may not list is refused then: lists of Google's driver would be empty.
    """
    key = (where.scheme, where.bucket)
    if key not in _contacted:
        import tensorstore

        spec, retries = _bucket_spec(where), f"{_DRIVERS[where.scheme]}_request_retries"
        quick = tensorstore.Context({retries: _FIRST_CONTACT_RETRIES}, parent=_shared_context())
        try:
            store = tensorstore.KvStore.open(spec, context=quick).result()
        except ValueError as error:  # such as a name that no bucket has
            raise _explained(str(error).split("\n")[0], where) from error
        _answer(store.read(f"{where.path}/first contact"), where, _FIRST_CONTACT_SECONDS)
        _contacted[key] = tensorstore.KvStore.open(spec, context=_shared_context()).result()
    return _contacted[key]


def _bucket_spec(where: BucketPath) -> dict[str, Any]:
    spec = {"driver": _DRIVERS[where.scheme], "bucket": where.bucket}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if where.scheme == "s3" and endpoint:  # as in Amazon's own programs
        spec["endpoint"] = endpoint
    return spec


@functools.cache
def _shared_context() -> Any:
    import tensorstore

    return tensorstore.Context()


def _list(where: BucketPath, start: bytes, stop: bytes) -> Any:
    import tensorstore

    return _bucket(where).list(tensorstore.KvStore.KeyRange(start, stop))


def _answer(future: Any, where: BucketPath, seconds: float | None = None) -> Any:
    try:
        return future.result(timeout=seconds)
    except TimeoutError as error:
        raise _explained(f"no answer in {seconds:g} s", where) from error
    except ValueError as error:
        raise _explained(str(error).split("\n")[0], where) from error
