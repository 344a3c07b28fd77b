"""Marks beside points: each can be read, and stands at its point where there is room."""

from __future__ import annotations

import re

import numpy as np
import pytest

from certmask_jax.pages import charts


def _marks(points):
    series = [
        charts.Series(mark, [charts.Point(x, y, y, y, mark)], colour=i, mark=mark)
        for i, (x, y, mark) in enumerate(points)
    ]
    drawn = charts.plot(series, x_title="passes", title="a plot", logarithmic=True)
    notes = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" class="note">([A-Z][A-Z, ]*)</text>', drawn
    )
    return {mark: (float(x), float(y)) for x, y, mark in notes}


def test_marks_have_room_where_they_are():
    marks = _marks([(10, 0.8, "A"), (10, 0.5, "B"), (100, 0.8, "C")])
    assert marks["A"][1] == marks["C"][1] < marks["B"][1]
    assert marks["A"][0] == marks["B"][0] < marks["C"][0]


def test_marks_of_neighbours_stand_one_below_the_other():
    alone = _marks([(10, 0.78, "G"), (100, 0.2, "X")])
    marks = _marks([(10, 0.75, "A"), (10, 0.78, "G"), (10, 0.76, "B, C"), (100, 0.2, "X")])
    assert marks["G"] == alone["G"]
    assert marks["X"] == alone["X"]
    assert marks["G"][1] + 12 <= marks["B, C"][1]
    assert marks["B, C"][1] + 12 <= marks["A"][1]


@pytest.mark.parametrize("seed", range(5))
def test_none_covers_another(seed):
    random = np.random.default_rng(seed)
    points = [
        (x, y, chr(65 + i) + ", Z" * (i % 3))
        for i, (x, y) in enumerate(
            zip(random.choice([10, 12, 15, 40], 14), random.uniform(0.6, 0.9, 14), strict=True)
        )
    ]
    marks = list(_marks(points).items())
    assert len(marks) == len(points)
    for i, (one, (x, y)) in enumerate(marks):
        for other, (left, down) in marks[i + 1 :]:
            side_by_side = x + 9 * len(one) <= left or left + 9 * len(other) <= x
            assert side_by_side or abs(y - down) >= 11.9, (one, other)
