"""Few rectangles that together contain every rectangle of at most a given area.

An attacker who may choose any shape of at most A pixels is one who chooses among these: a patch
inside a larger one is hidden with it (PatchCleanser, section 5.1).
"""

from __future__ import annotations

import math

import numpy as np

from certmask_jax import geometry
from certmask_jax.geometry import Size

_Shape = tuple[int, int]


def rectangles_of_area(
    image_size: Size, area: int, *, most: int = 6, masks_per_axis: Size = 6
) -> tuple[_Shape, ...]:
    """At most ``most`` rectangles that contain every rectangle of at most ``area`` pixels.

    Only the largest rectangles of that area count: of height h, and width ``min(w, A // h)``. The
    ones of heights from a to b are contained in one rectangle, of height b and the width that
    belongs to a. Of all ways to cut the heights into at most ``most`` runs it is the one whose
    masks are smallest: the sum, over the rectangles, of the area of PatchCleanser's mask for
    ``masks_per_axis`` masks an axis. For 1% of 224 x 224 (501 pixels) the paper's six have 31,890
    mask pixels in all, these six fewer.

    Args:
      image_size: pixels.
      area: A, in pixels, at least 1.
      most: how many rectangles, at least 1. One alone is the whole image, unless all of that area
        fit a smaller one; more are smaller, and cost more masks.
      masks_per_axis: the masks that they will have.

    Returns:
      ``(height, width)`` of each, from flat to tall; fewer than ``most`` where that is as good.

    Raises:
      ValueError: for an area or number below 1.
    """
    height, width = geometry.as_size(image_size, "image_size")
    budget = geometry.as_size(masks_per_axis, "masks_per_axis")
    if not isinstance(area, int | np.integer) or area < 1:
        raise ValueError(f"area: expected an int of at least 1 pixel, got {area!r}")
    if not isinstance(most, int | np.integer) or most < 1:
        raise ValueError(f"most: expected at least 1 rectangle, got {most!r}")
    widest = {min(width, area // h): h for h in range(1, min(height, area) + 1)}
    steps = [(h, w) for w, h in widest.items()]  # the tallest of each width, flat to tall

    def cost(shape: _Shape) -> int:
        masks = [
            p + -(-(n - p + 1) // k) - 1
            for n, p, k in zip((height, width), shape, budget, strict=True)
        ]
        return masks[0] * masks[1]

    # best[i]: the cheapest rectangles for the first i steps, with at most the runs tried so far.
    best: list[tuple[float, tuple[_Shape, ...]]] = [(0, ())] + [(math.inf, ())] * len(steps)
    for _ in range(min(most, len(steps))):
        best = [best[0]] + [
            min(
                [best[last]]
                + [
                    (best[first][0] + cost(run), (*best[first][1], run))
                    for first in range(last)
                    if best[first][0] < math.inf
                    for run in [(steps[last - 1][0], steps[first][1])]
                ],
                key=lambda found: (found[0], len(found[1])),
            )
            for last in range(1, len(steps) + 1)
        ]
    return best[-1][1]
