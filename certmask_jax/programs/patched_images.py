"""Patched test sets: on every image a patch of random noise, at a random location."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Collection

import numpy as np

from certmask_jax.data import Batch
from certmask_jax.tables.image_sets import Listing, TestSet


@dataclasses.dataclass(frozen=True)
class PatchedImages:
    """A test set with a patch on every image; what is put where depends on seed and image alone.

    Of files the name decides, so that one that is removed changes no other; else the number.
    """

    clean: TestSet
    patch_size: tuple[int, int]
    seed: int

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def listing(self) -> Listing | None:
        """The listing of the clean images."""
        return getattr(self.clean, "listing", None)

    @property
    def whole(self) -> PatchedImages | None:
        """Where the clean images are a subset: all of what it was taken from, patched alike."""
        whole = getattr(self.clean, "whole", None)
        return None if whole is None else dataclasses.replace(self, clean=whole)

    def original_sizes(self, ids: Collection[str]) -> dict[str, tuple[int, int]]:
        """The sizes of the clean images, see ``Dataset.original_sizes``."""
        sizes: dict[str, tuple[int, int]] = getattr(self.clean, "original_sizes")(ids)  # noqa: B009
        return sizes

    def read(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` with their patches; labels and ids are the clean ones."""
        batch = self.clean.read(start, stop)
        images = batch.images.copy()
        of_files = self.listing is not None
        for number, (image, image_id) in enumerate(zip(images, batch.ids, strict=True), start):
            key = zlib.crc32(image_id.encode()) if of_files else number
            random = np.random.default_rng([self.seed, key])
            height, width = self.patch_size
            top = random.integers(image.shape[0] - height + 1)
            left = random.integers(image.shape[1] - width + 1)
            noise = random.integers(0, 256, (height, width, image.shape[2]), np.uint8)
            image[top : top + height, left : left + width] = noise
        return Batch(images, batch.labels, batch.ids)
