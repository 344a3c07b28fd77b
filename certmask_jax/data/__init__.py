"""Data sets by name, as uint8 images of the size that a model sees, a few at a time.

Preprocessing (resize, crop; Pillow, on uint8) is the model's data config; normalisation happens on
the device, after masking's place has been decided.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.data import sources
from certmask_jax.data.images import image_size, preprocess
from certmask_jax.data.sources import digits_arrays
from certmask_jax.models import DataConfig

__all__ = ["Batch", "Dataset", "check_name", "digits_arrays", "load", "names", "preprocess"]

# Name -> (one line, split that results are reported on, name for TFDS or None).
_KNOWN: dict[str, tuple[str, str, str | None]] = {
    "digits": ("8x8 handwritten digits (UCI, with scikit-learn); embedded", "test", None),
    "image_folder": ("DATA_DIR/[SPLIT/]CLASS/*.jpg|png, any images", "", None),
    "cifar10": ("32x32, 10 classes (TFDS, prepared)", "test", "cifar10"),
    "cifar100": ("32x32, 100 classes (TFDS, prepared)", "test", "cifar100"),
    "imagenette": ("10 ImageNet classes (TFDS, prepared)", "validation", "imagenette/full-size-v2"),
    "imagenet2012": ("1,000 classes (TFDS, prepared)", "validation", "imagenet2012"),
}
_TFDS = "tfds:"


class Batch(NamedTuple):
    """Some images of a data set."""

    images: NDArray[np.uint8]  # [B, h, w, c]
    labels: NDArray[np.int32]  # [B]
    ids: tuple[str, ...]  # [B]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set split; :func:`load` makes it, ``read`` gives images as the model sees them."""

    name: str
    split: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    _count: int
    _example: Callable[[int], tuple[Any, int, str]] = dataclasses.field(repr=False)
    _prepare: Callable[[Any, str], NDArray[np.uint8]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` (cut to the end), decoded now.

        Raises:
          ValueError: naming an image that cannot be decoded.
        """
        found = [self._example(i) for i in range(start, min(stop, self._count))]
        images = np.stack([self._prepare(image, name) for image, _, name in found])
        labels = np.array([label for _, label, _ in found], dtype=np.int32)
        return Batch(images, labels, tuple(name for _, _, name in found))


def names() -> dict[str, str]:
    """Name -> one line about it."""
    listed = {name: about for name, (about, _, _) in _KNOWN.items()}
    return {**listed, f"{_TFDS}NAME": "any other TFDS data set with image and label, prepared"}


def check_name(name: str) -> None:
    """``ValueError`` for a name that :func:`load` does not know, listing those that it does."""
    if name not in _KNOWN and not name.startswith(_TFDS):
        close = difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"data set: expected one of {', '.join(names())}, got {name!r}{hint}")


def load(
    name: str,
    *,
    data_config: DataConfig,
    split: str | None = None,
    data_dir: Path | str | None = None,
    num_images: int | None = None,
    native: bool = False,
) -> Dataset:
    """A data set by name.

    Args:
      name: one of :func:`names`.
      data_config: how the model wants its images.
      split: such as ``test``, ``test[300:400]`` or ``validation[:10%]``; by default the one that
        results are reported on.
      data_dir: where a TFDS data set was prepared, or the image folder.
      num_images: only the first ones.
      native: leave images at their own size, which has to be the same for all, for a forward pass
        that resizes after masking.

    Raises:
      ValueError: for an unknown name or split, an empty data set, or fewer images than asked for.
      FileNotFoundError: for a data set that is not there, with what to do about it.
    """
    check_name(name)
    _, usual, source = _KNOWN.get(name, ("", "test", name.removeprefix(_TFDS)))
    split = usual if split is None else split
    if name == "digits":
        found = sources.digits(split)
    elif name == "image_folder":
        found = sources.image_folder(split, data_dir)
    else:
        found = sources.tfds(str(source), split, data_dir)
    count, class_names, example = found
    if count == 0:
        raise ValueError(f"data set {name!r}, split {split!r}: expected at least 1 image, got none")
    if num_images is not None:
        if num_images > count:
            raise ValueError(
                f"num_images: expected at most {count}, as many as {name!r}, split {split!r} has, "
                f"got {num_images}"
            )
        count = num_images

    if native:
        size = image_size(example(0)[0])
        data_config = dataclasses.replace(data_config, input_size=size, resize=None)

    def prepare(image: Any, image_id: str) -> NDArray[np.uint8]:
        if native and image_size(image) != data_config.input_size:
            raise ValueError(
                f"{image_id}: expected {data_config.input_size} (height, width) pixels like the "
                f"first image, as masking at native resolution needs one size, got "
                f"{image_size(image)}"
            )
        return preprocess(image, data_config, image_id)

    size = data_config.input_size
    return Dataset(name, split, len(class_names), class_names, size, count, example, prepare)
