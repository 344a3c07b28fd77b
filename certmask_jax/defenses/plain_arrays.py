"""Functions on plain arrays: NumPy in and NumPy out, or traced by JAX."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

AnyArray = Array | NDArray[Any]
"""An array of either kind."""


def as_given(result: Array, *given: Any) -> AnyArray:
    """A NumPy array, unless something that was given is an array of JAX."""
    return result if any(isinstance(one, Array) for one in given) else np.asarray(result)


def check_tables(tables: Any, votes: Any) -> None:
    """``ValueError`` unless these are labels of pairs of masks, and as many images' votes of bands.

    Args:
      tables: to be ``int[T, N, N]``.
      votes: to be of T images, ``[T, B, K]``.
    """
    array: AnyArray = tables if isinstance(tables, Array) else np.asarray(tables)
    shape = array.shape
    if len(shape) != 3 or shape[1] != shape[2] or not shape[1] or array.dtype.kind not in "iu":
        raise ValueError(f"tables: expected int[T, N, N], got {array.dtype}{list(shape)}")
    if np.ndim(votes) != 3 or len(votes) != shape[0]:
        raise ValueError(
            f"votes: expected those of {shape[0]} images, bool[{shape[0]}, bands, classes], got "
            f"the shape {list(np.shape(votes))}"
        )


def checked_classes(labels: Any, shape: tuple[int, ...], num_classes: int | None) -> AnyArray:
    """True classes as ``int32`` of ``shape``, on the side where they are.

    Args:
      labels: the true classes, one for each image.
      shape: of the axes of images.
      num_classes: K, or None where it is not known.

    Raises:
      ValueError: for another shape, no integers, or classes outside ``[0, K)``; these are looked
        at where the numbers are known, not while JAX traces.
    """
    array: AnyArray = labels if isinstance(labels, Array) else np.asarray(labels)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(
            f"labels: expected one integer for each image, int{list(shape)}, got {array.dtype} of "
            f"the shape {list(array.shape)}"
        )
    if not isinstance(array, jax.core.Tracer) and array.size:
        least, most = int(array.min()), int(array.max())
        end = np.iinfo(np.int32).max if num_classes is None else num_classes
        if least < 0 or most >= end:
            raise ValueError(
                f"labels: expected classes from 0 to {end - 1}, got {least if least < 0 else most}"
            )
    return array.astype(np.int32)
