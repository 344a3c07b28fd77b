"""A split of a data set, found and not read yet, that gives its images a few at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.data import decoding
from certmask_jax.data.images import image_size
from certmask_jax.data.listing import Listing
from certmask_jax.data.sources import Found
from certmask_jax.data.subsets import Subset


class Batch(NamedTuple):
    """Some images of a data set."""

    images: NDArray[np.uint8]  # [B, h, w, c]
    labels: NDArray[np.int32]  # [B]
    ids: tuple[str, ...]  # [B]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set split; ``load`` makes it, ``read`` gives images as the model sees them.

    Attributes:
      class_names: of the outputs of the model; "" where the data set does not name one.
      classes: each class of the data set and the output that it is.
      class_mapping: how that was found, in a line.
      outputs: those of the model that are kept, where only the classes of the data set are; else
        None.
      listing: of a data set of files, what is known before any is opened; else None.
      whole: where a subset was taken, the data set that it was taken from.
      subset: which images were taken, where not all were.
      notes: what was left out and decided while the data set was found, in lines to show.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    classes: Mapping[str, int]
    class_mapping: str
    outputs: tuple[int, ...] | None
    listing: Listing | None
    whole: Dataset | None
    subset: Subset | None
    notes: tuple[str, ...]
    _numbers: NDArray[np.intp] = dataclasses.field(repr=False)  # in the source
    _found: Found = dataclasses.field(repr=False)
    _prepare: Callable[[Any, str], NDArray[np.uint8]] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self._numbers)

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"Dataset({f'{self.name} {self.split}'.strip()}: {len(self)} images of "
            f"{height}x{width}, {len(self.classes)} classes)"
        )

    @property
    def num_classes(self) -> int:
        """How many outputs the model has whose labels these are."""
        return len(self.class_names)

    @property
    def missing(self) -> tuple[str, ...]:
        """Images that a list of labels names and that are not in the folder; they are no part."""
        return self._found.missing

    @property
    def facts(self) -> Mapping[str, Any]:
        """What decides the images beside their names, for the fingerprint of a run."""
        return self._found.facts

    def read(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop`` (cut to the end), decoded now.

        Raises:
          UnreadableImage: naming an image that cannot be decoded, whatever its decoder raised.
          ValueError: for an image of another size, where all have to have one.
        """
        labels = tuple(self.classes.values())
        examples = [self._found.example(int(n)) for n in self._numbers[start:stop]]
        images = np.stack([self._prepare(image, name) for image, _, name in examples])
        of = np.array([labels[number] for _, number, _ in examples], dtype=np.int32)
        return Batch(images, of, tuple(name for _, _, name in examples))

    def original_sizes(self, ids: Collection[str]) -> dict[str, tuple[int, int]]:
        """Id -> height and width of an image before it is resized, of those among ``ids``.

        Of files only the headers are read; of other data sets images are decoded until all that
        are wanted were met.

        Raises:
          UnreadableImage: naming an image that cannot be opened.
        """
        files, wanted = self._found.files, set(ids)
        sizes: dict[str, tuple[int, int]] = {}
        for number in self._numbers.tolist():
            if len(sizes) == len(wanted):
                break
            if files is None:
                image, _, name = self._found.example(number)
                if name in wanted:
                    sizes[name] = image_size(image)
            elif files[number].image_id in wanted:
                file = files[number]
                sizes[file.image_id] = decoding.header_size(file.path, file.image_id)
        return sizes

    def find_unreadable(self) -> dict[str, str]:
        """Id -> why, of the files that cannot be decoded, as far as that is found out cheaply.

        Headers and ends of files are read, not their pixels. Nothing is found in a data set that
        does not consist of files.
        """
        files = self._found.files
        if files is None:
            return {}
        chosen = (files[int(number)] for number in self._numbers)
        broken = decoding.find_unreadable((file.path, file.image_id) for file in chosen)
        return {
            **dict.fromkeys(self.missing, "it is in the list, not in the folder"),
            **broken,
        }
