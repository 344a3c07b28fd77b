"""Boxes of the objects of a run's images, ``--object-boxes``, and how much of each they cover."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from certmask_jax._later import Later
from certmask_jax.certification.report import Report
from certmask_jax.data import object_boxes, object_shares
from certmask_jax.data.object_boxes import Matched
from certmask_jax.models import DataConfig
from certmask_jax.programs.program import message
from certmask_jax.programs.threat_options import is_native

if TYPE_CHECKING:
    from certmask_jax.pages import object_sizes
else:  # what draws, which options do without
    object_sizes = Later("certmask_jax.pages.object_sizes")

OPTION = "--object-boxes"

Sizes = Callable[[Collection[str]], Mapping[str, tuple[int, int]]]
"""Ids of images -> height and width of each before its resize (``Dataset.original_sizes``)."""


def check(file: Path, ids: Sequence[str] | None) -> Matched | None:
    """Reads a file of boxes before any long work, as far as can be.

    Args:
      file: as it was given.
      ids: of the images of the run; None where they are known only once images were read.

    Returns:
      What it says of them; None without ids.

    Raises:
      ValueError: for what is not there, cannot be read or is of other images; names the option.
    """
    if ids is None:
        if not file.exists():
            raise ValueError(f"{OPTION} {file}: expected a file or folder with boxes, found none")
        return None
    try:
        return object_boxes.read(file, ids)
    except (OSError, ValueError) as error:
        raise ValueError(f"{OPTION} {message(error)}") from error


def shares_of(matched: Matched, provenance: Mapping[str, Any], sizes: Sizes) -> dict[str, float]:
    """Id -> how much of what the model sees the objects of an image cover.

    Args:
      matched: the boxes.
      provenance: of the run, which says how its images were resized and cropped.
      sizes: asked for those images alone whose size the boxes do not come with.

    Raises:
      UnreadableImage: as ``sizes`` does.
      ValueError: for a box outside its image, or patched images, whose files were cut already.
    """
    unknown = [one for one, objects in matched.of_image.items() if objects.size is None]
    if unknown and provenance.get("dataset") == "attacked":
        raise ValueError(
            f"{OPTION}: expected boxes with image_width and image_height, as patched images were "
            "cut before they were written, got some without"
        )
    known = sizes(unknown) if unknown else {}
    try:
        return object_shares.shares(matched.of_image, known, config_of(provenance))
    except ValueError as error:
        raise ValueError(f"{OPTION}: {error}") from error


def config_of(provenance: Mapping[str, Any]) -> DataConfig:
    """How a run resized and cropped its images; straight where patches live in their own pixels."""
    known = dict(provenance["data_config"])
    names = {field.name for field in dataclasses.fields(DataConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in known.items()
        if name in names
    }
    config = DataConfig(**values)
    return dataclasses.replace(config, resize=None) if is_native(provenance) else config


def sizes_for(
    report: Report, file: Path, matched: Matched, shares: Mapping[str, float]
) -> object_sizes.ObjectSizes:
    """The shares of the images of a report, and what is said beside them."""
    shares_of_images = np.array([shares.get(one, np.nan) for one in report.ids], np.float64)
    return object_sizes.ObjectSizes(shares_of_images, file.name, unknown_names(matched))


def unknown_names(matched: Matched) -> tuple[str, ...]:
    """What is said of names in a file of boxes that are no image of the run; a sentence or none."""
    if not matched.others:
        return ()
    count = len(matched.others)
    what = "1 name in it is" if count == 1 else f"{count:,} names in it are"
    return (f"{what} no image of this run, such as {matched.others[0]}.",)


def of_report(report: Report, file: Path, sizes: Sizes) -> object_sizes.ObjectSizes:
    """Everything of a finished run at once.

    Raises:
      ValueError: as ``check`` and ``shares_of``.
    """
    matched = check(file, report.ids)
    assert matched is not None
    return sizes_for(report, file, matched, shares_of(matched, report.provenance, sizes))
