"""Certified and clean accuracy against masked images, of finished runs: a figure, a panel a run.

    python experiments/passes_front.py RUN [RUN ...] --figure passes.svg

Pair covers are one curve, double masking another; dots are certified, rings clean accuracy. Runs
of one model and one set of images, such as with patches of several sizes, are compared at a glance.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from certmask_jax._text import counted
from certmask_jax.certification import report
from certmask_jax.programs import program

_FAMILIES = {"double_masking": "double masking", "pair_cover": "pair covers, one round"}
_WIDTH, _HEIGHT, _LEFT, _TOP = 250, 260, 56, 64  # of a panel, in pixels, and of what is beside it


class Point(NamedTuple):
    """A defense of a run: its curve, its masked images, and fractions of the images."""

    family: str
    masked_images: int
    certified: float
    clean: float


def points_of(results: dict[str, Any]) -> list[Point]:
    """The defenses of ``results.json`` that are on a curve, by masked images."""
    points = [
        Point(
            result["name"],
            result["masked_images"],
            result["worst_case_accuracy"],
            result["clean_accuracy"],
        )
        for result in results["defenses"]
        if result["name"] in _FAMILIES
    ]
    return sorted(points, key=lambda point: point.masked_images)


def title_of(results: dict[str, Any]) -> str:
    """What tells a run from the others, in a line."""
    (height, width), *_ = results["defenses"][0]["threat"]["patches"][0]
    classes = len(results["provenance"]["class_names"])
    chosen = f", {classes}-way" if results["provenance"].get("only_classes") else ""
    return f"{height}x{width} px, {counted(results['num_images'], 'image')}{chosen}"


def figure(runs: Sequence[dict[str, Any]]) -> str:
    """The figure as SVG."""
    least = min(p.masked_images for run in runs for p in points_of(run))
    most = max(p.masked_images for run in runs for p in points_of(run))
    shown = (0.8 * least, 1.25 * most)
    parts = [
        panel(run, _LEFT + number * (_WIDTH + 24), shown, axis=number == 0)
        for number, run in enumerate(runs)
    ]
    width = _LEFT + len(runs) * (_WIDTH + 24)
    for number, (name, words) in enumerate(_FAMILIES.items()):
        x = _LEFT + 10 + 170 * number
        parts.append(f'<circle class="{name}" cx="{x}" cy="22" r="5"/>')
        parts.append(f'<text x="{x + 11}" y="26">{words}</text>')
    x = _LEFT + 10 + 170 * len(_FAMILIES)
    parts.append(f'<text x="{x}" y="26">dots: certified; rings: clean</text>')
    return (
        _SVG.replace("WIDTH", str(width))
        .replace("HEIGHT", str(_TOP + _HEIGHT + 50))
        .replace("PARTS", "\n".join(parts))
    )


def panel(results: dict[str, Any], left: float, shown: tuple[float, float], *, axis: bool) -> str:
    """One run, its upper left corner at ``left``; the ends of the horizontal axis are ``shown``."""
    least, most = shown
    bottom = _TOP + _HEIGHT

    def at(masked_images: float, accuracy: float) -> tuple[float, float]:
        across = math.log(masked_images / least) / math.log(most / least)
        return left + _WIDTH * across, bottom - _HEIGHT * accuracy

    parts = [f'<text x="{left}" y="{_TOP - 12}">{escape(title_of(results))}</text>']
    for percent in range(0, 101, 20):
        y = at(least, percent / 100)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{left + _WIDTH}" y1="{y}" y2="{y}"/>')
        if axis:
            parts.append(f'<text text-anchor="end" x="{left - 6}" y="{y + 4}">{percent}%</text>')
    for count in (10, 20, 50, 100, 200, 500):
        if least < count < most:
            x = at(count, 0)[0]
            parts.append(f'<text text-anchor="middle" x="{x:.1f}" y="{bottom + 18}">{count}</text>')
    x = left + _WIDTH / 2
    parts.append(f'<text text-anchor="middle" x="{x}" y="{bottom + 38}">masked images</text>')
    y = at(least, results["undefended_accuracy"])[1]
    parts.append(
        f'<line class="undefended" x1="{left}" x2="{left + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
    )
    for family in _FAMILIES:
        own = [point for point in points_of(results) if point.family == family]
        for kind, accuracies in (
            ("", [point.certified for point in own]),
            (" clean", [point.clean for point in own]),
        ):
            places = [at(p.masked_images, value) for p, value in zip(own, accuracies, strict=True)]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="{family}{kind}" points="{line}"/>')
            parts += [
                f'<circle class="{family}{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
                for x, y in places
            ]
    return "\n".join(parts)


_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 WIDTH HEIGHT" role="img"
  aria-labelledby="t">
<title id="t">Certified and clean accuracy against masked images, a panel for each run; the dashed
line is the undefended model</title>
<style>
.card { fill: #ffffff; stroke: #c8d0d8; } .grid { stroke: #e3e8ec; }
.undefended { stroke: #607d8b; stroke-dasharray: 5 4; }
polyline { fill: none; stroke-width: 2; } polyline.clean { stroke-width: 1; }
polyline.pair_cover, circle.pair_cover { stroke: #00897b; } circle.pair_cover { fill: #00897b; }
polyline.double_masking, circle.double_masking { stroke: #d84315; }
circle.double_masking { fill: #d84315; } circle.clean { fill: #ffffff; }
polyline.pair_cover, polyline.double_masking { fill: none; }
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
  font-size: 12.5px; fill: #263238; }
@media (prefers-color-scheme: dark) {
.card { fill: #1e2429; stroke: #46535c; } .grid { stroke: #37424a; } text { fill: #eceff1; }
circle.clean { fill: #1e2429; }
}
</style>
<rect class="card" width="WIDTH" height="HEIGHT" rx="10"/>
PARTS
</svg>
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the figure; returns the exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of certify")
    parser.add_argument("--figure", type=Path, required=True, help="SVG to write")
    given = parser.parse_args(argv)
    runs = [report.to_json(report.read(run)) for run in given.runs]
    for folder, run in zip(given.runs, runs, strict=True):
        if not points_of(run):
            parser.error(
                f"{folder}: expected {' or '.join(_FAMILIES)} among its defenses, found neither"
            )
    given.figure.write_text(figure(runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
