"""A run as one page: what was certified, how that was found, and every image with a map of places.

One static file, which opens from a disk and asks nothing of any network. What is not at hand is
left out and named; the rest is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._version import __version__
from certmask_jax.certification.report import Report, labels, notes, numbers, wilson_interval
from certmask_jax.certification.report.records import DefenseResult
from certmask_jax.certification.report.size_screen import masks_of, panels
from certmask_jax.pages import charts, rendering
from certmask_jax.pages.image_data import Attacked, key_of, page_data
from certmask_jax.pages.inspected import Inspected

FILE = "report.html"
"""What a page is called in the folder of its run."""

MOST_IMAGES = 1000
"""Of larger runs so many images are shown one by one; the numbers are of all."""

_OF_FILES = ("image_folder", "image_list")

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
    pictures: Sequence[str] | None = None,
    attacked: Mapping[int, Sequence[Attacked]] = NOBODY_ATTACKED,
    missing: Sequence[str] = (),
) -> str:
    """The page of a run, HTML.

    Args:
      report: as it was made, or read back (``certification.report.read``).
      rows: which of its images are shown, ``int[T]``; see ``sample``.
      inspected: number of a defense in the report -> what its table tells of the T images.
      pictures: a ``data:`` address for each of them; None where there are no images at hand.
      attacked: row of the report -> what attacks made of the image.
      missing: what is not at hand, in sentences.
    """
    has_images = bool(len(report.ids))
    data = None
    shown = ""
    if has_images:
        data = rendering.as_json(
            page_data(report, rows, inspected, pictures=pictures, attacked=attacked)
        )
        shown = f"All {len(rows):,} images of the run."
        if len(rows) < report.num_images:
            shown = (
                f"{len(rows):,} of the {report.num_images:,} images, drawn at random; the numbers "
                "above are of all."
            )
    provenance = report.provenance
    return rendering.rendered(
        "run.html",
        title=_title(report),
        sentences=_sentences(report),
        missing=list(missing),
        count=f"{report.num_images:,}",
        rows=_rows(report),
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
            *notes.of_columns(report, short=False),
            *notes.of_conditions(report),
            *notes.of_work(report),
            *notes.of_near_ties(report, labels.in_a_line(report.defenses)),
        ],
        plots=[*_costs(report), *_sizes(report)],
        classes=_classes(report) if has_images else [],
        data=data,
        shown=shown,
        has_attack=bool(attacked),
        command=provenance.get("command_of_all_shares") or provenance.get("command") or "",
        facts=_facts(report),
        warnings=notes.warnings(report),
        version=__version__,
    )


def _title(report: Report) -> str:
    provenance = report.provenance
    return f"{_data(report)}, {provenance.get('model', 'a model')}: certified against patches"


def _data(report: Report) -> str:
    """What the images are called: of folders and lists of files by their folder."""
    name = str(report.provenance.get("dataset") or "images")
    folder = report.provenance.get("data_dir")
    if name in _OF_FILES and folder:
        return PurePath(folder).name or name
    return name


def _sentences(report: Report) -> list[str]:
    """What was certified, against what, and what came of it."""
    provenance = report.provenance
    split = f" ({provenance['split']})" if provenance.get("split") else ""
    weights = f" with the weights {provenance['weights']}" if provenance.get("weights") else ""
    heading = [_upper(line) for line in notes.heading(report)[1:]]
    what = (
        f"{report.num_images:,} images of {_data(report)}{split} were certified for the model "
        f"{provenance.get('model', '')}{weights}."
    )
    if heading:
        what += f" {'. '.join(heading)}."
    threats = list(dict.fromkeys(d.threat for d in report.defenses))
    against = [labels.against(threat) for threat in threats]
    if len(threats) == 1:
        threat = threats[0]
        number = "one patch" if len(threat) == 1 else f"{len(threat)} patches at once"
        height, width = threat.shapes[0]
        size = f"{height}x{width}" if len(threat.shapes) == 1 else "one of several sizes"
        where = "inside a region" if threat.region else "anywhere"
        image = "x".join(map(str, threat.image_size))
        attacker = (
            f"The attacker puts {number} of {size} pixels {where} on the {image} image, and what "
            "it shows is up to them."
        )
        if "two_parts" in provenance or not (len(threat) == 1 and len(threat.shapes) == 1):
            attacker = f"The attacker has {against[0]}, and what they show is up to them."
    else:
        attacker = (
            f"Against {len(threats)} sorts of patches, from {against[0]} to {against[-1]}, "
            "whatever they show."
        )
    return [what, attacker, _found(report)]


def _found(report: Report) -> str:
    """What is proved by the best of each sort: of several threats, of the first and the last."""
    threats = list(dict.fromkeys(d.threat for d in report.defenses))
    ends = [threats[0], *threats[1:][-1:]]
    parts = []
    for threat in ends:
        said = _best([d for d in report.defenses if d.threat == threat])
        against = f"against {labels.patch(threat)}, " if len(ends) > 1 else ""
        parts.append(f"{against}{', and '.join(said)}")
    return (
        f"{_upper('; '.join(parts))}. The model alone is right on "
        f"{_percent(numbers.undefended(report))} without a patch, and nothing is proved of it."
    )


def _best(results: Sequence[DefenseResult]) -> list[str]:
    best: dict[str, DefenseResult] = {}
    for result in results:
        there = best.get(result.guarantee)
        if there is None or result.worst_case_accuracy > there.worst_case_accuracy:
            best[result.guarantee] = result
    parts = []
    for guarantee, promise in (
        ("recovery", "no such patch can change the right answer"),
        ("detection", "none can bring about a wrong answer without an alert"),
    ):
        if guarantee in best:
            one = best[guarantee]
            parts.append(
                f"on {_percent(numbers.worst_case(one))} of the images {promise} ({one.name})"
            )
    return parts


def _rows(report: Report) -> list[dict[str, Any]]:
    made = []
    for number, result in enumerate(report.defenses):
        clean = result.intervals["clean_accuracy"]
        worst = result.intervals["worst_case_accuracy"]
        made.append(
            {
                "key": key_of(number),
                "name": result.name,
                "spec": result.spec,
                "patch": labels.patch(result.threat),
                "guarantee": result.guarantee,
                "masks": labels.masks(result.mask_set, result.threat),
                "passes": _passes(report, result),
                "clean": numbers.clean(result),
                "clean_bar": charts.bar(result.clean_accuracy, clean, "plain"),
                "alerts": numbers.false_alerts(result),
                "certified": numbers.worst_case(result),
                "certified_bar": charts.bar(result.worst_case_accuracy, worst, "proved"),
                "conditions": [
                    f"{name} {numbers.condition(result, name)}"
                    for name in numbers.other_conditions(result)
                ],
            }
        )
    return made


def _passes(report: Report, result: DefenseResult) -> str:
    each = report.forward_passes.get("a_masked_image", 1)
    return f"{max(1, result.masked_images) * each:,}"


def _costs(report: Report) -> list[dict[str, Any]]:
    """Accuracy against passes, where there are several defenses against one threat."""
    if report.certified_size or len({d.threat for d in report.defenses}) != 1:
        return []
    each = report.forward_passes.get("a_masked_image", 1)
    names = labels.in_a_line(report.defenses)
    series = []
    there: dict[tuple[float, float], list[str]] = {}
    for number, result in enumerate(report.defenses):
        place = float(max(1, result.masked_images) * each), round(result.worst_case_accuracy, 2)
        there.setdefault(place, []).append(key_of(number))
    for number, (name, result) in enumerate(zip(names, report.defenses, strict=True)):
        x = float(max(1, result.masked_images) * each)
        for kind, value, key, filled in (
            ("certified", result.worst_case_accuracy, "worst_case_accuracy", True),
            ("clean", result.clean_accuracy, "clean_accuracy", False),
        ):
            about = f"{name}: {kind} {100 * value:.1f}% with {x:,.0f} passes an image"
            point = charts.Point(x, value, *result.intervals[key], about)
            mark = ", ".join(there[x, round(value, 2)]) if filled else ""
            if filled:  # those in one place have one mark
                there[x, round(value, 2)] = []
            series.append(charts.Series(name, [point], filled=filled, colour=number, mark=mark))
    svg = charts.plot(
        series,
        x_title="forward passes an image (the whole table)",
        title="Certified and clean accuracy in percent against forward passes an image",
        level=(report.undefended_accuracy, "no defense, clean"),
        logarithmic=True,
    )
    legend = [
        {"name": f"{key_of(i)} {name}", "colour": charts.colour(i), "filled": True}
        for i, name in enumerate(names)
    ]
    caption = "Percent of images: dots are certified, rings are clean accuracy; 95% intervals."
    return [{"svg": svg, "caption": caption, "legend": legend}]


def _sizes(report: Report) -> list[dict[str, Any]]:
    """Accuracy against the size of the patch: a plot for each defense of a run over sizes."""
    made = []
    for curves in panels(report):
        square = all(height == width for curve in curves for height, width in curve.sizes)
        series, legend = [], []
        for number, curve in enumerate(curves):
            for kind, values, key, filled in (
                ("certified", curve.worst_case_accuracy, "worst_case_accuracy", True),
                ("clean", curve.clean_accuracy, "clean_accuracy", False),
            ):
                points = [
                    charts.Point(
                        float(height if square else height * width),
                        value,
                        *interval,
                        f"{masks_of(curve)}: {kind} {100 * value:.1f}% at {height}x{width}",
                    )
                    for (height, width), value, interval in zip(
                        curve.sizes, values, curve.intervals[key], strict=True
                    )
                ]
                series.append(
                    charts.Series(
                        curve.defense, points, filled, joined=True, dashed=not filled, colour=number
                    )
                )
                legend.append(
                    {
                        "name": f"{kind}, {masks_of(curve)}",
                        "colour": charts.colour(number),
                        "filled": filled,
                    }
                )
        svg = charts.plot(
            series,
            x_title="side of the patch, pixels" if square else "pixels of the patch",
            title=f"{curves[0].defense}: accuracy in percent against the size of the patch",
            level=(report.undefended_accuracy, "no defense, clean"),
        )
        caption = f"{curves[0].defense} ({curves[0].guarantee}): percent of images by patch size."
        made.append({"svg": svg, "caption": caption, "legend": legend})
    return made


def _classes(report: Report) -> list[dict[str, Any]]:
    """Clean and certified accuracy of each class (PatchCleanser, Figure 13)."""
    true = report.per_image["label"]
    made = []
    for label in np.unique(true).tolist():
        own = true == label
        count = int(own.sum())
        cells = []
        for result in report.defenses:
            certified = float(result.per_image["worst_case"][own].mean())
            clean = float((result.per_image["answer"][own] == label).mean())
            cells.append(
                {
                    "certified": f"{100 * certified:.0f}",
                    "clean": f"{100 * clean:.0f}",
                    "bar": charts.bar(certified, wilson_interval(certified, count), "proved"),
                }
            )
        named = report.class_names[label] if label < len(report.class_names) else ""
        undefended = float((report.per_image["undefended"][own] == label).mean())
        made.append(
            {
                "name": named or f"class {label}",
                "count": count,
                "undefended": f"{100 * undefended:.0f}",
                "cells": cells,
                "least": sum(float(cell["certified"]) for cell in cells),
            }
        )
    return sorted(made, key=lambda one: float(one["least"]))


def _facts(report: Report) -> list[tuple[str, str]]:
    """Where the numbers come from: names and values, as far as the run recorded them."""
    known = report.provenance
    versions, devices = known.get("versions", {}), known.get("devices", {})
    passes = report.forward_passes
    seconds = known.get("seconds", {}).get("all")
    facts = {
        "begun": known.get("started"),
        "data": " ".join(str(known[k]) for k in ("dataset", "split") if known.get(k)),
        "data folder": known.get("data_dir"),
        "classes": known.get("class_mapping"),
        "model": known.get("model"),
        "weights": known.get("weights"),
        "weights, sha256": known.get("weights_sha256"),
        "threats": "; ".join(known.get("threats", ())),
        "fill": known.get("fill"),
        "precision": known.get("precision"),
        "forward passes": f"{passes['made']:,} made, {passes['full_table']:,} in the whole table",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "devices": " ".join(str(devices[k]) for k in ("count", "kind", "machine") if k in devices),
        "seconds": None if seconds is None else f"{seconds:g}",
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _percent(number: str) -> str:
    """``"74.0% [70.0, 77.7]"``."""
    return number.replace(" [", "% [", 1)


def _upper(text: str) -> str:
    return re.sub(r"^\s*(.)", lambda found: found[1].upper(), text)
