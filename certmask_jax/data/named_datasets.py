"""What a name of a data set stands for: ``load`` makes a ``Dataset`` from a name and a split."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.data import image_lists, sources, subsets
from certmask_jax.data.class_mapping import Classes, ClassIndex, mapped, restricted
from certmask_jax.data.dataset import Dataset
from certmask_jax.data.images import image_size, preprocess
from certmask_jax.data.listing import Listing
from certmask_jax.data.sources import Found
from certmask_jax.data.subsets import Subset
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.models import DataConfig

# Name -> (one line, split that results are reported on, name for TFDS or None).
_KNOWN: dict[str, tuple[str, str, str | None]] = {
    "digits": ("8x8 handwritten digits (UCI, with scikit-learn); embedded", "test", None),
    "image_folder": ("DATA_DIR/[SPLIT/]CLASS/*.jpg|png|..., any images", "", None),
    "image_list": ("DATA_DIR/[SPLIT/]*.jpg|..., and LABELS, a list of their labels", "", None),
    "cifar10": ("32x32, 10 classes (TFDS, prepared)", "test", "cifar10"),
    "cifar100": ("32x32, 100 classes (TFDS, prepared)", "test", "cifar100"),
    "imagenette": ("10 ImageNet classes (TFDS, prepared)", "validation", "imagenette/full-size-v2"),
    "imagenet2012": ("1,000 classes (TFDS, prepared)", "validation", "imagenet2012"),
}
_TFDS = "tfds:"


def names() -> dict[str, str]:
    """Name -> one line about it."""
    listed = {name: about for name, (about, _, _) in _KNOWN.items()}
    return {**listed, f"{_TFDS}NAME": "any other TFDS data set with image and label, prepared"}


def check_name(name: str) -> None:
    """``ValueError`` for a name that ``load`` does not know, listing those that it does."""
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
    labels: Path | str | None = None,
    num_images: int | None = None,
    subset_seed: int | None = None,
    num_outputs: int | None = None,
    class_index: ClassIndex | None = None,
    only_classes: bool = False,
    native: bool = False,
) -> Dataset:
    """A data set by name.

    Args:
      name: one of ``names``.
      data_config: how the model wants its images.
      split: such as ``test``, ``test[300:400]`` or ``validation[:10%]``; by default the one that
        results are reported on.
      data_dir: where a TFDS data set was prepared, or the folder of images.
      labels: the list of an ``image_list``.
      num_images: only so many: the first, or, where images come class after class (folders, lists
        and sorted TFDS sets), as many of each class as can be.
      subset_seed: draw them at random instead.
      num_outputs: K of the model; by default as many as the data set has classes.
      class_index: which output each class is (``data.class_mapping``).
      only_classes: the model is to have the classes of the data set only; ``outputs`` says which.
      native: leave images at their own size, which has to be the same for all, for a forward pass
        that resizes after masking.

    Raises:
      ValueError: for an unknown name or split, an empty data set, fewer images than asked for, or
        classes whose outputs are not known.
      FileNotFoundError: for a data set that is not there, with what to do about it.
    """
    check_name(name)
    _, usual, source = _KNOWN.get(name, ("", "test", name.removeprefix(_TFDS)))
    split = usual if split is None else split
    if name == "digits":
        found = sources.digits(split)
    elif name == "image_folder":
        found = sources.image_folder(split, data_dir)
    elif name == "image_list":
        found = sources.image_list(split, data_dir, labels)
    else:
        found = sources.tfds(str(source), split, data_dir)
    if found.num_images == 0:
        raise ValueError(
            f"data set {name!r}, split {split!r}: expected at least 1 image, got none"
            + "".join(f"; {note}" for note in found.notes)
        )
    classes = _classes(name, found, num_outputs, class_index)
    outputs = None
    if only_classes:
        classes, outputs = restricted(classes)
    numbers, subset = subsets.chosen(name, split, found, num_images, subset_seed)
    size = image_size(found.example(int(numbers[0]))[0]) if native else data_config.input_size
    config = data_config
    if native:
        config = dataclasses.replace(data_config, input_size=size, resize=None)

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
        classes=dict(zip(found.class_names, classes.labels, strict=True)),
        class_mapping=classes.how,
        outputs=outputs,
        listing=_listing(found, classes),
        whole=None,
        subset=None,
        notes=(*found.notes, *_mapping_notes(found, classes, num_outputs, outputs)),
        _numbers=np.arange(found.num_images),
        _found=found,
        _prepare=prepare,
    )
    if subset is None:
        return whole
    return dataclasses.replace(
        whole,
        listing=None if whole.listing is None else whole.listing.take(numbers),
        whole=whole,
        subset=subset,
        notes=(*whole.notes, *_subset_notes(subset, len(numbers), found)),
        _numbers=numbers,
    )


def _classes(name: str, found: Found, num_outputs: int | None, index: ClassIndex | None) -> Classes:
    """The outputs that the classes are; numbers in a list of labels are outputs, or an error."""
    numbered = name == "image_list" and image_lists.is_numbered(found.class_names)
    if numbered and index is None:
        numbers = list(map(int, found.class_names))
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
    return mapped(found.class_names, num_outputs, index, in_order=found.in_order)


def _listing(found: Found, classes: Classes) -> Listing | None:
    if found.files is None:
        return None
    return Listing(
        tuple(file.image_id for file in found.files),
        np.array([classes.labels[file.number] for file in found.files], np.int32),
        np.array([file.size for file in found.files], np.int64),
    )


def _mapping_notes(
    found: Found, classes: Classes, num_outputs: int | None, kept: tuple[int, ...] | None
) -> list[str]:
    count = len(found.class_names)
    if kept is not None and len(kept) != num_outputs:
        first = ", ".join(map(str, kept[:5])) + ", ..." * (len(kept) > 5)
        return [
            f"the model chooses among {len(kept)} of its {num_outputs or count} outputs ({first}), "
            f"by {classes.how}"
        ]
    joined = count - len(set(classes.labels))
    notes = [f"{joined} classes share the output of another one"] if joined else []
    # Names in the order of their letters is a reading, of a folder that could mean another.
    is_read = classes.how == "sorted names" and not found.in_order
    in_order = list(classes.labels) == list(range(count)) and count == (num_outputs or count)
    if is_read or not in_order:
        first = ", ".join(
            f"{name} is {label}"
            for name, label in list(zip(found.class_names, classes.labels, strict=True))[:3]
        )
        notes.append(
            f"{count} classes of {num_outputs or count} outputs, by {classes.how}: {first}"
            f"{', ...' if count > 3 else ''}"
        )
    return notes


def _subset_notes(subset: Subset, count: int, found: Found) -> list[str]:
    if subset.how == "first":
        return []
    if subset.seed is not None:
        return [f"{count} of {subset.of} images at random, seed {subset.seed}"]
    return [
        f"{count} of {subset.of} images, evenly over {len(found.class_names)} classes (a slice of "
        f"the split, [:{count}], are the first ones)"
    ]
