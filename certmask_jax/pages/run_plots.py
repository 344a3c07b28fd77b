"""The plots of a run: accuracy against passes, and against the size of the patch."""

from __future__ import annotations

from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification.report import Report, labels
from certmask_jax.certification.report.size_screen import masks_of, panels
from certmask_jax.pages import charts
from certmask_jax.pages.image_data import key_of


def plots_of(report: Report) -> list[dict[str, Any]]:
    """Each plot as ``svg``, a ``caption`` and the entries of its ``legend``."""
    return [*_costs(report), *_sizes(report)]


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
            passes = counted(round(x), "pass", "passes")
            about = f"{name}: {kind} {100 * value:.1f}% with {passes} an image"
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
