"""From a data set that was found to one that is read: classes as outputs, a choice of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.data import image_lists, subsets
from certmask_jax.data.class_mapping import Classes, ClassIndex, mapped, restricted
from certmask_jax.data.dataset import Dataset
from certmask_jax.data.images import image_size, preprocess
from certmask_jax.data.listing import Listing
from certmask_jax.data.sources import Found
from certmask_jax.data.subsets import Subset
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.models import DataConfig


def dataset_of(
    contents: Found,
    *,
    name: str,
    split: str,
    data_config: DataConfig,
    num_images: int | None = None,
    subset_seed: int | None = None,
    num_outputs: int | None = None,
    class_index: ClassIndex | None = None,
    output_names: Sequence[str] = (),
    only_classes: bool = False,
    native: bool = False,
) -> Dataset:
    """The data set that was found, with its classes as outputs of the model, and the images chosen.

    Args:
      contents: its images and classes.
      name, split: what a user calls it.
      data_config, num_images, subset_seed, num_outputs, class_index, output_names, only_classes,
        native: as of ``data.load``.

    Raises:
      ValueError: for an empty data set, fewer images than asked for, or classes whose outputs are
        not known.
    """
    if contents.num_images == 0:
        raise ValueError(
            f"data set {name!r}, split {split!r}: expected at least 1 image, got none"
            + "".join(f"; {note}" for note in contents.notes)
        )
    index = contents.class_outputs if class_index is None else class_index
    classes = _classes(name, contents, num_outputs, index, output_names)
    outputs = None
    if only_classes:
        classes, outputs = restricted(classes)
    numbers, subset = subsets.chosen(name, split, contents, num_images, subset_seed)
    size, config = data_config.input_size, data_config
    resized: tuple[str, ...] = ()
    if native or contents.as_they_are:
        own = image_size(contents.example(int(numbers[0]))[0])
        if native or own == size:
            size = own
            config = dataclasses.replace(data_config, input_size=size, resize=None)
        else:
            resized = (
                f"images of {own[0]}x{own[1]} pixels are resized to the {size[0]}x{size[1]} that "
                "the model sees, and their patches with them, which are other patches then",
            )

    def prepare(image: Any, image_id: str) -> NDArray[np.uint8]:
        if native and image_size(image) != size:
            raise ValueError(
                f"{image_id}: expected {size} (height, width) pixels like the first image, as "
                f"masking at native resolution needs one size, got {image_size(image)}"
            )
        try:
            return preprocess(image, config, image_id)
        except MemoryError:
            raise
        except Exception as error:  # such as a mode that does not become RGB
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise UnreadableImage(image_id, why) from error

    whole = Dataset(
        name=name,
        split=split,
        class_names=classes.output_names,
        image_size=size,
        classes=dict(zip(contents.class_names, classes.labels, strict=True)),
        class_mapping=classes.how,
        outputs=outputs,
        listing=_listing(contents, classes),
        whole=None,
        subset=None,
        notes=(
            *contents.notes,
            *resized,
            *_mapping_notes(contents, classes, num_outputs, outputs),
        ),
        _numbers=np.arange(contents.num_images),
        _found=contents,
        _prepare=prepare,
    )
    if subset is None:
        return whole
    return dataclasses.replace(
        whole,
        listing=None if whole.listing is None else whole.listing.take(numbers),
        whole=whole,
        subset=subset,
        notes=(*whole.notes, *_subset_notes(subset, len(numbers), contents)),
        _numbers=numbers,
    )


def _classes(
    name: str,
    contents: Found,
    num_outputs: int | None,
    index: ClassIndex | None,
    output_names: Sequence[str],
) -> Classes:
    """The outputs that the classes are; numbers in a list of labels are outputs, or an error."""
    numbered = name == "image_list" and image_lists.is_numbered(contents.class_names)
    if numbered and index is None:
        numbers = list(map(int, contents.class_names))
        if num_outputs is None:
            num_outputs = max(numbers) + 1
        if max(numbers) >= num_outputs:
            from_one = min(numbers) >= 1 and max(numbers) == num_outputs
            raise ValueError(
                f"labels: expected numbers from 0 to {num_outputs - 1}, the outputs of the model, "
                f"got {min(numbers)} to {max(numbers)}"
                + ("; they seem to begin at 1: subtract 1 in the list" if from_one else "")
                + ", or give a class index that says which output each is"
            )
    return mapped(
        contents.class_names,
        num_outputs,
        index,
        in_order=contents.in_order,
        output_names=output_names,
    )


def _listing(contents: Found, classes: Classes) -> Listing | None:
    if contents.files is None:
        return None
    return Listing(
        tuple(file.image_id for file in contents.files),
        np.array([classes.labels[file.number] for file in contents.files], np.int32),
        np.array([file.size for file in contents.files], np.int64),
    )


def _mapping_notes(
    contents: Found, classes: Classes, num_outputs: int | None, kept: tuple[int, ...] | None
) -> list[str]:
    count = len(contents.class_names)
    if kept is not None and len(kept) != num_outputs:
        first = ", ".join(map(str, kept[:5])) + ", ..." * (len(kept) > 5)
        return [
            f"the model chooses among {len(kept)} of its {num_outputs or count} outputs ({first}), "
            f"by {classes.how}"
        ]
    joined = count - len(set(classes.labels))
    notes = [f"{joined} classes share the output of another one"] if joined else []
    # Names in the order of their letters is a reading, of a folder that could mean another.
    is_read = classes.how == "sorted names" and not contents.in_order
    in_order = list(classes.labels) == list(range(count)) and count == (num_outputs or count)
    if is_read or not in_order:
        first = ", ".join(
            f"{name} is {label}"
            for name, label in list(zip(contents.class_names, classes.labels, strict=True))[:3]
        )
        notes.append(
            f"{count} classes of {num_outputs or count} outputs, by {classes.how}: {first}"
            f"{', ...' if count > 3 else ''}"
        )
    return notes


def _subset_notes(subset: Subset, count: int, contents: Found) -> list[str]:
    if subset.how == "first":
        return []
    if subset.seed is not None:
        return [f"{count} of {subset.of} images at random, seed {subset.seed}"]
    return [
        f"{count} of {subset.of} images, evenly over {len(contents.class_names)} classes (a slice "
        f"of the split, [:{count}], are the first ones)"
    ]
