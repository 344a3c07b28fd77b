"""Functions on plain arrays: NumPy in and NumPy out, or traced by JAX."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array
from numpy.typing import NDArray

AnyArray = Array | NDArray[Any]
"""An array of either kind."""


def as_given(result: Array, *given: Any) -> AnyArray:
    """A NumPy array, unless something that was given is an array of JAX."""
    return result if any(isinstance(one, Array) for one in given) else np.asarray(result)


def checked_classes(labels: AnyArray, shape: tuple[int, ...], num_classes: int) -> None:
    """``ValueError`` unless there is a true class for each image, where that can be known.

    Args:
      labels: the true classes.
      shape: of the axes of images.
      num_classes: K; what JAX traces is not looked at.
    """
    if np.shape(labels) != shape:
        raise ValueError(
            f"labels: expected one for each image, int{list(shape)}, got shape "
            f"{list(np.shape(labels))}"
        )
    if isinstance(labels, Array):
        return
    known = np.asarray(labels)
    if not np.issubdtype(known.dtype, np.integer) or ((known < 0) | (known >= num_classes)).any():
        raise ValueError(f"labels: expected classes from 0 to {num_classes - 1}, got {known}")
