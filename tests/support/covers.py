"""Random small covers: with 1-pixel-high images, any pattern of "mask hides location" occurs."""

from __future__ import annotations

import dataclasses

import numpy as np

from certmask_jax.masks.mask_set import CoverageError, MaskSet


def random_cover(rng: np.random.Generator, masks: int, width: int, patch: int) -> MaskSet:
    """Masks that are random pixel sets of a ``1 x width`` image and cover every location."""
    density = rng.uniform(0.3, 0.8)
    while True:
        hidden = rng.random((masks, width)) < density
        boxes = np.zeros((masks, width, 4), dtype=int)
        for mask, pixel in zip(*np.nonzero(hidden), strict=True):
            boxes[mask, pixel] = 0, pixel, 1, pixel + 1
        try:
            return MaskSet(boxes, (1, width), (1, min(patch, width)))
        except CoverageError:
            continue


def with_random_promise(rng: np.random.Generator, masks: MaskSet) -> MaskSet:
    """The same set, promising any k that it keeps."""
    most = int(masks.coverage().min())
    return dataclasses.replace(masks, promise=int(rng.integers(1, most + 1)))
