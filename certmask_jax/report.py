"""Reports: records of what was measured and proved, as JSON, per-image rows and a table to read."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax import whole_files
from certmask_jax.storage import AnyPath
from certmask_jax.threats import Threat

Interval = tuple[float, float]

FILES = ("results.json", "per_image.csv")
"""What :func:`write` writes."""

MARGINS = (1e-3, 1e-2, 1e-1)
"""Certified images whose smallest margin lies below these are counted (soundness, section 7)."""


_WIDTH = 100  # of notes


@dataclasses.dataclass(frozen=True, eq=False)
class DefenseResult:
    """What one defense does on the whole test set; accuracies are fractions of all its images.

    Attributes:
      threat: what is proved against.
      mask_set: the masks, and what they are for, in one line.
      spec: what a table calls it: as on the command line, or its name.
      clean_accuracy: the rule gives the true label (an alert is not the true label).
      worst_case_accuracy: proved against the table adversary; ``worst_case_exact`` says whether it
        is exact or a proved lower bound.
      certified_accuracy: the defense's own sound certificate, at most the worst case.
      conditions: the papers' conditions by name. They are *not* all certificates.
      false_alert_rate: clean images that raise an alert; None for a defense that recovers.
      near_ties: certified images whose smallest margin is below each of :data:`MARGINS`.
      per_image: column name -> ``[T]``, for the rows of ``per_image.csv``.
    """

    name: str
    spec: str
    options: Mapping[str, Any]
    guarantee: str
    threat: Threat
    mask_set: str
    masks: int
    masked_images: int
    clean_accuracy: float
    worst_case_accuracy: float
    worst_case_exact: bool
    certified_accuracy: float
    conditions: Mapping[str, float]
    false_alert_rate: float | None
    near_ties: Mapping[str, int]
    intervals: Mapping[str, Interval]
    per_image: Mapping[str, NDArray[Any]] = dataclasses.field(repr=False, default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"DefenseResult({self.spec} against {self.threat}: clean "
            f"{_percent(self.clean_accuracy)}%, worst case {_percent(self.worst_case_accuracy)}%)"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SizeCurve:
    """One defense over S patch sizes, each inside the next (see ``certified_size``).

    Attributes:
      defense: as on the command line.
      built_for: the patch that the masks of all sizes are built for: the accuracies are those of
        one classifier. None: each size has masks, and so a classifier, of its own.
      results: where the S defenses stand in the report.
      not_monotone: images certified at some size and not at every smaller one.
    """

    defense: str
    built_for: tuple[int, int] | None
    guarantee: str
    sizes: tuple[tuple[int, int], ...]
    results: tuple[int, ...]
    clean_accuracy: tuple[float, ...]
    worst_case_accuracy: tuple[float, ...]
    intervals: Mapping[str, tuple[Interval, ...]]
    not_monotone: int


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A run: its accuracies, its defenses, and where every number comes from."""

    num_images: int
    forward_passes: Mapping[str, int]  # "made", and how many the "full_table" has
    undefended_accuracy: float
    intervals: Mapping[str, Interval]
    defenses: tuple[DefenseResult, ...]
    non_finite_images: tuple[str, ...]
    provenance: Mapping[str, Any]
    margin_guard: float = 0.0  # images with a smaller logit margin are not certified
    certified_size: tuple[SizeCurve, ...] = ()  # of a run over patch sizes
    # Images that could not be read, or are gone, by id, with why; they count nowhere.
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ids: Sequence[str] = dataclasses.field(repr=False, default=())
    per_image: Mapping[str, NDArray[Any]] = dataclasses.field(repr=False, default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Report({self.num_images} images, undefended {_percent(self.undefended_accuracy)}%, "
            f"{len(self.defenses)} defenses)"
        )


def wilson_interval(fraction: float, count: int, z: float = 1.959963984540054) -> Interval:
    """Wilson's 95% score interval of a fraction of ``count`` images (Wilson, 1927)."""
    if count < 1:
        raise ValueError(f"count: expected at least 1 image, got {count}")
    spread = z * z / count
    centre = (fraction + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(fraction * (1 - fraction) / count + spread / count / 4)
    # At the ends the formula is exact; floating point is not.
    low = 0.0 if fraction <= 0 else max(0.0, centre - half)
    return low, 1.0 if fraction >= 1 else min(1.0, centre + half)


def to_json(report: Report) -> dict[str, Any]:
    """The content of ``results.json``: plain fractions, intervals beside them by the same names."""
    result = dataclasses.asdict(
        dataclasses.replace(
            report,
            ids=(),
            per_image={},
            defenses=tuple(dataclasses.replace(d, per_image={}) for d in report.defenses),
        )
    )
    del result["ids"], result["per_image"]
    for defense in result["defenses"]:
        del defense["per_image"]
    return result


def write(report: Report, folder: AnyPath) -> None:
    """Writes ``results.json`` and ``per_image.csv`` into a folder or bucket, each atomically.

    One row an image: id, label, undefended label, smallest margin over all masked images; then for
    each defense its label (-1: none, -2: alert), verdicts and smallest margin.
    """
    text = json.dumps(to_json(report), indent=1, allow_nan=False)
    _write(folder / FILES[0], text + "\n")

    columns: dict[str, Any] = {"id": report.ids, **report.per_image}
    for number, defense in enumerate(report.defenses):
        for name, values in defense.per_image.items():
            columns[f"{number}:{defense.name}:{name}"] = values

    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(columns)
    rows.writerows(zip(*map(_plain, columns.values()), strict=True))
    _write(folder / FILES[1], table.getvalue())


def as_text(report: Report) -> str:
    """The table that a program prints."""
    accuracy = _with_interval(report.undefended_accuracy, report.intervals["undefended_accuracy"])
    lines = [f"{report.num_images} images, undefended accuracy {accuracy}", ""]
    header = ("defense", "guarantee", "masks", "masked", "clean", "worst case", "paper's condition")
    rows = [header]
    for d in report.defenses:
        conditions = ", ".join(
            f"{name} {_with_interval(value, d.intervals[name])}"
            for name, value in d.conditions.items()
        )
        rows.append(
            (
                d.spec,
                d.guarantee,
                d.mask_set,
                str(d.masked_images),
                _with_interval(d.clean_accuracy, d.intervals["clean_accuracy"]),
                ("" if d.worst_case_exact else ">=")
                + _with_interval(d.worst_case_accuracy, d.intervals["worst_case_accuracy"]),
                conditions,
            )
        )
    lines += [*aligned(rows), "", *_notes(report)]
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first row is its header."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return lines


def _notes(report: Report) -> list[str]:
    usual = all(len(d.threat) == 1 and not d.threat.region for d in report.defenses)
    where = "one patch anywhere" if usual else "the patches of its row where they may be"
    notes = [
        *textwrap.wrap(
            f"worst case: % of images on which no attacker can win who puts {where} and chooses "
            "every prediction that sees a patch pixel (recovery: always the true label; detection: "
            "the true label or an alert). Only this number is a certificate.",
            width=_WIDTH - 10,
            subsequent_indent="  ",
        ),
        "paper's condition: what the defense's paper calls certified, under its own name.",
        "masked: distinct masked images per image. Brackets: 95% intervals (Wilson).",
    ]
    if "patched_with_noise_of_seed" in report.provenance:
        notes += [
            "the images are patched already, each with random noise of the size of the patch; the",
            "  worst case is over other contents of it (the clean image too), or one patch more",
        ]
    made, whole = report.forward_passes["made"], report.forward_passes["full_table"]
    if made < whole:
        notes.append(
            f"forward passes: {made / report.num_images:.1f} an image of "
            f"{whole / report.num_images:.0f}; the others could not change a verdict"
        )
    if "fields" in report.provenance:
        notes.append(
            f"local logits: all masked images of an image from {report.provenance['fields']} "
            f"distinct fields, as many as {report.provenance['fields_as_whole_images']:g} whole "
            "images have"
        )
    alerts = [d for d in report.defenses if d.false_alert_rate is not None]
    for d in alerts:
        assert d.false_alert_rate is not None
        rate = _with_interval(d.false_alert_rate, d.intervals["false_alert_rate"])
        notes.append(f"{d.spec}: false alerts on clean images {rate}")
    near = [
        f"{d.spec} {', '.join(map(str, d.near_ties.values()))}"
        for d in report.defenses
        if d.worst_case_accuracy > 0
    ]
    if near:
        margins = ", ".join(f"{margin:g}" for margin in MARGINS)
        notes += textwrap.wrap(
            "near ties, which another device or batch may break otherwise (--margin-guard): "
            f"certified images with a logit margin below {margins}: {'; '.join(near)}",
            width=_WIDTH,
            subsequent_indent="  ",
        )
    return notes + warnings(report)


def warnings(report: Report) -> list[str]:
    """What may make certificates differ from those of exact arithmetic, in lines."""
    notes = []
    flips = report.provenance.get("label_flips_against_float32")
    if flips:
        notes.append(
            f"precision: {flips['flips']} of {flips['compared']} masked images have another label "
            f"in float32 (largest margin {flips['largest_margin']:.3g})"
        )
    if report.margin_guard:
        notes.append(
            f"margin guard: no image is certified with a logit margin of {report.margin_guard:g} "
            "or less"
        )
    if report.non_finite_images:
        shown = ", ".join(report.non_finite_images[:5])
        notes.append(
            f"WARNING: NaN or infinite logits on {len(report.non_finite_images)} image(s), never "
            f"certified: {shown}{', ...' if len(report.non_finite_images) > 5 else ''}"
        )
    return notes


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _with_interval(fraction: float, interval: Interval) -> str:
    return f"{_percent(fraction)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _plain(values: Any) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return list(values)
    if values.dtype == np.bool_:
        return values.astype(np.int8).tolist()
    if np.issubdtype(values.dtype, np.floating):
        return [f"{v:.6g}" for v in values.astype(np.float64)]
    return list(values.tolist())


def _write(path: AnyPath, text: str) -> None:
    try:
        whole_files.write(path, text.encode())
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path}: could not be written ({error.strerror}); the prediction table beside it is "
            "complete: free some space and give the same command again to write the report",
        ) from error
