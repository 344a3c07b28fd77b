"""ImageNet's own list of labels: line n is the class of ``ILSVRC2012_val_n``, as a number.

``ILSVRC2012_validation_ground_truth.txt`` of the development kit of 2012 holds 50,000 numbers from
1 to 1,000, in an order that no model's outputs have: 1 is n02119789, a kit fox.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from certmask_jax.data.label_tables import LabelRow

_LINE = re.compile(r"\s*\d+\s*")
_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")
_SHOWN = 5


@functools.cache
def devkit_wnids() -> tuple[str, ...]:
    """The WordNet ids of the 1,000 classes in the order of ``ILSVRC2012_ID``, which begins at 1.

    As ``synsets`` in ``meta.mat`` of the kit has them; so do ``map_clsloc.txt`` of later kits and
    TFDS's ``imagenet_resized``.
    """
    file = Path(__file__).parent / "imagenet_devkit_wnids.txt"
    return tuple(file.read_text("ascii").split())


def is_ground_truth(lines: Sequence[str]) -> bool:
    """Whether lines hold one number each."""
    return all(_LINE.fullmatch(line) for line in lines)


def read_ground_truth(labels: Path, lines: Sequence[str], there: Iterable[str]) -> list[LabelRow]:
    """The classes of the images that are there, some or all of the 50,000, as WordNet ids.

    Args:
      labels: the file, beside which ``meta.mat`` of the kit is taken at its word if it is there.
      lines: of the file.
      there: paths of images, named as ImageNet names them.

    Raises:
      ValueError: for images of other names, numbers that are no classes, a file that has no line
        for an image, or a ``meta.mat`` that cannot be read.
    """
    numbers = [int(line) for line in lines]
    order = _order(labels)
    unknown = sorted({number for number in numbers if number not in order})
    if unknown:
        raise ValueError(
            f"{labels}: expected numbers of classes from {min(order)} to {max(order)}, got "
            f"{', '.join(map(str, unknown[:_SHOWN]))}"
        )
    rows = []
    for name in there:
        match = _VALIDATION.fullmatch(PurePosixPath(name).stem)
        if match is None:
            raise ValueError(
                f"{labels}: expected images named ILSVRC2012_val_00000001 and so on, as the lines "
                f"of this file have no names, got {name}"
            )
        if not 1 <= int(match[1]) <= len(numbers):
            raise ValueError(f"{labels}: it has {len(numbers)} lines, and none for {name}")
        rows.append(LabelRow(name, order[numbers[int(match[1]) - 1]]))
    return rows


def _order(labels: Path) -> dict[int, str]:
    """Number of a class -> its id: as the kit beside the list says, else as it was published."""
    meta = labels.with_name("meta.mat")
    if not meta.is_file():
        return dict(enumerate(devkit_wnids(), 1))
    try:
        from scipy.io import loadmat

        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        return {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets}
    except Exception as error:  # SciPy raises many kinds
        raise ValueError(
            f"{meta}: expected meta.mat of ImageNet's development kit ({error})"
        ) from error
