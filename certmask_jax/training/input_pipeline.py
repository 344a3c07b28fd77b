"""Training images ahead of the step: decoded in threads, in an order that only the seed decides.

A source gives images by number. ``prefetched`` asks it for batches a few steps ahead, in
order. Sets that fit are decoded once into memory; both kinds give the same images, bit by bit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax._settings import SettingError

OnUnreadable = Literal["stop", "skip"]

_T = TypeVar("_T")
_BATCHES_AHEAD = 4


class Pixels(NamedTuple):
    """A batch as it goes to the device."""

    images: NDArray[np.uint8]  # [B, h, w, c]
    labels: NDArray[np.int32]  # [B]


class Source(Protocol):
    """T training images by number."""

    def __len__(self) -> int: ...
    def gather(self, numbers: NDArray[np.int64]) -> Pixels: ...


class Decoded(Protocol):
    """A data set that decodes on request (``data.Dataset`` is one)."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Any: ...


class InMemory:
    """Images ``uint8[T, h, w, c]`` and labels ``int[T]`` as a source."""

    def __init__(self, images: NDArray[np.uint8], labels: ArrayLike) -> None:
        self.images = images
        self.labels = np.asarray(labels, dtype=np.int32)
        if self.labels.shape != (len(images),):
            raise ValueError(
                f"labels: expected one for each of the {len(images)} images, got shape "
                f"{self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, numbers: NDArray[np.int64]) -> Pixels:
        return Pixels(self.images[numbers], self.labels[numbers])


class Streamed:
    """A data set as a source; every image is decoded when its turn comes, in threads.

    Args:
      dataset: what to read.
      workers: threads that decode.
      on_unreadable: ``"stop"``, or ``"skip"``: the next image of the set that can be read takes the
        place of one that cannot, label and all, so that batches keep their size and the run stays
        a function of seed and data.

    Attributes:
      unreadable: number -> what is wrong with it, of the images that were found unreadable so far.
    """

    def __init__(
        self, dataset: Decoded, *, workers: int = 8, on_unreadable: OnUnreadable = "stop"
    ) -> None:
        self._dataset = dataset
        self._pool = ThreadPoolExecutor(workers, "decode")
        self._skips = on_unreadable == "skip"
        self._lock = threading.Lock()
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def gather(self, numbers: NDArray[np.int64]) -> Pixels:
        """The batch of these images.

        Raises:
          ValueError: naming an image that cannot be decoded, unless those are skipped; or when
            none of the set can be.
        """
        examples = list(self._pool.map(self._one, numbers.tolist()))
        images, labels = zip(*examples, strict=True)
        return Pixels(np.stack(images), np.array(labels, np.int32))

    def _one(self, number: int) -> tuple[NDArray[np.uint8], int]:
        count = len(self._dataset)
        for candidate in range(number, number + count):
            candidate %= count
            if candidate in self.unreadable:
                continue
            try:
                batch = self._dataset.read(candidate, candidate + 1)
            except (ValueError, OSError) as error:
                if not self._skips:
                    raise _unreadable(candidate, str(error)) from error
                with self._lock:
                    self.unreadable[candidate] = str(error)
                continue
            return batch.images[0], int(batch.labels[0])
        raise ValueError(f"expected images that can be read, got none among {count}")


def _unreadable(number: int, why: str) -> SettingError:
    return SettingError(
        lambda say: (
            f"image {number} of the training set cannot be read: {why}; mend it, or "
            f"{say('on_unreadable', 'skip')}"
        )
    )


def in_memory(
    source: Source, *, progress: Callable[[int], None] | None = None, at_once: int = 256
) -> InMemory:
    """Reads all of a source once; ``progress`` gets the number of images since the last call."""
    parts = []
    for start in range(0, len(source), at_once):
        parts.append(source.gather(np.arange(start, min(start + at_once, len(source)))))
        if progress is not None:
            progress(len(parts[-1].labels))
    return InMemory(
        np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts])
    )


class Subset:
    """Some images of a source, as a source."""

    def __init__(self, source: Source, numbers: NDArray[np.int64]) -> None:
        self._source = source
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def gather(self, numbers: NDArray[np.int64]) -> Pixels:
        return self._source.gather(self._numbers[numbers])


def split_off(source: Source, held_out: int, *, seed: int) -> tuple[Source, Source | None]:
    """Keeps ``held_out`` random images out of training: (the others, these or None).

    Raises:
      ValueError: unless some images are left to train on.
    """
    if not held_out:
        return source, None
    if not 0 < held_out < len(source):
        raise ValueError(
            f"held_out: expected fewer than the {len(source)} training images, got {held_out}"
        )
    order = np.random.default_rng(seed).permutation(len(source))
    return Subset(source, np.sort(order[held_out:])), Subset(source, np.sort(order[:held_out]))


class EpochPlan(NamedTuple):
    """What one pass over the data looks at, and the randomness of its steps."""

    numbers: NDArray[np.int64]  # [steps, batch]
    keys: Array  # [steps], of augmentation and Cutout


@reproducible()
def epoch_plan(seed: int, epoch: int, *, images: int, batch_size: int) -> EpochPlan:
    """A pure function of seed and epoch: a shuffle of all images, cut to whole batches."""
    steps = images // batch_size
    key = jax.random.fold_in(jax.random.key(seed + 1), epoch)
    keys = jax.random.split(key, steps + 1)
    order = np.asarray(jax.random.permutation(keys[0], images)).astype(np.int64)
    return EpochPlan(order[: steps * batch_size].reshape(steps, batch_size), keys[1:])


def prefetched(
    work: Iterable[_T], prepare: Callable[[_T], Any], *, ahead: int = _BATCHES_AHEAD
) -> Generator[Any, None, None]:
    """``prepare(item)`` of each item, in order, computed up to ``ahead`` items early in a thread.

    An error in ``prepare`` is raised where its item would have come. Closing the iterator drops
    what was not asked for.
    """
    pool = ThreadPoolExecutor(1, "prefetch")
    waiting: deque[Future[Any]] = deque()
    try:
        for item in work:
            waiting.append(pool.submit(prepare, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
