"""Rules on local evidence against patches that reach other sets of cells than whole windows.

Every content of small alphabets in what a patch reaches, pixel by pixel, by rules in plain NumPy.
"""

from __future__ import annotations

import itertools

import numpy as np
import oracle_small_fields as oracle
import pytest

from certmask_jax.defenses import clipped_bagnet, patchguard
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.feature_grid import sets_of_cells
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.defenses.reached_sets import windows_around
from certmask_jax.masks.threats import Threat

SHAPES = [(1, 2), (2, 1)]
THREATS = {  # image, shapes, region, field, stride
    "two shapes": ((3, 4), SHAPES, (), 1, 1),
    "a region": ((3, 5), [(2, 2)], ((0, 0, 2, 3),), 1, 1),
    "two regions, two shapes": ((3, 5), SHAPES, ((0, 0, 1, 3), (1, 1, 3, 4)), 1, 1),
    "fields that overlap": ((6, 8), [(1, 3), (2, 1)], ((2, 1, 6, 7),), 2, 2),
    "a region between the fields": ((4, 4), [(1, 1)], ((1, 1, 2, 2),), 1, 3),
}


def _threat(name):
    image, shapes, region, field, stride = THREATS[name]
    return Threat.of(image, *shapes, region=region), {"field": field, "stride": stride}


def _reached(name):
    image, shapes, region, field, stride = THREATS[name]
    return oracle.sets_of_cells(image, shapes, region or [(0, 0, *image)], field, stride)


