"""A run as one page: what was certified, how that was found, and every image with a map of places.

One static file, which opens from a disk and asks nothing of any network. What is not at hand is
left out and named; the rest is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax._version import __version__
from certmask_jax.certification.report import Report, labels, notes, numbers
from certmask_jax.defenses.defense import Guarantee
from certmask_jax.pages import charts, rendering
from certmask_jax.pages.evidence_maps import EvidenceMaps
from certmask_jax.pages.image_data import Attacked, page_data
from certmask_jax.pages.inspected import Inspected
from certmask_jax.pages.mask_words import counted, upper
from certmask_jax.pages.object_sizes import ObjectSizes, by_size, covered
from certmask_jax.pages.run_plots import plots_of
from certmask_jax.pages.run_said import facts_of, sentences, title_of
from certmask_jax.pages.run_tables import class_rows, defense_rows

FILE = "report.html"
"""What a page is called in the folder of its run."""

MOST_IMAGES = 1000
"""Of larger runs so many images are shown one by one; the numbers are of all."""

ALL_SEEN: Mapping[int, str] = {}

NO_EVIDENCE: Mapping[int, EvidenceMaps] = {}

NOBODY_ATTACKED: Mapping[int, Sequence[Attacked]] = {}


def sample(count: int, most: int = MOST_IMAGES) -> NDArray[np.intp]:
    """Which images of a run are shown: all, or ``most`` of them drawn at random, always the same.

    Returns:
      ``int[T]``, ascending.
    """
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def page_of(
    report: Report,
    *,
    rows: NDArray[np.intp],
    inspected: Mapping[int, Inspected],
    pictures: Sequence[str | None] | None = None,
    attacked: Mapping[int, Sequence[Attacked]] = NOBODY_ATTACKED,
    object_sizes: ObjectSizes | None = None,
    on_evidence: Mapping[int, EvidenceMaps] = NO_EVIDENCE,
    unseen: Mapping[int, str] = ALL_SEEN,
    missing: Sequence[str] = (),
) -> str:
    """The page of a run, HTML.

    Args:
      report: as it was made, or read back (``certification.report.read``).
      rows: which of its images are shown, ``int[T]``; see ``sample``.
      inspected: number of a defense in the report -> what its table tells of the T images.
      pictures: a ``data:`` address for each of them, None where one is not at hand, or all are not.
      attacked: row of the report -> what attacks made of the image.
      object_sizes: how much of each image of the report its objects cover, where that is known.
      on_evidence: number of a defense in the report -> what a run on evidence kept of the T images.
      unseen: number of a defense that was not inspected -> why it has no map.
      missing: what is not at hand, in sentences.
    """
    has_images = bool(len(report.ids))
    data = None
    shown = ""
    if has_images:
        data = rendering.as_json(
            page_data(
                report,
                rows,
                inspected,
                pictures=pictures,
                attacked=attacked,
                on_evidence=on_evidence,
                unseen=unseen,
                covered={} if object_sizes is None else covered(report, object_sizes),
            )
        )
        shown = (
            f"All {len(rows):,} images of the run." if len(rows) > 1 else "The image of the run."
        )
        if len(rows) < report.num_images:
            shown = (
                f"{len(rows):,} of the {report.num_images:,} images, drawn at random; the numbers "
                "above are of all."
            )
    provenance = report.provenance
    classes = class_rows(report) if has_images else []
    return rendering.rendered(
        "run.html",
        title=title_of(report),
        sentences=sentences(report),
        missing=list(missing),
        count=counted(report.num_images, "image"),
        rows=defense_rows(report),
        several_patches=len({d.threat for d in report.defenses}) > 1,
        any_conditions=any(map(numbers.other_conditions, report.defenses)),
        undefended={
            "passes": report.forward_passes.get("a_masked_image", 1),
            "clean": numbers.undefended(report),
            "bar": charts.bar(
                report.undefended_accuracy, report.intervals["undefended_accuracy"], "plain"
            ),
        },
        notes=[
            f"{upper(line.rstrip('.'))}."
            for line in (
                *notes.of_columns(report, short=False),
                *notes.of_conditions(report, column="the last column"),
                *notes.of_work(report),
                *notes.of_near_ties(report, labels.in_a_line(report.defenses)),
            )
        ],
        plots=plots_of(report),
        classes=classes,
        are_ids=bool(classes) and all(re.fullmatch(r"n\d{8}", one["name"]) for one in classes),
        count_of_classes=counted(len(classes), "class"),
        sizes=by_size(report, object_sizes) if has_images and object_sizes else None,
        data=data,
        shown=shown,
        has_attack=bool(attacked),
        has_alerts=any(d.guarantee == Guarantee.DETECTION for d in report.defenses),
        command=provenance.get("command_of_all_shares") or provenance.get("command") or "",
        facts=facts_of(report),
        warnings=notes.warnings(report),
        version=__version__,
    )
