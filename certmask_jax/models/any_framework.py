"""A model of any framework as a ``Model``, for the programs: from one NumPy function."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from certmask_jax.inference.numpy_function import Logits, NumpyFunction, sha256_of
from certmask_jax.models.data_config import DataConfig
from certmask_jax.models.named_models import Model


def from_function(
    logits: Logits,
    *,
    num_classes: int,
    input_size: tuple[int, int],
    channels: int = 3,
    dtype: Literal["float32", "uint8"] = "float32",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    resize: int | None = None,
    batch: int | None = None,
    sha256: str | None = None,
    files: Iterable[str | os.PathLike[str]] = (),
) -> Model:
    """A model for the programs: what ``--model package.module:create`` calls returns it.

    Args:
      logits: images ``[B, h, w, c]`` -> logits ``[B, K]``, see ``NumpyFunction``.
      num_classes: K.
      input_size: ``(height, width)`` of the images.
      channels: 3 (RGB) or 1 (grey).
      dtype: of the images that the function is given.
      mean, std: per channel, of pixels in [0, 1]: applied to ``float32`` images, so that by default
        the function is given pixels in [0, 1]. The mean is the colour of hidden pixels, unless a
        fill is chosen: black by default.
      resize: shorter side before the crop to ``input_size``, as ``DataConfig`` has it.
      batch: B, where the function takes no other.
      sha256, files: what tells the weights from others: a digest, or files that are hashed. One
        of the two is needed, or a run could not be resumed safely.

    Raises:
      ValueError: for what cannot be, naming the argument.
      OSError: for a file that cannot be read.
    """
    from certmask_jax.models.no_module import NoModule  # which imports Flax

    function = NumpyFunction(logits, num_classes, sha256_of(sha256, files), dtype, batch)
    images: dict[str, Any] = {"mean": mean, "std": std, "channels": channels, "resize": resize}
    config = DataConfig(input_size, **images)  # which makes tuples of any sequences
    module = NoModule()
    return Model("numpy_function", function.num_classes, module, module, config, function)
