"""Sets of images that are read a few at a time: what a run asks of one, and which can be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Batch(Protocol):
    """Some images of a test set."""

    @property
    def images(self) -> NDArray[np.uint8]: ...  # [B, h, w, c]
    @property
    def labels(self) -> NDArray[np.int32]: ...  # [B]
    @property
    def ids(self) -> tuple[str, ...]: ...  # [B]


class TestSet(Protocol):
    """A test set that is read a few images at a time (``data.Dataset`` is one), by one thread.

    ``read`` raises ``UnreadableImage`` for an image that it cannot give. One that knows its images
    without decoding them has a ``listing`` (see ``Listing``).
    """

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Batch: ...


class FirstImages:
    """The first images of a test set, which is one too.

    Args:
      test_set: of at least so many.
      count: how many.
    """

    def __init__(self, test_set: TestSet, count: int) -> None:
        self._test_set, self._count = test_set, count

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Batch:
        """As of the whole."""
        return self._test_set.read(start, stop)


class Listing(Protocol):
    """What is known of T images before any is decoded."""

    @property
    def ids(self) -> tuple[str, ...]: ...  # [T], each once
    @property
    def labels(self) -> NDArray[np.int32]: ...  # [T]
    @property
    def sizes(self) -> NDArray[np.int64]: ...  # [T], bytes of each file


@dataclasses.dataclass(frozen=True, eq=False)
class Readable:
    """A test set without the images that are known not to be readable; to plan a run with."""

    test_set: TestSet
    places: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` of those that are left, at least one."""
        places = self.places[start:stop]
        if len(places) == 1 or (np.diff(places) == 1).all():
            return self.test_set.read(int(places[0]), int(places[-1]) + 1)
        parts = [self.test_set.read(int(place), int(place) + 1) for place in places]
        return _Joined(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.labels for part in parts]),
            tuple(one for part in parts for one in part.ids),
        )


class _Joined(NamedTuple):
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    ids: tuple[str, ...]


def readable(test_set: TestSet, unreadable: Mapping[str, str]) -> TestSet:
    """``test_set``, without images that are known not to be readable (by id)."""
    listing = listing_of(test_set)
    if listing is None or not unreadable:
        return test_set
    kept = [place for place, image_id in enumerate(listing.ids) if image_id not in unreadable]
    if not kept:
        raise ValueError(f"expected an image that can be read, got none of {len(listing.ids)}")
    return Readable(test_set, np.array(kept, np.intp))


def places_of(test_set: TestSet, ids: Sequence[str]) -> NDArray[np.intp]:
    """Where images are in a test set now, or -1; without a listing they are where they were."""
    listing = listing_of(test_set)
    if listing is None:
        return np.arange(len(ids))
    place_of = {image_id: place for place, image_id in enumerate(listing.ids)}
    return np.array([place_of.get(image_id, -1) for image_id in ids], np.intp)


def listing_of(test_set: TestSet) -> Listing | None:
    """What is known of a test set's images before any is decoded, where anything is."""
    return getattr(test_set, "listing", None)
