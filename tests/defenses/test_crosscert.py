"""CrossCert and ViP's detector: golden results, exhaustion on tiny cases, the counterexample."""

from __future__ import annotations

import itertools
import json

import jax
import numpy as np
import pytest

from certmask_jax import mask_sets
from certmask_jax.defenses import crosscert, vip_detection, vote_gaps
from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.defenses.defense import ALERT
from certmask_jax.masks.bands import column_bands
from certmask_jax.masks.mask_set import MaskSet


def _by_column(width, patch, band):
    """``bool[locations, bands]``, by the definition."""
    seen = (np.arange(width)[:, None] + np.arange(band)) % width
    return np.array(
        [np.isin(seen, np.arange(at, at + patch)).any(axis=1) for at in range(width - patch + 1)]
    )


def test_golden(shared):
    golden = np.load(shared / "golden" / "small_fields" / "crosscert.npz")
    labels, tables = golden["label"].astype(int), golden["two_mask_labels"].astype(int)
    votes = smoothing.label_votes(golden["band_labels"], 8)
    image, patch, band = (int(golden[name]) for name in ("image", "patch", "ablation"))
    masks, bands = MaskSet(golden["boxes"], image, patch), column_bands(image, patch, band=band)
    for revised, suffix in ((False, ""), (True, "_modified")):
        label, case = crosscert.masking(tables, revised=revised)
        np.testing.assert_array_equal(label, golden[f"pc_label{suffix}"])
        np.testing.assert_array_equal(case, golden[f"pc_case{suffix}"])
    drs = smoothing.rule(votes, ties="largest")
    np.testing.assert_array_equal(drs, golden["drs_label"])
    answers = crosscert.rule(tables, votes)
    np.testing.assert_array_equal(answers == ALERT, golden["warn_case3"])
    silent = crosscert.rule(tables, votes, case_3_alerts=False)
    np.testing.assert_array_equal(silent, np.where(label == drs, label, ALERT))

    reach = vote_gaps.published_reach(patch, band)
    gap = vote_gaps.smoothed_vit_gap(smoothing.vote_counts(votes), drs, reach=reach)
    np.testing.assert_array_equal(gap, golden["drs_certified"])
    correct = (tables == labels[:, None, None]).all(axis=(1, 2))
    np.testing.assert_array_equal(correct, golden["pc_two_mask_correct"])
    np.testing.assert_array_equal(correct & gap & (label == drs), golden["unwavering"])
    np.testing.assert_array_equal(correct | (gap & (label == drs)), golden["static_certified"])
    located = crosscert.location_certified(
        tables, votes, label, masks, _by_column(image, patch, band)
    )
    np.testing.assert_array_equal(located, golden["location_certified"])

    joint = crosscert.joint_groups(masks, bands)
    exact = crosscert.worst_case(tables, votes, labels, joint)
    static = crosscert.static_certified(tables, votes, labels, bands.affected())
    unwavering = crosscert.unwavering_certified(tables, votes, labels, bands.affected())
    assert (~unwavering | static).all()
    assert (~static | exact).all()
    assert (~(located & (answers == labels)) | exact).all()
    assert (unwavering | ~golden["unwavering"].astype(bool)).all()
    assert (static | (case == 3) | ~golden["static_certified"].astype(bool)).all()
    assert exact.sum() > static.sum() > unwavering.sum() > 10


def _small():
    masks = mask_sets.budgeted_grid((1, 4), (1, 1), masks_per_axis=(1, 2))  # 2 masks of 2 columns
    return masks, column_bands((1, 4), (1, 1), band=1)


def test_the_worst_case_by_exhaustion_over_everything_an_attacker_can_say():
    masks, bands = _small()
    joint = crosscert.joint_groups(masks, bands)
    rng = np.random.default_rng(0)
    number, classes = 250, 3
    upper = np.where(rng.random((number, 3)) < 0.6, 0, rng.integers(0, classes, (number, 3)))
    tables = np.stack([upper[:, [0, 1]], upper[:, [1, 2]]], axis=1)
    said = np.where(rng.random((number, 4)) < 0.75, 0, rng.integers(0, classes, (number, 4)))
    labels = np.zeros(number, int)
    exact = crosscert.worst_case(tables, smoothing.label_votes(said, classes), labels, joint)
    robust = crosscert.rule(tables, smoothing.label_votes(said, classes)) == 0
    hides = masks.hides()[:, 0]
    for column in range(4):
        # Both masks together hide every column here; of each alone and the bands, what is free.
        free = [i for i in range(2) if not hides[i, column]]
        choices = itertools.product(range(classes), repeat=len(free) + 1)
        for choice in choices:
            table, attacked = tables.copy(), said.copy()
            for mask, label in zip(free, choice, strict=False):
                table[:, mask, mask] = label
            attacked[:, column] = choice[-1]
            answers = crosscert.rule(table, smoothing.label_votes(attacked, classes))
            robust &= (answers == 0) | (answers == ALERT)
    np.testing.assert_array_equal(exact, robust)
    assert 20 < exact.sum() < number - 20


