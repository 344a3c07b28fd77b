"""What a model says of masked images: the columns of every table, in memory and on the disk."""

from __future__ import annotations

from typing import Any, NamedTuple


class Outputs(NamedTuple):
    """What a model says of W masked images, or of V of each of B images.

    NumPy arrays of one shape, ``[W]`` or ``[B, V]``, or JAX's where they are traced.
    """

    predictions: Any  # int16; NO_LABEL where a logit is NaN or infinite
    margins: Any  # float16; top-1 minus top-2 logit, NaN where a logit is not finite
    confidences: Any  # float16; softmax of the top-1 label
