"""Options of what a page shows beside the run: where objects are, and what classes are called."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from certmask_jax._later import Later
from certmask_jax.certification.report import Report
from certmask_jax.data import class_titles
from certmask_jax.data.object_boxes import Matched
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.programs import boxes_of_run, paths
from certmask_jax.programs.boxes_of_run import OPTION as BOXES
from certmask_jax.programs.boxes_of_run import Sizes
from certmask_jax.programs.program import message
from certmask_jax.tables.image_sets import TestSet, listing_of

if TYPE_CHECKING:
    from certmask_jax.pages import object_sizes
else:  # what draws, which options do without
    object_sizes = Later("certmask_jax.pages.object_sizes")

NAMES = "--class-names"
DESTINATIONS = ("object_boxes", "class_names")
"""Of these options, for programs that have no page."""


class PageOptions(NamedTuple):
    """One field for each option."""

    object_boxes: Path | None = None
    class_names: Path | None = None


class Shown(NamedTuple):
    """What a page shows beside a run, as far as it was read before the run.

    Attributes:
      options: as they were given.
      matched: the boxes of images, where these are known before they are read.
      shares: id -> how much of the image its objects cover, of the same.
    """

    options: PageOptions = PageOptions()
    matched: Matched | None = None
    shares: Mapping[str, float] | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of the boxes before the run, in lines."""
        if self.matched is None:
            return ()
        said = boxes_of_run.unknown_names(self.matched)
        return tuple(f"{BOXES} {self.options.object_boxes}: {line}" for line in said)


def add(group: Any) -> None:
    """Adds the options."""
    group.add_argument(
        BOXES,
        type=paths.local_path,
        metavar="FILE",
        help="where the objects are, for accuracy by object size on the page: CSV of image ids and "
        "x0,y0,x1,y1 in pixels of the files, a row a box (with image_width, image_height, or "
        "without); COCO's JSON; or a folder of XML, as ImageNet's Annotations/CLS-LOC/val "
        "(default: none)",
    )
    group.add_argument(
        NAMES,
        type=paths.local_path,
        metavar="FILE",
        help="what people call the classes, for the page: text with a line for each, n01440764 "
        "tench or id,name or a name alone; or JSON (default: LOC_synset_mapping.txt and the like "
        "in or above the folder of the data, else as the data set calls them)",
    )


def read(arguments: argparse.Namespace) -> PageOptions:
    """Arguments -> options; ``ValueError`` where there is no page for them."""
    typed = vars(arguments)
    given = PageOptions(typed.get("object_boxes"), typed.get("class_names"))
    if not typed.get("page", True):
        for option, value in zip((BOXES, NAMES), given, strict=True):
            if value is not None:
                raise ValueError(
                    f"{option}: expected a page, which alone shows it; leave out --no-page"
                )
    return given


def before(options: PageOptions, test_set: TestSet, provenance: Mapping[str, Any]) -> Shown:
    """Reads what was given before any long work.

    Boxes of data sets whose images have no names until they are read are only looked for. Where an
    image that has boxes cannot be read, and so is left out of the run, they are placed after it.

    Raises:
      ValueError: for what is not there, cannot be read, or is of other images or classes.
    """
    if options.class_names is not None:
        _titles(options.class_names, list(provenance.get("class_names") or ()), provenance)
    if options.object_boxes is None:
        return Shown(options)
    listing = listing_of(test_set)
    matched = boxes_of_run.check(
        options.object_boxes, None if listing is None else list(listing.ids)
    )
    if matched is None:
        return Shown(options)
    try:
        shares = boxes_of_run.shares_of(matched, provenance, sizes_in(test_set))
    except UnreadableImage:
        return Shown(options)
    return Shown(options, matched, shares)


def after(
    shown: Shown, report: Report, test_set: TestSet
) -> tuple[Report, object_sizes.ObjectSizes | None, tuple[str, ...]]:
    """The report with names for people, how much of its images objects cover, and what is missing.

    Args:
      shown: of ``before``.
      report: of the run.
      test_set: of the run.

    Raises:
      ValueError: as ``before``.
    """
    named = with_names(report, shown.options.class_names)
    return named, sizes_of(shown, report, sizes_in(test_set)), ()


def sizes_of(shown: Shown, report: Report, sizes: Sizes) -> object_sizes.ObjectSizes | None:
    """How much of the images of a report their objects cover; None where no boxes were given.

    Args:
      shown: what was given, and what is known of it already.
      report: with rows of images, if boxes were given.
      sizes: gives the sizes of images in their files.
    """
    file = shown.options.object_boxes
    if file is None:
        return None
    if shown.matched is None or shown.shares is None:
        return boxes_of_run.of_report(report, file, sizes)
    return boxes_of_run.sizes_for(report, file, shown.matched, shown.shares)


def with_names(report: Report, file: Path | None, data_dir: Path | None = None) -> Report:
    """The report with classes called as people do, for a page; files keep what the data set says.

    Args:
      report: of a run.
      file: what was given; None: what lies in or above the folder of its data.
      data_dir: where that folder is, if not where it was.

    Raises:
      ValueError: for a file that cannot be read, or is of other classes.
    """
    names = list(report.class_names)
    if file is not None:
        return dataclasses.replace(report, class_names=_titles(file, names, report.provenance))
    folder = data_dir or report.provenance.get("data_dir")
    titles = class_titles.find(Path(folder), names) if folder else None
    return report if titles is None else dataclasses.replace(report, class_names=titles)


def sizes_in(test_set: TestSet) -> Sizes:
    """What gives the sizes of the files of a test set."""

    def sizes(ids: Collection[str]) -> Mapping[str, tuple[int, int]]:
        original_sizes: Mapping[str, tuple[int, int]] = test_set.original_sizes(ids)  # type: ignore[attr-defined]
        return original_sizes

    return sizes


def _titles(file: Path, names: list[str], provenance: Mapping[str, Any]) -> tuple[str, ...]:
    kept = provenance.get("only_classes")
    try:
        return class_titles.read(file, names, outputs=kept if kept else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"{NAMES} {message(error)}") from error
