"""Defenses on evidence as values: what they are, and which windows a threat gives them."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytest

from certmask_jax.defenses import clipped_bagnet, patchguard
from certmask_jax.defenses.band_defense import DerandomizedSmoothing
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.masks.threats import Threat

FIELD = {"field": 3, "stride": 1}
THREAT = Threat.of(8, 1)
ALL = [
    PatchGuard(THREAT, **FIELD, clip=4, threshold=0.25),
    PatchGuardDetection(THREAT, **FIELD, tau=0.2),
    ClippedBagNet(THREAT, **FIELD, clip=3),
]


@pytest.mark.parametrize("defense", ALL, ids=lambda one: one.name)
def test_a_defense_is_a_value(defense):
    again = pickle.loads(pickle.dumps(defense))
    assert again == defense
    assert hash(again) == hash(defense)
    assert "\n" not in repr(defense)
    assert len({defense, again}) == 1
    assert type(defense)(THREAT, **FIELD) != defense


def test_a_defense_says_what_it_looks_at():
    for defense in ALL:
        assert defense.of_cells == (3, 1, None, (6, 6), (3, 3))  # a pixel is in 3x3 of 6x6 fields
        assert defense.of_bands is None
    resized = ClippedBagNet(THREAT, **FIELD, seen_size=(16, 16))
    assert resized.of_cells.seen_size == (16, 16)
    assert resized.of_cells.cells == (14, 14)
    bands = DerandomizedSmoothing(THREAT, band=2, stride=2)
    assert bands.of_cells is None
    assert bands.of_bands == bands.masks
    assert len(bands.of_bands) == bands.num_parts == 4


def test_names_that_numbers_are_given_by_are_in_its_line():
    assert repr(ALL[0]) == (
        "PatchGuard(1x1 patches on 8x8, field=3, stride=1, clip=4.0, threshold=0.25)"
    )
    assert str(ALL[1]) == (
        "patchguard_pp: windows of 3x3 of 6x6 cells for 1x1 patches on 8x8, detection"
    )


def test_a_window_holds_what_each_shape_reaches_anywhere():
    threat = Threat.of(20, (1, 6), (5, 2))
    field, stride = 5, 3
    defense = ClippedBagNet(threat, field=field, stride=stride)
    assert defense.cells == (6, 6)
    tallest = widest = 0
    for height, width in [(1, 6), (5, 2)]:
        for top in range(20 - height + 1):
            rows = [i for i in range(6) if 3 * i < top + height and 3 * i + 5 > top]
            tallest = max(tallest, len(rows))
        for left in range(20 - width + 1):
            columns = [i for i in range(6) if 3 * i < left + width and 3 * i + 5 > left]
            widest = max(widest, len(columns))
    assert defense.window == (tallest, widest)
    assert defense.num_parts == (7 - tallest) * (7 - widest)
    assert defense.exact
    assert defense.reached.sum(axis=(1, 2)).max() < tallest * widest  # no one shape reaches all
    one_shape = ClippedBagNet(Threat.of(20, 5), field=field, stride=stride)
    assert one_shape.exact
    assert one_shape.reached is None
    assert not PatchGuard(Threat.of(20, 5), field=field, stride=stride, threshold=0.5).exact


def test_evidence_of_other_cells_than_field_and_stride_say_is_refused():
    evidence, labels = np.zeros((2, 5, 6, 3), np.float32), np.zeros(2, np.int32)
    for defense in ALL:
        with pytest.raises(
            ValueError, match=r"evidence: expected \[T, 6, 6, K\], .* got \[2, 5, 6, 3\]"
        ):
            defense.results(evidence, labels)


def test_results_are_those_of_the_pure_functions():
    rng = np.random.default_rng(1)
    evidence = rng.normal(1, 2, (12, 6, 6, 3)).astype(np.float32)
    evidence[:, :, :, 1] += 3
    evidence[3, 2, 2, 0] = np.nan
    labels = np.ones(12, np.int32)
    guard, detector, clipped = (
        jax.jit(lambda u, y, one=one: one.results(u, y))(evidence, labels) for one in ALL
    )
    how = {"window": 3, "clip": 4, "threshold": 0.25}
    np.testing.assert_array_equal(guard.answer, patchguard.robust_masking_rule(evidence, **how))
    np.testing.assert_array_equal(
        guard.worst_case, patchguard.robust_masking_worst_case(evidence, labels, **how)
    )
    how = {"window": 3, "tau": 0.2}
    np.testing.assert_array_equal(detector.answer, patchguard.detection_rule(evidence, **how))
    proved = patchguard.detection_worst_case(evidence, labels, **how)
    np.testing.assert_array_equal(detector.worst_case, proved)
    assert proved.sum() > 6
    assert not proved[3]
    np.testing.assert_array_equal(clipped.answer, clipped_bagnet.rule(evidence, clip=3))
    np.testing.assert_array_equal(
        clipped.worst_case, clipped_bagnet.worst_case(evidence, labels, window=3, clip=3)
    )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PatchGuard(Threat.of(8, 1, patches=2), **FIELD), "expected one patch"),
        (lambda: PatchGuard(Threat.of(8, 6), **FIELD), "reach all of them"),
        (
            lambda: PatchGuard(THREAT, field=9, stride=1),
            "field: expected one that fits into images of 8x8 pixels, got 9x9",
        ),
        (lambda: PatchGuard(THREAT, **FIELD, threshold=1), "threshold: .*below 1"),
        (lambda: PatchGuard(THREAT, **FIELD, clip=0), "clip: .*above 0"),
        (lambda: PatchGuardDetection(THREAT, **FIELD, tau=1), "tau: .*below 1"),
        (lambda: ClippedBagNet(THREAT, **FIELD, clip=float("inf")), "clip: .*finite"),
    ],
)
def test_what_cannot_be_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
