"""What is tried of a NumPy function before a run: what it says of an image twice, and elsewhere.

A certificate is about a function of one image, and is found out in batches that mix many. It holds
for no function that says of an image what depends on the others of its batch, or on its place among
them: as a batch normalisation in training mode does, which takes its statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1 / 50
"""What logits may differ by at another place, as a share of how far apart those of an image are.

Frameworks mostly keep every bit; where one does not, last bits of float16 or a level of int8 are up
to a hundredth. A batch normalisation in training mode changes a tenth and more.
"""


def says_the_same_again(
    logits: Callable[[NDArray[np.uint8]], NDArray[np.float32]], shape: tuple[int, int, int, int]
) -> bool:
    """Whether two answers for one batch of noise are the same to the bit.

    Half of its images are then given again, each at another place, beside black and white images.
    Batches of one image cannot show anything by that, as there the function sees no others.

    Args:
      logits: images ``uint8[B, h, w, c]`` -> ``float32[B, K]``.
      shape: ``(B, h, w, c)``.

    Raises:
      ValueError: where the logits of these images differ by more than rounding does, and by more
        than twice what those of one batch do.
    """
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    once, twice = logits(noise), logits(noise)
    kept = len(noise) // 2
    if kept:
        places = len(noise) - 1 - np.arange(kept)  # none is its own
        others = np.zeros_like(noise)
        others[1::2] = 255
        others[places] = noise[:kept]
        beside_others = logits(others)[places]
        differ = _difference(once[:kept], beside_others)
        if differ > _ROUNDING * _spread(once[:kept]) + 2 * _difference(once, twice):
            raise ValueError(
                "logits: expected that what the function says of an image does not depend on the "
                f"others of its batch, got logits that differ by {differ:.3g}; is it in its "
                "evaluation mode?"
            )
    return bool(np.array_equal(once, twice, equal_nan=True))


def _difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest; infinite where one of two numbers is none, or infinite."""
    is_same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(is_same, 0, np.abs(one - other))
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _spread(logits: NDArray[np.float32]) -> float:
    """How far apart the finite logits of an image are, at most."""
    finite = np.isfinite(logits)
    largest = np.where(finite, logits, -np.inf).max(axis=1)
    least = np.where(finite, logits, np.inf).min(axis=1)
    return float(np.where(finite.any(axis=1), largest - least, 0).max())
