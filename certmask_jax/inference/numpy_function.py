"""A model of any framework as one NumPy function, and what has to be said of it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from certmask_jax.inference.whole_numbers import checked_whole

Logits = Callable[[NDArray[Any]], Any]
"""Images ``[B, h, w, c]`` -> logits ``[B, K]``, floating, of what NumPy takes for an array."""


@dataclasses.dataclass(frozen=True)
class NumpyFunction:
    """What stands where an ``ApplyFn`` does: ``predict``, ``defended`` and ``evaluate`` take it.

    Parameters beside it are ``()``, as the function holds its own.

    Attributes:
      logits: the function. It is only called with batches of one size, whole ones: the last is
        filled up, and what it says of the filling is thrown away.
      num_classes: K of what the function gives.
      sha256: what tells its weights from others, for the fingerprint of a run.
      dtype: of its images. ``"float32"``: masked, after ``Preprocessing`` (its fill is put in, and
        its mean and std are applied; these are 0 and 1 by default, which leaves pixels in [0, 1]).
        ``"uint8"``: masked pixels in 0..255, and mean and std are the function's own affair; they
        only say what colour the default fill has, rounded to a level.
      batch: B, where the function takes no other; None where any will do.
      outputs: which of the K are looked at, in this order; None for all.
    """

    logits: Logits
    num_classes: int
    sha256: str
    dtype: Literal["float32", "uint8"] = "float32"
    batch: int | None = None
    outputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not callable(self.logits):
            raise ValueError(f"logits: expected a function, got a {type(self.logits).__name__}")
        if self.dtype not in ("float32", "uint8"):
            raise ValueError(f"dtype: expected 'float32' or 'uint8', got {self.dtype!r}")
        classes = checked_whole(self.num_classes, "num_classes", 2, 32767)
        object.__setattr__(self, "num_classes", classes)
        if self.batch is not None:
            object.__setattr__(self, "batch", checked_whole(self.batch, "batch", 1))
        if not isinstance(self.sha256, str):
            raise ValueError(f"sha256: expected text, got {self.sha256!r}")
        if not self.sha256.strip():
            raise ValueError(_NO_IDENTITY)

    def __call__(self, params: Any, images: Any) -> Any:
        """Never: JAX cannot trace it.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "apply_fn: expected a function of JAX for this, got a NumPy function, which only "
            "engine_for runs: predict, defended and evaluate"
        )

    def checked(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The logits of one batch, ``float32[B, K]``, or of ``outputs``.

        Raises:
          ValueError: when the function raises anything, or gives no floating ``[B, K]``.
        """
        try:
            given = np.asarray(self.logits(images))
        except (Exception, SystemExit) as error:  # the function's own, of any kind
            why = " ".join(str(error).split())[:300]
            raise ValueError(
                f"logits: the function failed on images {images.dtype}{list(images.shape)} "
                f"({type(error).__name__}{': ' * bool(why)}{why})"
            ) from error
        wanted = (len(images), self.num_classes)
        if given.shape != wanted or not np.issubdtype(given.dtype, np.floating):
            raise ValueError(
                f"logits: expected floating numbers {list(wanted)} for images "
                f"{images.dtype}{list(images.shape)}, got {given.dtype}{list(given.shape)}"
            )
        with np.errstate(over="ignore"):  # infinite then, which is no label
            logits = given.astype(np.float32)
        return logits if self.outputs is None else logits[:, list(self.outputs)]


_NO_IDENTITY = (
    "sha256: expected what tells the weights of the function from others, as a run could not be "
    "resumed safely without: give sha256, or files to take it of"
)


def sha256_of(sha256: str | None, files: Iterable[str | os.PathLike[str]]) -> str:
    """What is given, or the digest of the contents of files, in their order.

    Raises:
      ValueError: for neither or both, or one file that is in no list.
      OSError: for a file that cannot be read.
    """
    if isinstance(files, str | bytes | os.PathLike) or not isinstance(files, Iterable):
        raise ValueError(f"files: expected a list of files, got {files!r}; put it in brackets")
    paths = list(files)
    for path in paths:
        if not isinstance(path, str | os.PathLike):  # a number would be an open file's
            raise ValueError(f"files: expected paths of files, got {path!r}")
    if sha256 is not None and paths:
        raise ValueError("files: expected none beside sha256, which says the same")
    if sha256 is not None:
        return sha256
    if not paths:
        raise ValueError(_NO_IDENTITY)
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
