"""A file or folder in a bucket, and what TensorStore is asked about it.

TensorStore finds the credentials as the providers' own programs do.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

DRIVERS = {"gs": "gcs", "s3": "s3"}
_LOG_IN = {
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
# TensorStore repeats a request for a quarter of an hour, which is right in the midst of a run only.
_FIRST_CONTACT_RETRIES = {"max_retries": 2, "initial_delay": "200ms", "max_delay": "1s"}

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
      patience: how many seconds the first contact may take.
    """

    scheme: str
    bucket: str
    path: str
    patience: float = dataclasses.field(default=20.0, compare=False, repr=False)

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
        key = self.path.encode()
        return bool(answer(listed(self, key, key + b"\0"), self))

    def is_dir(self) -> bool:
        return bool(self.names_below())

    def iterdir(self) -> Iterator[BucketPath]:
        first = {name.split("/", 1)[0] for name in self.names_below()}
        yield from (self / name for name in sorted(first) if name)  # "": made in a web page

    def mkdir(self, *, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: a folder is there once a file is."""

    def read_bytes(self) -> bytes:
        return value_of(store_of(self).read(self.path), self)

    def write_bytes(self, content: bytes) -> None:
        answer(store_of(self).write(self.path, content), self)

    def unlink(self, *, missing_ok: bool = True) -> None:
        """Removes the file; that one is missing is no error."""
        answer(store_of(self).write(self.path, None), self)

    def names_below(self) -> list[str]:
        """Names of all files below, seen from here."""
        prefix = f"{self.path}/".encode()
        names = answer(listed(self, prefix, prefix[:-1] + b"0"), self)  # "0" comes after "/"
        return [key[len(prefix) :].decode() for key in names]


def store_of(where: BucketPath) -> Any:
    """The ``tensorstore.KvStore`` of the whole bucket.

    The first contact looks for a file that is not there, in the same folder as credentials may be
    for that alone. Whoever may not list is refused then: lists of Google's driver would be empty.
    """
    key = (where.scheme, where.bucket)
    if key not in _contacted:
        import tensorstore

        spec, retries = spec_of(where), f"{DRIVERS[where.scheme]}_request_retries"
        quick = tensorstore.Context({retries: _FIRST_CONTACT_RETRIES}, parent=shared_context())
        try:
            store = tensorstore.KvStore.open(spec, context=quick).result()
        except ValueError as error:  # such as a name that no bucket has
            raise explained(str(error).split("\n")[0], where) from error
        answer(store.read(f"{where.path}/first contact"), where, where.patience)
        _contacted[key] = tensorstore.KvStore.open(spec, context=shared_context()).result()
    return _contacted[key]


def spec_of(where: BucketPath) -> dict[str, Any]:
    """TensorStore's JSON for the store of the whole bucket."""
    spec = {"driver": DRIVERS[where.scheme], "bucket": where.bucket}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if where.scheme == "s3" and endpoint:  # as in Amazon's own programs
        spec["endpoint"] = endpoint
    return spec


@functools.cache
def shared_context() -> Any:
    """The ``tensorstore.Context`` of all buckets, so that they share one log-in."""
    import tensorstore

    return tensorstore.Context()


def listed(where: BucketPath, start: bytes, stop: bytes) -> Any:
    """The future of the keys from ``start`` to before ``stop``."""
    import tensorstore

    return store_of(where).list(tensorstore.KvStore.KeyRange(start, stop))


def answer(future: Any, where: BucketPath, seconds: float | None = None) -> Any:
    """What a future brings, waited for as long as it takes, or so many seconds.

    Raises:
      OSError: when the bucket refuses or does not answer.
    """
    try:
        return future.result(timeout=seconds)
    except TimeoutError as error:
        raise explained(f"no answer in {seconds:g} s", where) from error
    except ValueError as error:
        raise explained(str(error).split("\n")[0], where) from error


def value_of(future: Any, where: BucketPath) -> bytes:
    """What a file holds, of the future of its read.

    Raises:
      FileNotFoundError: when it is missing.
      OSError: as ``answer``.
    """
    result = answer(future, where)
    if result.state != "value":
        raise FileNotFoundError(errno.ENOENT, "No such object", str(where))
    return bytes(result.value)


def explained(text: str, where: BucketPath) -> OSError:
    """The ``OSError`` for one of TensorStore's errors, with what to do about it."""
    root = f"{where.scheme}://{where.bucket}"
    status, reason = match.groups() if (match := re.match(r"([A-Z_]+): (.*)", text)) else ("", text)
    reason = reason.split(" [")[0].rsplit("attempts failed: ", 1)[-1][:200]
    if status in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        why = f"no permission ({reason}); log in as one who may list, read, write and delete there"
        why += f" ({_LOG_IN[where.scheme]})"
    elif status == "NOT_FOUND" or "resolve aws_region" in text:
        why = f"there is no bucket {root} ({reason}); create it, or give another"
    else:
        why = f"the bucket cannot be reached ({reason}); check its name and the network"
    return OSError(errno.EIO, f"{where}: {why}")
