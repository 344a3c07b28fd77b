"""The options that choose a data set, its classes and its images."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certmask_jax import data
from certmask_jax.data.class_index import read_class_index
from certmask_jax.data.class_mapping import ClassIndex
from certmask_jax.models import DataConfig
from certmask_jax.programs import imported, paths
from certmask_jax.programs.command_line import as_options, named


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """One field for each option."""

    dataset: str
    data_dir: Path | None
    labels: Path | None
    split: str | None
    num_images: int | None
    subset_seed: int | None
    class_index: Path | str | None
    only_classes: bool
    on_unreadable: str

    def load(
        self,
        data_config: DataConfig,
        *,
        num_outputs: int | None,
        output_names: Sequence[str] = (),
        native: bool = False,
    ) -> data.Dataset:
        """The data set for a model of so many outputs (None: as many as there are classes).

        ``output_names`` is what its weights say these are, as of ``data.load``.

        Raises:
          ValueError, FileNotFoundError: for what is not there or cannot be read, with the options
            that help.
        """
        try:
            with as_options("split", "num_images", "subset_seed", "class_index"):
                return named_data(
                    self.dataset,
                    data_config=data_config,
                    split=self.split,
                    data_dir=self.data_dir,
                    labels=self.labels,
                    num_images=self.num_images,
                    subset_seed=self.subset_seed,
                    num_outputs=num_outputs,
                    class_index=index_of(self.class_index),
                    output_names=output_names,
                    only_classes=self.only_classes,
                    native=native,
                )
        except ValueError as error:
            if str(error).startswith("only_classes:"):
                raise ValueError(
                    f"--only-classes{str(error).removeprefix('only_classes')}"
                ) from error
            if "class index" not in str(error):
                raise
            ways = "a class index is given by --class-index FILE"
            raise ValueError(f"{error} ({ways})") from error

    def about(self, dataset: data.Dataset) -> dict[str, Any]:
        """What decides the labels and the choice of images, for the identity of a run."""
        facts: dict[str, Any] = {}
        if dataset.listing is not None or not _is_plain(dataset):
            facts |= {"classes": dict(dataset.classes), "class_mapping": dataset.class_mapping}
        if dataset.outputs is not None:
            facts["only_classes"] = list(dataset.outputs)
        if dataset.subset is not None and dataset.subset.how != "first":
            facts["subset"] = {"how": dataset.subset.how, "seed": dataset.subset.seed,
                               "images": self.num_images}  # fmt: skip
        return {**facts, **dataset.facts}


def named_data(name: str, **options: Any) -> data.Dataset:
    """A data set of ``data.load``, or a user's own.

    Args:
      name: as there; or ``package.module:load``, or what a package registers. That is called with
        ``data_config``, with ``num_outputs`` (of the model, where they are known) if it takes it,
        with ``output_names`` if it has an argument of that name, and with the other options that
        are given, and returns a ``data.Dataset``.
      options: keywords of ``data.load``; None or False where they are not given.

    Raises:
      ValueError, FileNotFoundError: as ``data.load``; for a user's own that cannot be imported,
        lacks an option or returns something else.
    """
    path = _own_path(name)
    if path is None:
        return data.load(name, **options)
    given = {key: value for key, value in options.items() if value not in (None, False)}
    if not imported.accepts(path, "num_outputs"):
        given.pop("num_outputs", None)
    if "output_names" not in imported.parameters(path):  # it knows its own labels
        given.pop("output_names", None)
    if not imported.accepts(path, "data_config"):
        raise ValueError(f"--dataset: expected {path} to take data_config, what the model wants")
    with as_options(*given):
        imported.check_accepts(path, given)
    with named("--dataset", "data set"):
        dataset: data.Dataset = imported.called(path, wanted=data.Dataset, **given)
    return dataset


def check_name(name: str) -> None:
    """``ValueError`` for a data set that there is not, as far as its name says."""
    path = _own_path(name)
    with named("--dataset", "data set"):
        if path is None:
            data.check_name(name)
        else:
            imported.parameters(path)


def _own_path(name: str) -> str | None:
    """The import path of a user's own data set; None for one of this package, or of TFDS."""
    if name in data.names() or name.startswith(("tfds:", "attacked:")):
        return None
    return imported.path_of(name, imported.DATASETS)


