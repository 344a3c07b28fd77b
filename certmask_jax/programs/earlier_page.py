"""What the page of an earlier run shows beside it: as given now, or by its own command."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from certmask_jax.certification.report import Report
from certmask_jax.pages.object_sizes import ObjectSizes
from certmask_jax.programs import (
    boxes_of_run,
    certification_options,
    earlier_command,
    earlier_images,
    page_options,
)
from certmask_jax.programs.page_options import PageOptions, Shown
from certmask_jax.programs.program import message, one_line


class NotAtHand(Exception):
    """The sizes of images in their files are needed, and these are not there."""


def of_command(report: Report) -> PageOptions:
    """The options that the command of a run had; none where it cannot be read."""
    try:
        words = earlier_command.words_of(earlier_command.of_run(report.provenance))
        return page_options.read(certification_options.parser().parse_args(words))
    except (SystemExit, *earlier_images.EXPECTED):
        return PageOptions()


def beside(
    report: Report, given: PageOptions, *, data_dir: Path | None = None
) -> tuple[Report, ObjectSizes | None, tuple[str, ...]]:
    """The report with names for people, how much of its images objects cover, and what is missing.

    Args:
      report: read back from its files.
      given: what was typed now. What was not is as the command of the run had it, if that is still
        there.
      data_dir: where the data is now, if not where it was.

    Raises:
      ValueError: for what was typed and cannot be read, or is of other images or classes.
    """
    before = of_command(report)
    missing: list[str] = []
    try:
        file = given.class_names or before.class_names
        named = page_options.with_names(report, file, data_dir)
    except ValueError as error:
        if given.class_names is not None:
            raise
        missing.append(f"Classes are shown as the data set calls them: {one_line(str(error))}.")
        named = page_options.with_names(report, None, data_dir)

    def sizes(ids: Collection[str]) -> Mapping[str, tuple[int, int]]:
        try:
            test_set = earlier_images.opened_data(report, data_dir=data_dir)
            return page_options.sizes_in(test_set)(ids)
        except earlier_images.EXPECTED as error:
            raise NotAtHand(one_line(message(error))) from error

    object_sizes = None
    try:
        options = PageOptions(object_boxes=given.object_boxes or before.object_boxes)
        if options.object_boxes is not None and not len(report.ids):
            missing.append("Nothing is shown by object size, as per_image.csv is not there.")
        else:
            object_sizes = page_options.sizes_of(Shown(options), report, sizes)
    except NotAtHand as error:
        missing.append(
            f"Nothing is shown by object size: the sizes of the images are in their files, and "
            f"these are not at hand ({error}). {boxes_of_run.OPTION} with image_width and "
            "image_height does without."
        )
    except ValueError as error:
        if given.object_boxes is not None:
            raise
        missing.append(f"Nothing is shown by object size: {one_line(str(error))}.")
    return named, object_sizes, tuple(missing)


def at_once(report: Report) -> tuple[Report, ObjectSizes | None, tuple[str, ...]]:
    """As ``beside``, of the command of the run alone."""
    return beside(report, PageOptions())
