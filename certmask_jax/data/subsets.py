"""Some images of a data set: the first, evenly over classes, or at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def evenly(classes: ArrayLike, count: int) -> NDArray[np.intp]:
    """``count`` images, as many of each class as can be, the first of each; in their order.

    Args:
      classes: ``int[T]``, class of each image.
      count: at most T. What is left over when it is shared out goes to classes spread over all.

    Returns:
      ``int[count]``, ascending.
    """
    of = np.asarray(classes)
    turn = np.zeros(len(of), np.int64)  # which of its class each image is
    for one in np.unique(of):
        at = np.flatnonzero(of == one)
        turn[at] = np.arange(len(at))
    chosen: list[NDArray[np.intp]] = []
    left = count
    for number in range(int(turn.max(initial=-1)) + 1):
        these = np.flatnonzero(turn == number)
        if len(these) > left:
            these = these[np.argsort(of[these], kind="stable")]
            these = these[np.arange(left) * len(these) // left] if left else these[:0]
        chosen.append(these)
        left -= len(these)
        if not left:
            break
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.intp)


def at_random(total: int, count: int, seed: int) -> NDArray[np.intp]:
    """``count`` of ``total`` images without replacement, ascending; the same for a seed."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def come_by_class(labels: Sequence[int]) -> bool:
    """Whether images come class after class, so that the first of them stand for few classes.

    In whatever order the classes are. A handful says nothing; of eight or more, chance hardly ever
    puts as many side by side.
    """
    array = np.asarray(labels)
    classes = len(np.unique(array))
    blocks = 1 + int((np.diff(array) != 0).sum())
    return len(array) >= 8 and blocks == classes and 2 * classes <= len(array)