def index_of(given: Path | str | None) -> ClassIndex | None:
    """Which output each class is, as ``--class-index`` gives it; raises as its reader does."""
    if isinstance(given, Path):
        return read_class_index(given)
    return None if given is None else "sorted"


def add_class_index(group: Any) -> None:
    """Adds ``--class-index``."""
    group.add_argument(
        "--class-index",
        type=_class_index,
        metavar="FILE",
        help="which output of the model each class is, where its name does not say: JSON or CSV of "
        "names and numbers; or the word sorted: names in the order of letters, as torchvision's "
        "ImageFolder numbers them (default: ImageNet ids and numbers are known, else sorted where "
        "there are as many classes as outputs)",
    )


def add(group: Any) -> None:
    """Adds the options to an argument group."""
    group.add_argument(
        "--dataset",
        default="digits",
        metavar="NAME",
        help="name, as --list has it; or your own, package.module:load, which is called with "
        "data_config (of the model) and the options of data.load that are given, and returns a "
        "data.Dataset (default: %(default)s)",
    )
    group.add_argument(
        "--data-dir",
        type=paths.local_path,
        metavar="DIR",
        help="where the data set was prepared; the folder of images of image_folder and "
        "image_list; of attacked the folder of the attack (default: none, for digits alone)",
    )
    add_class_index(group)
    group.add_argument(
        "--labels",
        type=paths.local_path,
        metavar="FILE",
        help="of image_list: a CSV file with a column of files and one of labels (numbers of "
        "outputs, or names such as ImageNet ids), or ILSVRC2012_validation_ground_truth.txt in "
        "ImageNet's development kit (default: none; needed for image_list)",
    )
    group.add_argument(
        "--split",
        help="such as test, validation or test[300:400]; of attacked the defense whose patched "
        "images are meant, undefended, or a given patch, and with /broken behind it those alone "
        "that were answered wrongly (default: the one that results are reported on; of folders "
        "DATA_DIR itself)",
    )
    group.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help="only N images: the first ones, or of folders and lists as many of each class as can "
        "be (default: all)",
    )
    group.add_argument(
        "--subset-seed",
        type=int,
        metavar="S",
        help="draw the N images of --num-images at random, the same ones for each S (default: "
        "not at random)",
    )
    group.add_argument(
        "--only-classes",
        action="store_true",
        help="let the model choose among the classes of the data set only (1,000 outputs on the "
        "ten classes of ImageNette); part of the result (default: among all)",
    )
    group.add_argument(
        "--on-unreadable",
        choices=("stop", "skip"),
        default="stop",
        help="skip: an image that cannot be decoded is named, and counts nowhere (default: stop "
        "before the work)",
    )


def read(arguments: argparse.Namespace) -> DataOptions:
    """Arguments -> options; ``ValueError`` for what makes no sense."""
    given = vars(arguments)
    count, seed = given.get("num_images"), given.get("subset_seed")
    if count is not None and count < 1:
        raise ValueError(f"--num-images: expected at least 1, got {count}")
    if seed is not None and seed < 0:
        raise ValueError(f"--subset-seed: expected a seed of at least 0, got {seed}")
    if seed is not None and count is None:
        raise ValueError("--subset-seed: expected --num-images, how many to draw, beside it")
    check_name(arguments.dataset)
    is_own = _own_path(arguments.dataset) is not None  # which says itself what it takes
    takes_labels = arguments.dataset == "image_list"
    if takes_labels != (given.get("labels") is not None) and "labels" in given and not is_own:
        raise ValueError(
            "--labels: expected a list of labels for image_list"
            if takes_labels
            else f"--labels: expected only with --dataset image_list, got {arguments.dataset}"
        )
    if arguments.dataset == "digits" and arguments.data_dir is not None:
        raise ValueError("--data-dir: expected none for digits, which are embedded")
    dataset, folder = data.named_folder(arguments.dataset, arguments.data_dir)
    return DataOptions(
        dataset=dataset,
        data_dir=None if folder is None else paths.local_path(str(folder)),
        labels=given.get("labels"),
        split=given.get("split"),
        num_images=count,
        subset_seed=seed,
        class_index=arguments.class_index,
        only_classes=given.get("only_classes", False),
        on_unreadable=given.get("on_unreadable", "stop"),
    )


def _is_plain(dataset: data.Dataset) -> bool:
    labels = list(dataset.classes.values())
    return labels == list(range(dataset.num_classes))


def _class_index(text: str) -> Path | str:
    return text if text == "sorted" else paths.local_path(text)