def _evidence(count, cells, *, seed):
    """Much for the label, little for the others, so that some are certified and some are not."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count).astype(np.int32)
    shape = (count, *cells, 3)
    rate = random.uniform(0, 0.5, (count, 1, 1, 1))
    evidence = random.integers(1, 4, shape) * (random.random(shape) < rate)
    evidence[np.arange(count), ..., labels] = random.integers(0, 4, shape[:-1])
    return evidence.astype(np.float32), labels


@pytest.mark.parametrize("name", THREATS)
def test_sets_are_what_patches_reach_pixel_by_pixel(name):
    threat, model = _threat(name)
    sets = sets_of_cells(threat, **model)
    assert sorted(np.flatnonzero(one).tolist() for one in sets) == _reached(name)
    assert sets is sets_of_cells(threat, **model)


@pytest.mark.parametrize(("patch", "field", "stride"), [(1, 3, 1), (2, 2, 2), (3, 2, 3), (2, 1, 3)])
def test_one_shape_anywhere_reaches_the_windows_and_nothing_more(patch, field, stride):
    defense = ClippedBagNet(Threat.of((9, 11), patch), field=field, stride=stride)
    sets = sets_of_cells(defense.threat, field=field, stride=stride)
    windows = oracle.windows(defense.cells, defense.window)
    assert sorted(np.flatnonzero(one).tolist() for one in sets) == sorted(windows)
    assert defense.reached is None


def test_several_patches_are_no_set():
    with pytest.raises(ValueError, match="threat: expected one patch"):
        sets_of_cells(Threat.of(4, 1, patches=2), field=1, stride=1)


@pytest.mark.parametrize("wrap", [False, True])
def test_the_windows_around_a_set_are_those_that_miss_none_of_its_cells(wrap):
    random = np.random.default_rng(0)
    sets = random.random((60, 3, 4)) < 0.25
    windows = oracle.windows((3, 4), (2, 3), wrap)
    wanted = [[set(np.flatnonzero(one)) <= set(box) for box in windows] for one in sets]
    np.testing.assert_array_equal(windows_around(sets, (2, 3), wrap=wrap), wanted)


@pytest.mark.parametrize(
    ("name", "clip", "threshold"),
    [
        *((name, 3.0, 0.0) for name in THREATS),
        ("two shapes", np.inf, 0.0),
        ("two regions, two shapes", 3.0, 0.25),
        ("a region", np.inf, 0.25),
    ],
)
def test_robust_masking_against_every_attack(name, clip, threshold):
    threat, model = _threat(name)
    defense = PatchGuard(threat, **model, clip=clip, threshold=threshold)
    evidence, labels = _evidence(400, defense.cells, seed=len(name))
    results = defense.results(evidence, labels)
    alphabet = (0, 0.5, 1, 3) if clip == 3 else (0, 0.5, 1, 3, 40)
    truth = oracle.robust_masking_by_attack(
        evidence, labels, defense.window, alphabet, clip=clip, threshold=threshold,
        ties="largest", attacked_sets=_reached(name),
    )  # fmt: skip
    np.testing.assert_array_equal(
        results.answer, oracle.robust_masking(evidence, defense.window, clip, threshold)
    )
    proved = np.asarray(results.worst_case)
    assert 20 < truth.sum() < 380
    how = {"window": defense.window, "clip": clip, "threshold": threshold}
    every_window = np.asarray(patchguard.robust_masking_worst_case(evidence, labels, **how))
    assert not (every_window & ~proved).any()
    assert (proved & ~every_window).sum() > 5
    assert defense.exact == (threshold == 0)
    if threshold == 0:
        np.testing.assert_array_equal(proved, truth)
        strict = patchguard.robust_masking_worst_case(
            evidence, labels, **how, ties=None, reached=defense.reached
        )
        assert (proved & ~strict).any()
        assert not (strict & ~proved).any()
    else:
        assert not (proved & ~truth).any()


def test_by_hand_two_thin_shapes_are_less_than_the_square_that_holds_both():
    """Two rows of four cells, a 1 of the label 0 in each, nothing of the other, which wins ties.

    A 2x2 patch may empty two columns at an end, and the rule takes the other two: 0 against 0, and
    the label loses. A patch of 1x2 or 2x1 leaves six cells, of which a window takes at most four.
    2 or more are left, against 0, as all that was put in lies in one window too.
    """
    evidence = np.zeros((1, 2, 4, 2), np.float32)
    evidence[..., 0] = 1
    label = np.zeros(1, np.int32)
    for shapes, robust in ((SHAPES, True), ([(2, 2)], False)):
        defense = PatchGuard(Threat.of((2, 4), *shapes), field=1, stride=1)
        assert defense.window == (2, 2)
        assert bool(defense.results(evidence, label).worst_case[0]) == robust
    attacked = evidence.copy()
    attacked[0, :, :2] = 0
    assert patchguard.robust_masking_rule(attacked, window=2) == 1


def test_what_is_not_certified_is_fooled_and_what_is_certified_is_not():
    """The rule of the program, on real evidence, with hard numbers where a patch reaches."""
    threat, model = _threat("fields that overlap")
    defense = PatchGuard(threat, **model)
    evidence, labels = _evidence(80, defense.cells, seed=4)
    proved = np.asarray(defense.results(evidence, labels).worst_case)
    fooled = np.zeros(80, bool)
    random = np.random.default_rng(1)
    tease = np.float32([1e8, -1e8, 3e38, 1e-40, 0, 2, np.inf, -np.inf, np.nan])
    for cells, target in itertools.product(defense.reached, range(3)):
        attacked = evidence.copy()
        attacked[:, cells] = np.where(np.arange(3) == target, np.float32(1e8), np.float32(0))
        for tried in (attacked, evidence.copy()):
            if tried is not attacked:
                tried[:, cells] = random.choice(tease, (80, int(cells.sum()), 3))
            answers = patchguard.robust_masking_rule(tried, window=defense.window)
            fooled |= answers != labels
    np.testing.assert_array_equal(proved, ~fooled)
    assert 10 < proved.sum() < 70


@pytest.mark.parametrize("name", ["fields that overlap", "two regions, two shapes"])
def test_detection_against_every_attack(name):
    """On numbers without ties and far from the ends of the range, where the proof is exact."""
    threat, model = _threat(name)
    defense = PatchGuardDetection(threat, **model, tau=0.6)
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 200).astype(np.int32)
    evidence = random.normal(0, 2, (200, *defense.cells, 2)).astype(np.float32)
    evidence[np.arange(200), ..., labels] += random.uniform(0, 3, (200, 1, 1))
    truth = oracle.detection(evidence, defense.window, 0.6) == labels
    contents = list(itertools.product((-900, 0, 900), repeat=2))
    for cells in _reached(name):
        for content in itertools.product(contents, repeat=len(cells)):
            attacked = evidence.reshape(200, -1, 2).copy()
            attacked[:, cells] = content
            said = oracle.detection(attacked.reshape(evidence.shape), defense.window, 0.6)
            truth &= (said == labels) | (said == -2)
    proved = np.asarray(defense.results(evidence, labels).worst_case)
    np.testing.assert_array_equal(proved, truth)
    every_window = patchguard.detection_worst_case(evidence, labels, window=defense.window, tau=0.6)
    assert not (every_window & ~proved).any()
    assert (proved & ~every_window).sum() > 5
    assert 20 < proved.sum() < 180


@pytest.mark.parametrize("clip", [3.0, None])
def test_clipped_means_against_every_attack(clip):
    name = "two regions, two shapes"
    threat, model = _threat(name)
    defense = ClippedBagNet(threat, **model, clip=clip)
    evidence, labels = _evidence(300, defense.cells, seed=6)
    evidence = evidence if clip else 40 * evidence - 40
    ends = (0, 3) if clip else (-1e4, 1e4)
    truth = oracle.clipped_mean(evidence.astype(float), clip) == labels
    for cells, target in itertools.product(_reached(name), range(3)):
        attacked = evidence.reshape(300, -1, 3).astype(float)
        attacked[:, cells] = np.where(np.arange(3) == target, ends[1], ends[0])
        truth &= oracle.clipped_mean(attacked.reshape(evidence.shape), clip) == labels
    proved = np.asarray(defense.results(evidence, labels).worst_case)
    np.testing.assert_array_equal(proved, truth)
    every_window = clipped_bagnet.worst_case(evidence, labels, window=defense.window, clip=clip)
    assert not (every_window & ~proved).any()
    assert (proved & ~every_window).sum() > 5
    assert 20 < proved.sum() < 280
    assert defense.exact
