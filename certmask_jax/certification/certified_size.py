"""Certified size: the largest patch for which a defense certifies an image, and the curve of it.

Mask sets depend on the patch that they are built for, so there are two questions:

- *Own masks.* Every size has a mask set, and so a classifier, of its own: the curves of
  PatchCleanser (Figures 7 and 8) and CertMask (Figures 7 and 8). An image's certified size is the
  largest at which the classifier built for that size certifies it. It may fail at smaller ones,
  so every size is decided. **It is no promise of any one classifier**: one that takes whichever
  mask set certifies what it sees can be led to another one by the patch ("certified by at least
  one of several mask sets" is not a certificate; soundness, 3.4). Each point of the curve is the
  accuracy of one classifier, and is a certificate.
- *One classifier*, with masks built for a patch P, against every size that fits into P. The rule
  and the masked images are the same at all sizes; only the proof knows the size. Here what holds
  against a patch holds against every smaller one: wherever that is, it lies inside a location of
  the larger; the masked images that hide the larger there hide it too; so it leaves the table
  adversary no choice that they did not have. The certified size is a promise against all smaller
  patches, the curve is its distribution, and it takes the masked images of P alone.

Of defenses on evidence the rule decides which of the two it is. One that takes a window away, as
large as the patch reaches, is another classifier at each size: *own rule*, of which all that is
said of own masks holds. One that knows no patch, such as votes of bands, is *one rule*: a smaller
patch lies inside a place of the larger and meets no other bands or cells than that, so the
certified size is a promise.

All sizes are decided in one evaluation: equal masked images are evaluated once, and an image that
fails at a size costs little there.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.certification.report import Classifiers, DefenseResult, Report, SizeCurve
from certmask_jax.certification.report.size_screen import masks_of, panels
from certmask_jax.files import whole_files
from certmask_jax.files.storage import AnyPath

CURVE, FIGURE = "certified_size.csv", "certified_size.png"
"""What ``write_curve`` and ``write_figure`` write."""


class Family(NamedTuple):
    """The results of one defense at ascending patch sizes."""

    defense: str  # as on the command line
    built_for: tuple[int, int] | None  # what masks of all sizes are built for
    results: tuple[int, ...]  # where they stand in the report
    classifiers: Classifiers | None = None  # None: own masks, or built for that


def check_sizes(sizes: Sequence[tuple[int, int]]) -> None:
    """``ValueError`` unless each size, ``(height, width)``, lies inside the next, none twice."""
    if not sizes:
        raise ValueError("patch sizes: expected at least 1, got none")
    for smaller, larger in itertools.pairwise(sizes):
        if smaller == larger or smaller[0] > larger[0] or smaller[1] > larger[1]:
            raise ValueError(
                "patch sizes: expected each to fit into the next, and none twice, got "
                f"{_by(larger)} after {_by(smaller)}; of the sizes that an image is certified for "
                "there has to be a largest"
            )


def largest(certified: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The number of the largest size at which each image is certified, from 1; 0 for none.

    ``certified bool[S, T]``, sizes ascending -> ``int[T]``.
    """
    numbers = np.arange(1, len(certified) + 1)[:, None]
    return np.where(certified, numbers, 0).max(axis=0, initial=0)


