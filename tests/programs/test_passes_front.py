"""The figure of accuracy against masked images, from results that are written by hand."""

from __future__ import annotations

import re

import pytest

from experiments import passes_front


def _result(name, masked, certified, clean):
    return {
        "name": name,
        "masked_images": masked,
        "worst_case_accuracy": certified,
        "clean_accuracy": clean,
        "threat": {"patches": [[[23, 32]]]},
    }


RESULTS = {
    "num_images": 1000,
    "undefended_accuracy": 0.9,
    "provenance": {"class_names": ["a<b", "c"], "only_classes": True},
    "defenses": [
        _result("double_masking", 100, 0.5, 0.75),
        _result("minority_reports", 37, 0.1, 0.1),
        _result("double_masking", 10, 0.25, 0.7),
        _result("pair_cover", 20, 0.3, 0.8),
    ],
}


def test_points_are_the_defenses_of_the_curves_by_masked_images():
    points = passes_front.points_of(RESULTS)
    assert [(p.family, p.masked_images, p.certified, p.clean) for p in points] == [
        ("double_masking", 10, 0.25, 0.7),
        ("pair_cover", 20, 0.3, 0.8),
        ("double_masking", 100, 0.5, 0.75),
    ]
    assert passes_front.title_of(RESULTS) == "23x32 px, 1,000 images, 2-way"


def test_a_panel_has_each_number_at_its_place():
    panel = passes_front.panel(RESULTS, 0, (1, 10_000), axis=True)
    bottom, height, width = 64 + 260, 260, 250
    circles = re.findall(r'<circle class="([^"]*)" cx="([\d.]+)" cy="([\d.]+)"', panel)
    dots = [(kind, float(x), float(y)) for kind, x, y in circles if kind == "double_masking"]
    assert [(x, y) for _, x, y in dots] == [
        (pytest.approx(width / 4, abs=0.05), pytest.approx(bottom - height / 4, abs=0.05)),
        (pytest.approx(width / 2, abs=0.05), pytest.approx(bottom - height / 2, abs=0.05)),
    ]
    rings = [float(y) for kind, _, y in circles if kind == "pair_cover clean"]
    assert rings == [pytest.approx(bottom - 0.8 * height, abs=0.05)]
    assert f'y1="{bottom - 0.9 * height:.1f}"' in panel  # the undefended line
    assert len(circles) == 6


def test_a_figure_has_a_panel_for_each_run():
    svg = passes_front.figure([RESULTS, RESULTS])
    assert svg.count("23x32 px") == 2
    assert svg.count("%</text>") == 6  # one axis
