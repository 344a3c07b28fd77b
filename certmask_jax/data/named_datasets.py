"""What a name of a data set stands for: ``load`` makes a ``Dataset`` from a name and a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from certmask_jax._settings import SettingError
from certmask_jax._text import like, names_of
from certmask_jax.data import attacked_sets, sources
from certmask_jax.data.class_mapping import ClassIndex
from certmask_jax.data.dataset import Dataset
from certmask_jax.data.found_dataset import dataset_of
from certmask_jax.models import DataConfig

# Name -> (one line, split that results are reported on, name for TFDS or None).
_KNOWN: dict[str, tuple[str, str, str | None]] = {
    "digits": ("8x8 handwritten digits (UCI, with scikit-learn); embedded", "test", None),
    "image_folder": ("DATA_DIR/[SPLIT/]CLASS/*.jpg|png|..., any images", "", None),
    "image_list": ("DATA_DIR/[SPLIT/]*.jpg|..., and LABELS, a list of their labels", "", None),
    "attacked": ("DATA_DIR, of an attack: its patched images; or attacked:DATA_DIR", "", None),
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
    """``ValueError`` for a name that ``load`` does not know, with those that are like it."""
    if name not in _KNOWN and not name.startswith((_TFDS, attacked_sets.PREFIX)):
        raise SettingError(
            lambda say: (
                "data set: expected one of "
                f"{names_of(names(), 'data sets', say('data.names()', None))}, got "
                f"{name!r}{like(name, names())}"
            )
        )


def named_folder(name: str, data_dir: Path | str | None) -> tuple[str, Path | str | None]:
    """``attacked:FOLDER`` as the data set ``attacked`` and its folder; others as they are.

    Raises:
      ValueError: for two folders, or an empty one.
    """
    folder = name.removeprefix(attacked_sets.PREFIX)
    if folder == name:
        return name, data_dir
    if not folder:
        raise ValueError("data set: expected attacked:FOLDER, the folder of an attack")
    if data_dir is not None:
        raise SettingError(
            lambda say: (
                f"{say('data_dir', None)}: expected none beside {name}, which names the folder"
            )
        )
    return name.removesuffix(f":{folder}"), folder


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
    output_names: Sequence[str] = (),
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
      output_names: what the weights say their K outputs are, where they do (``weights.Card``).
      only_classes: the model is to have the classes of the data set only; ``outputs`` says which.
      native: leave images at their own size, which has to be the same for all, for a forward pass
        that resizes after masking.

    Raises:
      ValueError: for an unknown name or split, an empty data set, fewer images than asked for, or
        classes whose outputs are not known.
      FileNotFoundError: for a data set that is not there, with what to do about it.
    """
    check_name(name)
    name, data_dir = named_folder(name, data_dir)
    _, usual, source = _KNOWN.get(name, ("", "test", name.removeprefix(_TFDS)))
    split = usual if split is None else split
    if name == "digits":
        contents = sources.digits(split)
    elif name == "image_folder":
        contents = sources.image_folder(split, data_dir)
    elif name == "image_list":
        contents = sources.image_list(split, data_dir, labels)
    elif name == "attacked":
        contents = sources.attacked(split, data_dir)
    else:
        contents = sources.tfds(str(source), split, data_dir)
    return dataset_of(
        contents,
        name=name,
        split=split,
        data_config=data_config,
        num_images=num_images,
        subset_seed=subset_seed,
        num_outputs=num_outputs,
        class_index=class_index,
        output_names=output_names,
        only_classes=only_classes,
        native=native,
    )