def test_three_masks_by_exhaustion():
    """Pairs that do not hide the patch are free as well; random choices and the uniform ones."""
    masks = mask_sets.budgeted_grid((1, 6), (1, 1), masks_per_axis=(1, 3))
    bands = column_bands((1, 6), (1, 1), band=1)
    joint = crosscert.joint_groups(masks, bands)
    assert joint.hidden.shape[1:] == (3, 3)
    rng = np.random.default_rng(1)
    number = 400
    upper = np.where(rng.random((number, 6)) < 0.55, 0, rng.integers(0, 2, (number, 6)) + 1)
    place = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    said = np.where(rng.random((number, 6)) < 0.6, 0, rng.integers(0, 3, (number, 6)))
    labels = np.zeros(number, int)
    votes = smoothing.label_votes(said, 3)
    exact = crosscert.worst_case(upper[:, place], votes, labels, joint)
    robust = crosscert.rule(upper[:, place], votes) == 0
    hides = masks.hides()[:, 0]
    for column in range(6):
        free = [n for n, (i, j) in enumerate(pairs) if not (hides[i] | hides[j])[column]]
        for choice in itertools.product(range(3), repeat=len(free)):
            attacked = upper.copy()
            attacked[:, free] = choice
            for label in range(1, 3):
                bands_say = said.copy()
                bands_say[:, column] = label
                answers = crosscert.rule(attacked[:, place], smoothing.label_votes(bands_say, 3))
                robust &= (answers == 0) | (answers == ALERT)
    np.testing.assert_array_equal(exact, robust)
    assert 20 < exact.sum() < number - 20


def test_counterexample_case_3(shared):
    path = shared / "golden" / "small_fields" / "counterexamples.json"
    case = next(c for c in json.loads(path.read_text()) if c["name"] == "crosscert_case3")
    masks = mask_sets.budgeted_grid(case["image"], case["patch"], masks_per_axis=2)
    bands = column_bands(case["image"], case["patch"], band=case["band"])
    clean, attacked = (np.array([case[n]]) for n in ("pc_table", "attacked_pc_table"))
    votes = smoothing.label_votes(np.array([case["drs"]]), 3)
    after = smoothing.label_votes(np.array([case["drs_after"]]), 3)
    label = np.array([1])
    by_column = _by_column(6, 2, 2)
    assert crosscert.location_certified(clean, votes, label, masks, by_column).all()
    assert np.flatnonzero(by_column[4]).tolist() == case["affected_bands"]
    assert masks.hides()[:, 1, 4].tolist() == [False, True, False, False]
    for revised in (False, True):
        labels, cases = crosscert.masking(attacked, revised=revised)
        assert [int(labels[0]), int(cases[0])] == case["pc_after"]
        published = crosscert.rule(attacked, after, revised=revised, case_3_alerts=False)
        assert published.tolist() == [2]
        assert crosscert.rule(attacked, after, revised=revised).tolist() == [ALERT]
    joint = crosscert.joint_groups(masks, bands)
    robust = crosscert.worst_case(clean, votes, label, joint)
    assert robust.all() == (crosscert.rule(clean, votes)[0] == 1)