def with_curves(report: Report, families: Sequence[Family]) -> Report:
    """The report with the curves, and each image's certified size among its columns.

    The column ``certified_size:DEFENSE`` holds a size such as 5x5; 0x0 where there is none.

    Raises:
      ValueError: for sizes that are not ascending, or larger than those that masks are built for.
    """
    curves, columns = [], {}
    for family in families:
        results = [report.defenses[number] for number in family.results]
        sizes = [result.threat.shapes[0] for result in results]
        check_sizes(sizes if family.built_for in (None, sizes[-1]) else [*sizes, family.built_for])
        certified = np.stack([result.per_image["worst_case"] for result in results])
        names = ["clean_accuracy", "worst_case_accuracy"]
        names += ["false_alert_rate"] if results[0].false_alert_rate is not None else []
        curve = SizeCurve(
            defense=family.defense,
            built_for=family.built_for,
            guarantee=results[0].guarantee,
            sizes=tuple(sizes),
            results=family.results,
            classifiers=_classifiers(family),
            clean_accuracy=tuple(result.clean_accuracy for result in results),
            worst_case_accuracy=tuple(result.worst_case_accuracy for result in results),
            intervals={name: tuple(r.intervals[name] for r in results) for name in names},
            not_monotone=int((certified[1:] & ~certified[:-1]).any(axis=0).sum()),
        )
        curves.append(curve)
        texts = np.array(["0x0", *map(_by, sizes)])
        columns[f"certified_size:{_label(curve)}"] = texts[largest(certified)]
    return dataclasses.replace(
        report, certified_size=tuple(curves), per_image={**report.per_image, **columns}
    )


def write_curve(report: Report, folder: AnyPath) -> None:
    """Writes ``certified_size.csv``: a row for each curve and size; atomically.

    ``built_for`` is empty where no masks of all sizes are built for one patch; ``classifiers`` says
    what the sizes are.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    accuracies = ("clean_accuracy", "worst_case_accuracy", "false_alert_rate")
    rows.writerow(
        ["defense", "built_for", "patch", "masks", "masked_images", "worst_case_exact"]
        + [f"{name}{end}" for name in accuracies for end in ("", "_low", "_high")]
        + ["classifiers"]
    )
    for curve, result in _points(report):
        built_for = "" if curve.built_for is None else _by(curve.built_for)
        row = [curve.defense, built_for, _by(result.threat.shapes[0])]
        row += [str(result.masks), str(result.masked_images), str(int(result.worst_case_exact))]
        for name in accuracies:
            value = getattr(result, name)
            numbers = [] if value is None else [value, *result.intervals[name]]
            row += [f"{number:.6g}" for number in numbers] or [""] * 3
        rows.writerow([*row, curve.classifiers])
    whole_files.write(folder / CURVE, text.getvalue().encode())


def write_figure(result: Report, folder: AnyPath) -> None:
    """Draws ``certified_size.png``: accuracies against patch size, a panel for each defense.

    Raises:
      ImportError: without matplotlib (extra: plots).
    """
    from matplotlib.figure import Figure

    each = panels(result)
    figure = Figure(figsize=(1 + 4 * len(each), 4), layout="constrained")
    for axes, curves in zip(figure.subplots(1, len(each), squeeze=False)[0], each, strict=True):
        square = all(height == width for curve in curves for height, width in curve.sizes)
        for curve in curves:
            at = [height if square else height * width for height, width in curve.sizes]
            proved = 100 * np.array(curve.worst_case_accuracy)
            (line,) = axes.plot(at, proved, marker=".", label=f"certified, {masks_of(curve)}")
            low, high = 100 * np.array(curve.intervals["worst_case_accuracy"]).T
            axes.fill_between(at, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            clean = 100 * np.array(curve.clean_accuracy)
            axes.plot(at, clean, ":", color=line.get_color(), label=f"clean, {masks_of(curve)}")
        axes.set_title(f"{curves[0].defense} ({curves[0].guarantee})", fontsize="small")
        axes.set_xlabel("side of the patch, pixels" if square else "pixels of the patch")
        axes.set_ylim(0, 100)
        axes.legend(fontsize="small")
    figure.supylabel(f"% of {counted(result.num_images, 'image')}")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    whole_files.write(folder / FIGURE, picture.getvalue())


def _classifiers(family: Family) -> Classifiers:
    if family.classifiers is not None:
        return family.classifiers
    return "own masks" if family.built_for is None else "built for"


def _points(result: Report) -> list[tuple[SizeCurve, DefenseResult]]:
    return [(c, result.defenses[number]) for c in result.certified_size for number in c.results]


def _label(curve: SizeCurve) -> str:
    return curve.defense if curve.built_for is None else f"{curve.defense} {masks_of(curve)}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
