"""Plots as SVG that we write ourselves: sharp on paper, small, and of the page's own fonts.

A library would do as well; this takes no dependency, and every mark has a text that a pointer, a
screen reader and a test can find.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 14, 44
_LETTER, _LINE = 9, 12  # what a letter and a line of a mark take
_COLOURS = ("#0f6e66", "#b4441a", "#5b4bb0", "#8a6a00", "#1d6fb8", "#a3346f", "#4d6b1e", "#555b66")


class Point(NamedTuple):
    """A point of a plot: where it is, its interval, and what it is in words."""

    x: float
    y: float  # a fraction
    low: float
    high: float
    about: str


class Series(NamedTuple):
    """Points with a name; joined by a line if they are a curve."""

    name: str
    points: Sequence[Point]
    filled: bool = True
    joined: bool = False
    dashed: bool = False
    colour: int = 0
    mark: str = ""  # a letter beside each point


def plot(
    series: Sequence[Series],
    *,
    x_title: str,
    title: str,
    level: tuple[float, str] | None = None,
    logarithmic: bool = False,
    ticks: Sequence[float] | None = None,
) -> Markup:
    """A plot of fractions, in percent, against a positive quantity.

    Args:
      series: at least one point in all.
      x_title: below the axis.
      title: what a screen reader says of the whole.
      level: a fraction that is drawn as a line across, and its name.
      logarithmic: whether x is.
      ticks: where x has a number; by default at the points.
    """
    places = [point.x for one in series for point in one.points]
    low, high = min(places), max(places)
    if logarithmic:
        low, high = low / 1.3, high * 1.3
    else:
        space = max((high - low) * 0.06, 0.5)
        low, high = low - space, high + space

    def across(x: float) -> float:
        part = math.log(x / low) / math.log(high / low) if logarithmic else (x - low) / (high - low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    parts = [_axes(x_title), _x_ticks(sorted(set(ticks or places)), across)]
    if level is not None:
        y = _down(level[0])
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="level"/>'
            f'<text x="{_WIDTH - _RIGHT}" y="{y - 5:.1f}" text-anchor="end" class="note">'
            f"{escape(level[1])}</text>"
        )
    beside = _marks_apart([(across(p.x), _down(p.y), s.mark) for s in series for p in s.points])
    heights = iter(beside)
    for one in series:
        colour = _COLOURS[one.colour % len(_COLOURS)]
        if one.joined and len(one.points) > 1:
            line = " ".join(f"{across(p.x):.1f},{_down(p.y):.1f}" for p in one.points)
            dashes = ' stroke-dasharray="5 4"' if one.dashed else ""
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"'
                f"{dashes}/>"
            )
        parts += [
            _marked(point, one, across(point.x), colour, next(heights)) for point in one.points
        ]
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def bar(fraction: float, interval: tuple[float, float] | None, kind: str) -> Markup:
    """A fraction as a small bar with the whisker of its interval; the number stands beside it."""
    width = 100
    whisker = ""
    if interval is not None:
        low, high = (width * end for end in interval)
        whisker = (
            f'<path d="M{low:.1f} 6H{high:.1f}M{low:.1f} 3V9M{high:.1f} 3V9" class="whisker"/>'
        )
    return Markup(
        f'<svg class="bar {escape(kind)}" viewBox="0 0 {width} 12" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect width="{width}" height="12" class="rest"/>'
        f'<rect width="{width * fraction:.1f}" height="12" class="part"/>{whisker}</svg>'
    )


def _marks_apart(marks: Sequence[tuple[float, float, str]]) -> list[float]:
    """How far down each mark ``(x, y, text)`` stands so that none covers another; from above."""
    heights = [y for _, y, _ in marks]
    placed: list[int] = []
    for number in sorted(range(len(marks)), key=heights.__getitem__):
        x, _, text = marks[number]
        for other in placed if text else ():
            left, _, its = marks[other]
            meets = x < left + _LETTER * len(its) and left < x + _LETTER * len(text)
            if meets and heights[number] < heights[other] + _LINE:
                heights[number] = heights[other] + _LINE
        if text:
            placed.append(number)
    return heights


def _marked(point: Point, one: Series, x: float, colour: str, beside: float) -> str:
    y, low, high = _down(point.y), _down(point.low), _down(point.high)
    fill = colour if one.filled else "none"  # what is in the same place shows
    radius = 4 if one.filled else 6
    letter = (
        f'<text x="{x + 8:.1f}" y="{beside + 4:.1f}" class="note">{escape(one.mark)}</text>'
        if one.mark
        else ""
    )
    return (
        f'<g><title>{escape(point.about)}</title><path d="M{x:.1f} {low:.1f}V{high:.1f}" '
        f'stroke="{colour}" opacity=".45"/><circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" '
        f'fill="{fill}" stroke="{colour}" stroke-width="2"/>{letter}</g>'
    )


def _axes(x_title: str) -> str:
    lines = []
    for percent in range(0, 101, 20):
        y = _down(percent / 100)
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" class="tick">{percent}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle" class="note">'
        f"{escape(x_title)}</text>"
    )
    return "".join(lines)


def _x_ticks(places: Sequence[float], across: object) -> str:
    assert callable(across)
    ticks, last = [], -math.inf
    for x in places:
        at = across(x)
        if at - last < 34:  # a number needs so much space
            continue
        last = at
        ticks.append(
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle" '
            f'class="tick">{x:,g}</text>'
        )
    return "".join(ticks)


def _down(fraction: float) -> float:
    return _TOP + (1 - fraction) * (_HEIGHT - _TOP - _BOTTOM)


def colour(number: int) -> str:
    """The colour of a series, for a legend beside a plot."""
    return _COLOURS[number % len(_COLOURS)]