def test_traced_the_same_and_bad_input_is_named():
    masks, bands = _small()
    joint = crosscert.joint_groups(masks, bands)
    tables = np.array([[[0, 0], [0, 0]], [[0, 1], [1, 1]]])
    votes = smoothing.label_votes(np.zeros((2, 4), int), 2)
    labels = np.zeros(2, int)
    expected = crosscert.worst_case(tables, votes, labels, joint)
    assert expected.tolist() == [True, False]
    traced = jax.jit(lambda t, v, y: crosscert.worst_case(t, v, y, joint))
    np.testing.assert_array_equal(traced(tables, votes, labels), expected)
    with pytest.raises(ValueError, match="tables, votes: expected"):
        crosscert.worst_case(tables[:, :1], votes, labels, joint)
    with pytest.raises(ValueError, match="labels: expected classes"):
        crosscert.worst_case(tables, votes, labels + 2, joint)
    with pytest.raises(ValueError, match="bands: expected bands for"):
        crosscert.joint_groups(masks, column_bands((1, 4), (1, 2), band=1))
    met = bands.affected()
    for certified in (
        lambda t, v, y: crosscert.static_certified(t, v, y, met),
        lambda t, v, y: crosscert.unwavering_certified(t, v, y, met),
        lambda t, v, y: crosscert.location_certified(t, v, y, masks, met),
    ):
        certified(tables, votes, labels)
        for wrong, why in (
            ((tables, votes, [0]), r"labels: expected one integer for each image, int\[2\]"),
            ((tables, votes, labels + 0.5), "labels: expected one integer for each image"),
            ((tables, votes, labels - 1), "labels: expected classes"),
            ((tables[:, :1], votes, labels), r"tables: expected int\[T, N, N\]"),
            ((tables + 0.5, votes, labels), r"tables: expected int\[T, N, N\]"),
            ((tables, votes[:1], labels), "votes: expected those of 2 images"),
        ):
            with pytest.raises(ValueError, match=why):
                certified(*wrong)
    with pytest.raises(ValueError, match="affected: expected bool"):
        crosscert.location_certified(tables, votes, labels, masks, met[:, :1])


def test_a_place_that_nothing_hides_is_lost():
    """Of groups by hand: mask sets hide every place, so theirs have none of these."""
    tables, labels = np.zeros((1, 2, 2), int), np.zeros(1, int)
    votes = smoothing.label_votes(np.zeros((1, 4), int), 2)
    hidden, met = np.zeros((1, 2, 2), bool), np.array([[True, True, False, False]])
    nowhere = crosscert.JointGroups(hidden, met)
    assert crosscert.worst_case(tables, votes, labels, nowhere).tolist() == [False]
    few = crosscert.JointGroups(hidden, np.array([[True, False, False, False]]))
    assert crosscert.worst_case(tables, votes, labels, few).tolist() == [True]  # bands alert
    by_second = crosscert.JointGroups(~hidden & [[[False, True], [True, True]]], met)
    assert crosscert.worst_case(tables, votes, labels, by_second).tolist() == [True]
    masked = np.zeros((1, 3), int)
    for hides, expected in (([True, True, True], False), ([True, True, False], True)):
        met = np.array([hides])
        assert vip_detection.never_silently_wrong(masked, labels, met).tolist() == [expected]


def test_vip_detection_refuses_what_would_prove_nothing():
    masked, whole, labels = np.zeros((2, 3), int), np.zeros(2, int), np.zeros(2, int)
    met = np.ones((1, 3), bool)
    for wrong in (labels[:1], labels + 0.5, labels - 1, [[0, 0]]):
        with pytest.raises(ValueError, match="labels: expected"):
            vip_detection.detection_worst_case(masked, whole, wrong)
        with pytest.raises(ValueError, match="labels: expected"):
            vip_detection.never_silently_wrong(masked, wrong, met)
    for affected in (met[:0], met[0], met[:, :2], met.astype(int)):
        with pytest.raises(ValueError, match="affected: expected bool"):
            vip_detection.never_silently_wrong(masked, labels, affected)
    for given in ((masked, whole[:1]), (masked + 0.5, whole), (masked, whole + 0.5)):
        with pytest.raises(ValueError, match="masked, unmasked: expected"):
            vip_detection.detection_rule(*given)


def test_vip_detection_by_exhaustion():
    """Four masks, of which two hide every patch, and they may say different things."""
    boxes = np.array([[0, 0, 1, 3], [0, 0, 1, 4], [0, 2, 1, 6], [0, 3, 1, 6]])
    masks = MaskSet(boxes, (1, 6), (1, 2), promise=2)
    hides = masks.hides()[:, 0]
    every = np.array(list(itertools.product(range(3), repeat=5)))
    said, whole, labels = every[:, :4], every[:, 4], np.zeros(len(every), int)
    never = np.ones(len(every), bool)
    for place in range(hides.shape[1]):
        for choice in itertools.product(range(3), repeat=3):  # two masks and the whole image
            attacked = said.copy()
            attacked[:, ~hides[:, place]] = choice[:2]
            answers = vip_detection.detection_rule(attacked, np.full(len(every), choice[2]))
            never &= (answers == 0) | (answers == ALERT)
    proved = vip_detection.never_silently_wrong(said, labels, masks.affected())
    np.testing.assert_array_equal(proved, never)
    clean = vip_detection.detection_rule(said, whole) == 0
    exact = vip_detection.detection_worst_case(said, whole, labels)
    np.testing.assert_array_equal(exact, clean & never)
    assert never.sum() > 3 * 16
    assert exact.sum() == 1
