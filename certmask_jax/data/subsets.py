"""Some images of a data set: the first, evenly over classes, or at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.data.sources import Found

# Labels that tell whether images come class after class, however few images are asked for.
_LOOKED_AT = 100


class Subset(NamedTuple):
    """Which images of a data set were taken, where not all were."""

    how: str  # "first", "evenly over classes" or "at random"
    of: int  # how many there are
    seed: int | None = None


def chosen(
    name: str, split: str, contents: Found, num_images: int | None, seed: int | None
) -> tuple[NDArray[np.intp], Subset | None]:
    """The numbers ``int[T]`` of the images that are taken, and how they were chosen.

    Args:
      name, split: what a user calls the data set, for errors.
      contents: the data set.
      num_images: how many to take; None takes all.
      seed: draw them at random; None takes the first, or as many of each class as can be where
        images come class after class.

    Raises:
      ValueError: for more images than there are, or a seed without a number of images.
    """
    total = contents.num_images
    if num_images is None:
        if seed is not None:
            raise ValueError("subset_seed: expected num_images, the number to draw, beside it")
        return np.arange(total), None
    if num_images > total:
        raise ValueError(
            f"num_images: expected at most {total}, as many as {name!r}, split {split!r} has, "
            f"got {num_images}"
        )
    if num_images == total:
        return np.arange(total), None
    if seed is not None:
        return at_random(total, num_images, seed), Subset("at random", total, seed)
    if contents.classes_of is not None and (
        contents.files is not None
        or come_by_class(contents.classes_of(min(total, max(num_images, _LOOKED_AT))).tolist())
    ):
        return (
            evenly(contents.classes_of(total), num_images),
            Subset("evenly over classes", total),
        )
    return np.arange(num_images), Subset("first", total)


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
