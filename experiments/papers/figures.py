"""Figures of papers as SVG files that stand alone: our points, and the paper's if known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import escape

from certmask_jax.pages import charts
from certmask_jax.pages.charts import Point, Series
from experiments.papers.recipes import CLEAN, Row, Table

_WIDTH, _PLOT, _LINE = 560, 300, 20
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}.tick{fill:#555}"
    ".level{stroke:#777;stroke-dasharray:2 3}"
)
_HERE, _PAPER, _CONDITION = 0, 1, 2  # colours
_KINDS = (("worst case", "worst_case"), ("the paper's condition", "condition"), ("clean", "clean"))
_CLAIMED = {"condition": "certified", "clean": "clean"}


def accuracy(table: Table, our_figures: Sequence[Mapping[str, Any] | None]) -> str:
    """Clean and certified accuracy along a table's axis; empty where there is nothing to draw."""
    by_clean = table.axis == CLEAN
    differs = any(one and one["condition"] != one["worst_case"] for one in our_figures)
    series = []
    for name, key in _KINDS:
        if by_clean and key == "clean":  # that is the axis
            continue
        here = [
            _point(100 * one["clean"][0] if by_clean else row.x, one[key], f"{row.label}, {name}")
            for row, one in zip(table.rows, our_figures, strict=True)
            if one is not None and one[key] is not None and (key != "condition" or differs)
        ]
        claimed = [
            _point(row.clean if by_clean else row.x, [figure / 100] * 3, f"{row.label}, the paper")
            for row in table.rows
            if (figure := _claim(row, key)) is not None
        ]
        colour = _CONDITION if key == "condition" else _HERE
        for points, called, of in (
            (here, f"{name}, here", colour),
            (claimed, f"{_CLAIMED.get(key)}, the paper's", _PAPER),
        ):
            if points:
                is_clean = key == "clean"
                series.append(Series(called, points, not is_clean, not by_clean, is_clean, of))
    return drawn(series, table.axis, f"{table.name}: {table.title}")


def drawn(series: Sequence[Series], axis: str, title: str) -> str:
    """Series of fractions against an axis, with a legend, as a whole file; empty for none."""
    if not any(one.points for one in series):
        return ""
    plot = str(charts.plot(series, x_title=axis, title=title))
    height = _PLOT + _LINE * len(series) + 10
    legend = []
    for number, one in enumerate(series):
        y = _PLOT + _LINE * number + 12
        colour = charts.colour(one.colour)
        fill = colour if one.filled else "#fff"
        legend.append(
            f'<circle cx="56" cy="{y - 4}" r="4.5" fill="{fill}" stroke="{colour}" '
            f'stroke-width="2"/><text x="68" y="{y}">{escape(one.name)}, percent of images</text>'
        )
    inner = plot.replace("<svg ", f'<svg width="{_WIDTH}" height="{_PLOT}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}">'
        f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
        f"{inner}{''.join(legend)}</svg>\n"
    )


def _claim(row: Row, key: str) -> float | None:
    """What a paper calls certified stands beside its condition here, which is the same."""
    return {"condition": row.certified, "clean": row.clean}.get(key)


def _point(x: float | None, ends: Sequence[float], about: str) -> Point:
    assert x is not None, about
    return Point(x, ends[0], ends[1], ends[2], f"{about}: {100 * ends[0]:.1f}%")
