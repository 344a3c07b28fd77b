"""A data set in two parts: images to choose on, and others to report on."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from certmask_jax.data import Batch, Listing
from certmask_jax.tables.image_sets import TestSet, listing_of


@dataclasses.dataclass(frozen=True, eq=False)
class SomeImages:
    """Some images of a test set, in an order of their own; a test set itself.

    Attributes:
      test_set: which has them.
      places: ``int[T]``, where they are there.
    """

    test_set: TestSet
    places: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.places)

    @functools.cached_property
    def listing(self) -> Listing | None:
        """What is known of them before any is decoded, where anything is."""
        of_all = listing_of(self.test_set)
        if of_all is None:
            return None
        whole = Listing(tuple(of_all.ids), np.asarray(of_all.labels), np.asarray(of_all.sizes))
        return whole.take(self.places)

    def read(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` of these (cut to the end), at least one."""
        parts = [self.test_set.read(int(at), int(at) + 1) for at in self.places[start:stop]]
        return Batch(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.labels for part in parts]).astype(np.int32),
            tuple(one for part in parts for one in part.ids),
        )

    def some(self, start: int, stop: int) -> SomeImages:
        """Those from ``start`` to ``stop`` of these."""
        return SomeImages(self.test_set, self.places[start:stop])


def halves(test_set: TestSet, calibrate: int | None, seed: int) -> tuple[SomeImages, SomeImages]:
    """Images to choose on, in a random order that the seed decides, and all others in their order.

    Args:
      test_set: at least two images.
      calibrate: how many to choose on; None for half of them, rounded down.
      seed: of the draw.

    Raises:
      ValueError: unless both parts get an image.
    """
    count = len(test_set)
    if count < 2:
        raise ValueError(
            f"num_images: expected at least 2, to choose on some and report on others, got {count}"
        )
    size = count // 2 if calibrate is None else calibrate
    if not 1 <= size < count:
        raise ValueError(
            f"calibrate: expected 1 to {count - 1} of the {count} images, so that some are left "
            f"to report on, got {size}"
        )
    order = np.random.default_rng(seed).permutation(count)
    return SomeImages(test_set, order[:size]), SomeImages(test_set, np.sort(order[size:]))
