"""Images that are in memory are a data set: of pixels, labels and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from certmask_jax.data.dataset import Dataset
from certmask_jax.data.found_dataset import dataset_of
from certmask_jax.data.sources import Found
from certmask_jax.models import DataConfig


def from_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    *,
    data_config: DataConfig,
    class_names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    name: str = "arrays",
    split: str = "",
    num_images: int | None = None,
    subset_seed: int | None = None,
    num_outputs: int | None = None,
    only_classes: bool = False,
    native: bool = False,
) -> Dataset:
    """A data set of images that are in memory, for a model.

    Args:
      images: ``uint8[T, h, w, c]``, T >= 1, c 1 or 3; resized for the model as its data config
        says.
      labels: ``int[T]``, the output of the model that each image is.
      data_config: how the model wants its images.
      class_names: of the outputs, in their order; the numbers by default.
      ids: T names, each once; the numbers by default.
      name, split: for reports.
      num_images, subset_seed, num_outputs, only_classes, native: as of ``data.load``.

    Raises:
      ValueError: for images, labels or names of another shape or dtype; for labels that are no
        class; as ``data.load``.
    """
    pixels, numbers = np.asarray(images), np.asarray(labels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise ValueError(
            f"images: expected uint8[T, h, w, c] with c 1 or 3, got {pixels.dtype} {pixels.shape}"
        )
    if numbers.shape != (len(pixels),) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"labels: expected {len(pixels)} integers, got shape {numbers.shape}, dtype "
            f"{numbers.dtype}"
        )
    most = int(numbers.max(initial=0)) + 1 if num_outputs is None else num_outputs
    names = tuple(map(str, range(most) if class_names is None else class_names))
    if len(set(names)) != len(names) or (len(numbers) and not numbers.min() >= 0):
        raise ValueError("labels: expected 0 or more, and class names that differ")
    if len(numbers) and numbers.max() >= len(names):
        raise ValueError(
            f"labels: expected numbers from 0 to {len(names) - 1}, of {len(names)} classes, got "
            f"{numbers.max()}"
        )
    known = tuple(map(str, range(len(pixels)) if ids is None else ids))
    if len(known) != len(pixels) or len(set(known)) != len(known):
        raise ValueError(f"ids: expected {len(pixels)} names, each once, got {len(set(known))}")

    def example(number: int) -> tuple[Any, int, str]:
        return pixels[number], int(numbers[number]), known[number]

    contents = Found(
        len(pixels), names, example, classes_of=lambda count: numbers[:count].astype(np.int64)
    )
    return dataset_of(
        contents,
        name=name,
        split=split,
        data_config=data_config,
        num_images=num_images,
        subset_seed=subset_seed,
        num_outputs=num_outputs,
        only_classes=only_classes,
        native=native,
    )
