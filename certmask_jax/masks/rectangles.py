"""Few rectangles that together contain every rectangle of at most a given area.

An attacker who may choose any shape of at most A pixels is one who chooses among these: a patch
inside a larger one is hidden with it (PatchCleanser, section 5.1).
"""

from __future__ import annotations

import math

import numpy as np

from certmask_jax.masks import geometry
from certmask_jax.masks.geometry import Size

_Shape = tuple[int, int]


def rectangles_of_area(
    image_size: Size, area: int, *, most: int = 6, masks_per_axis: Size = 6
) -> tuple[_Shape, ...]:
    """At most ``most`` rectangles that contain every rectangle of at most ``area`` pixels.

    Only the largest rectangles of that area count: of height h, and width ``min(w, A // h)``. Those
    of heights from a to b are contained in one rectangle, of height b and the width that belongs to
    a, so that the rectangles are a cut of the heights into runs. What a rectangle costs is the area
    of its mask in PatchCleanser's set of ``masks_per_axis``, as the largest masks lose most images.
    Chosen is the cut of the least largest mask, of these one of the fewest rectangles, and of these
    the one of the least masks in sum.

    Args:
      image_size: pixels.
      area: A, in pixels, at least 1.
      most: how many rectangles, at least 1. More are smaller, with more masks in all.
      masks_per_axis: the masks that they will have.

    Returns:
      ``(height, width)`` of each, from flat to tall; none contains another.

    Raises:
      ValueError: for an area or number below 1.
    """
    image = geometry.as_size(image_size, "image_size")
    budget = geometry.as_size(masks_per_axis, "masks_per_axis")
    if not isinstance(area, int | np.integer) or area < 1:
        raise ValueError(f"area: expected an int of at least 1 pixel, got {area!r}")
    if not isinstance(most, int | np.integer) or most < 1:
        raise ValueError(f"most: expected at least 1 rectangle, got {most!r}")
    tallest = {min(image[1], area // h): h for h in range(1, min(image[0], area) + 1)}
    steps = [(h, w) for w, h in tallest.items()]  # flat to tall

    # cost[first][last]: of the mask for steps first to last, in one rectangle.
    cost = [[_mask_area(image, (last[0], first[1]), budget) for last in steps] for first in steps]
    limit: list[float] = [0, *[math.inf] * len(steps)]  # least largest mask for the first i steps
    for _ in range(min(most, len(steps))):
        limit = [0] + [
            min(max(limit[first], cost[first][last]) for first in range(last + 1))
            for last in range(len(steps))
        ]
    chosen: list[tuple[int, int, tuple[_Shape, ...]]] = [(0, 0, ())]
    for last in range(len(steps)):
        chosen.append(
            min(
                (count + 1, total + cost[first][last], (*runs, (steps[last][0], steps[first][1])))
                for first, (count, total, runs) in enumerate(chosen)
                if cost[first][last] <= limit[-1]
            )
        )
    return chosen[-1][2]


def _mask_area(image: tuple[int, int], shape: _Shape, budget: tuple[int, int]) -> int:
    """Pixels of a mask of ``mask_sets.budgeted_grid``."""
    rows, cols = (
        p + -(-(n - p + 1) // k) - 1 for n, p, k in zip(image, shape, budget, strict=True)
    )
    return rows * cols
