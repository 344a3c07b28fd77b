"""The images of an earlier run, looked for where its command found them, to be shown on a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax import data
from certmask_jax._text import counted, some
from certmask_jax.certification.report import Report
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.programs import certification_config, certification_options, earlier_command
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.patched_images import PatchedImages
from certmask_jax.programs.program import message, one_line
from certmask_jax.tables.image_sets import TestSet, listing_of

Picture = NDArray[np.uint8]

_AT_ONCE = 64
_NAMED = 3
EXPECTED = (ValueError, OSError, ImportError)


def images_of(
    report: Report, rows: NDArray[np.intp], *, data_dir: Path | None = None
) -> tuple[list[Picture | None] | None, str]:
    """The images of some rows of a report as its model saw them, ``uint8[h, w, c]`` each.

    Args:
      report: read back from its files.
      rows: which of its images, ascending.
      data_dir: where the data is now, if not where it was.

    Returns:
      As ``given``; or None, and why in a sentence, where none is at hand or they are others than
      those of the run.
    """
    try:
        return given(opened_data(report, data_dir=data_dir), report, rows)
    except EXPECTED as error:
        return None, f"Images are not at hand: {one_line(message(error))}."


def opened_data(report: Report, *, data_dir: Path | None = None) -> TestSet:
    """The test set of an earlier run, opened anew by its command.

    Args:
      report: read back from its files.
      data_dir: where the data is now, if not where it was.

    Raises:
      ValueError, OSError, ImportError: where it is not at hand, or the command is not known.
    """
    words = earlier_command.words_of(earlier_command.of_run(report.provenance))
    try:
        arguments = certification_options.parser().parse_args(words)
    except SystemExit as error:  # argparse's, of --help in a command
        raise ValueError(f"the command of the run says {error}") from error
    if data_dir is not None:
        arguments.data_dir = data_dir
    return _test_set(certification_config.read_config(arguments), report)


def given(
    test_set: TestSet, report: Report, rows: NDArray[np.intp]
) -> tuple[list[Picture | None], str]:
    """The images of some rows of a report, out of a test set that is at hand.

    Returns:
      An image for each row, None where it is gone or cannot be read; and how many these are, and
      the first of them, in a sentence; empty where all are there.

    Raises:
      ValueError: where none of them can be read, or one has another label or size than it had.
    """
    listing = listing_of(test_set)
    wanted = {report.ids[row]: int(report.per_image["label"][row]) for row in rows.tolist()}
    if listing is not None:
        places = [place for place, one in enumerate(listing.ids) if one in wanted]
    elif not report.left_out:  # all are where they were
        places = [row for row in rows.tolist() if row < len(test_set)]
    else:  # only reading tells which is which
        places = list(range(len(test_set)))
    pictures: dict[str, Picture] = {}
    damaged: set[str] = set()
    for start, stop in _stretches(places):
        for one in _readable(test_set, start, stop, damaged):
            if one.image_id not in wanted:
                continue
            if one.label != wanted[one.image_id]:
                raise ValueError(
                    f"{one.image_id} is of class {one.label} there, and was of "
                    f"{wanted[one.image_id]}"
                )
            pictures[one.image_id] = one.image
        if len(pictures) == len(wanted):
            break
    lacking = [one for one in wanted if one not in pictures]
    if lacking and not pictures:
        raise ValueError(
            f"none of {len(wanted)} is there and can be read, the first is {lacking[0]}"
        )
    return [pictures.get(report.ids[row]) for row in rows.tolist()], _said(lacking, damaged, wanted)


class _Read(NamedTuple):
    image_id: str
    label: int
    image: Picture


def _readable(test_set: TestSet, start: int, stop: int, damaged: set[str]) -> list[_Read]:
    """Images ``start`` to ``stop`` but those that cannot be read, which ``damaged`` is told of."""
    try:
        batch = test_set.read(start, stop)
    except UnreadableImage as error:
        if stop - start == 1:
            damaged.add(error.image_id)
            return []
        each = range(start, stop)
        return [one for at in each for one in _readable(test_set, at, at + 1, damaged)]
    together = zip(batch.ids, batch.labels, batch.images, strict=True)
    return [_Read(image_id, int(label), image) for image_id, label, image in together]


def _said(lacking: Sequence[str], damaged: Collection[str], wanted: Collection[str]) -> str:
    """How many images are not shown, and the first of them; empty where all are."""
    parts = []
    for kind, names in (
        ("not there", [one for one in lacking if one not in damaged]),
        ("there and cannot be read", [one for one in lacking if one in damaged]),
    ):
        if names:
            are = "is" if len(names) == 1 else "are"
            parts.append(f"{len(names):,} {are} {kind} ({some(names, _NAMED)})")
    if not parts:
        return ""
    rest = len(wanted) - len(lacking)
    return (
        f"Of {counted(len(wanted), 'image')} {' and '.join(parts)}; the other "
        f"{'one is' if rest == 1 else f'{rest:,} are'} shown."
    )


def _test_set(config: Config, report: Report) -> TestSet:
    config = dataclasses.replace(config, model=config.model.with_card())
    model = config.model.create()
    dataset = _loaded(config, model.data_config, [len(report.class_names), model.num_classes])
    if config.patched is None:
        return dataset
    shape = report.defenses[0].threat.shapes[0]
    return PatchedImages(dataset, shape, config.patched)


def _loaded(config: Config, data_config: Any, outputs: Sequence[int]) -> data.Dataset:
    """The data set; its labels are held against those of the run later, whatever outputs fit."""
    native, names = config.patch_lives == "native", config.model.output_names
    for number in [count for count in dict.fromkeys(outputs) if count][:-1]:
        try:
            return config.data.load(
                data_config, num_outputs=number, output_names=names, native=native
            )
        except ValueError:
            continue
    return config.data.load(data_config, num_outputs=outputs[-1], output_names=names, native=native)


def _stretches(places: Sequence[int]) -> list[tuple[int, int]]:
    """``(start, stop)`` of neighbouring places, a few images each."""
    made: list[tuple[int, int]] = []
    for place in places:
        if made and made[-1][1] == place and place - made[-1][0] < _AT_ONCE:
            made[-1] = (made[-1][0], place + 1)
        else:
            made.append((place, place + 1))
    return made
