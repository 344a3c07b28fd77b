"""Verdicts at places: each by the attacks on that place alone, and all of them the worst case."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from certmask_jax.defenses import bagcert, clipped_bagnet, patchguard
from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.evidence_places import NoPlacesError
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.masks.threats import Threat

CLASSES = 3
IMAGES = 24
FIELD = {"field": 3, "stride": 1}
THREAT = Threat.of(7, 1)  # windows of 3 of 5 cells


@pytest.mark.parametrize(
    ("threat", "field", "stride"),
    [
        (Threat.of(20, 5), 5, 3),
        (Threat.of((13, 17), 4), 3, 2),
        (Threat.of(11, 2), 3, 4),  # the last pixels are seen by no cell
        (Threat.of(12, 5), 4, 1),
    ],
)
def test_a_place_counts_as_a_window_that_holds_all_it_reaches(threat, field, stride):
    defense = ClippedBagNet(threat, field=field, stride=stride)
    places, (high, wide) = defense.places, defense.window
    across = defense.cells[1] - wide + 1
    whole = True
    for spots, columns in zip(places.spots, places.columns, strict=True):
        height, width = spots.shape
        used, sizes = set(), np.zeros(len(columns), int)
        image_rows, image_columns = threat.image_size
        for top, left in itertools.product(
            range(image_rows - height + 1), range(image_columns - width + 1)
        ):
            i = int(np.searchsorted(spots.rows, top, side="right")) - 1
            j = int(np.searchsorted(spots.cols, left, side="right")) - 1
            spot = spots.spot[i, j]
            row, column = divmod(int(columns[spot]), across)
            reached = [
                [cell for cell in range(count) if cell * stride < at + side
                 and cell * stride + field > at]
                for count, at, side in zip(defense.cells, (top, left), (height, width), strict=True)
            ]  # fmt: skip
            assert set(reached[0]) <= set(range(row, row + high))
            assert set(reached[1]) <= set(range(column, column + wide))
            whole &= (len(reached[0]), len(reached[1])) == (high, wide)
            used.add(int(columns[spot]))
            sizes[spot] += 1
        assert used == set(range(defense.num_parts))
        assert sizes.tolist() == spots.sizes.tolist()
        for spot, (top, left) in enumerate(spots.example.tolist()):
            assert spots.spot[spots.rows == top, spots.cols == left] == [spot]
    assert places.exact == (whole and defense.exact)


def _evidence(seed, *, best, spread=1, cells=(5, 5)):
    rng = np.random.default_rng(seed)
    evidence = rng.normal(0.8, spread, (IMAGES, *cells, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, IMAGES).astype(np.int32)
    evidence[np.arange(IMAGES), :, :, labels] += rng.uniform(0, best, (IMAGES, 1, 1))
    evidence[:3] = np.rint(evidence[:3])  # ties
    return evidence, labels


def _outcomes(defense, evidence, labels, contents):
    """Whether the rule stays right with one of the contents, by class, in each window alone.

    ``contents``: of a wrong class what all cells of the window say.
    """
    windows = np.zeros((9, 5, 5), bool)
    for place, (row, column) in enumerate(itertools.product(range(3), range(3))):
        windows[place, row : row + 3, column : column + 3] = True
    return _outcomes_on(defense, evidence, labels, contents, windows)


def _outcomes_on(defense, evidence, labels, contents, sets):
    """The same on each of the sets of cells ``bool[S, H, W]``."""
    window = defense.window
    if isinstance(defense, PatchGuard):

        def rule(u):
            return patchguard.robust_masking_rule(
                u, window=window, clip=defense.clip, threshold=defense.threshold
            )  # fmt: skip
    elif isinstance(defense, PatchGuardDetection):

        def rule(u):
            return patchguard.detection_rule(u, window=window, tau=defense.tau)
    elif isinstance(defense, BagCert):

        def rule(u):
            return bagcert.rule(u, threshold=defense.threshold)
    else:

        def rule(u):
            return clipped_bagnet.rule(u, clip=defense.clip)

    withstood = np.ones((IMAGES, len(sets)), bool)
    for place, reached in enumerate(sets):
        for wrong in range(CLASSES):
            attacked = evidence.copy()
            attacked[:, reached] = contents(wrong)
            answers = rule(attacked)
            withstood[:, place] &= (answers == labels) | (answers == -2) | (labels == wrong)
    return withstood, rule(evidence) == labels


# At some places of the second a patch reaches no cell; of the third some are forbidden.
SEVERAL = [
    (Threat.of(8, (1, 2), (2, 1)), 2, 1),
    (Threat.of(20, 1, region=(0, 0, 20, 9)), 3, 4),
    (Threat.of(8, (1, 3), (2, 1), region=(1, 0, 6, 7)), 2, 1),
]


def _reached(defense, spots, columns, sets):
    """Each allowed location's number of a set, and the cells that it does reach: lists."""
    height, width = spots.shape
    image_rows, image_columns = defense.threat.image_size
    allowed = defense.threat.allowed(spots.shape)
    for top, left in itertools.product(
        range(image_rows - height + 1), range(image_columns - width + 1)
    ):
        i = int(np.searchsorted(spots.rows, top, side="right")) - 1
        j = int(np.searchsorted(spots.cols, left, side="right")) - 1
        spot = int(spots.spot[i, j])
        assert (spot >= 0) == allowed[top, left]
        if spot < 0:
            continue
        cells = np.zeros(sets.shape[1:], bool)
        for row, column in itertools.product(*map(range, cells.shape)):
            at = row * defense.stride, column * defense.stride
            cells[row, column] = (
                at[0] < top + height and at[0] + defense.field > top
                and at[1] < left + width and at[1] + defense.field > left
            )  # fmt: skip
        yield spot, sets[columns[spot]], cells


@pytest.mark.parametrize(("threat", "field", "stride"), SEVERAL)
def test_places_of_several_shapes_or_in_a_region_count_as_the_cells_they_reach(
    threat, field, stride
):
    defense = ClippedBagNet(threat, field=field, stride=stride)
    places, sets = defense._places()
    assert sets.sum(axis=(1, 2)).tolist() == places.reached.tolist()
    assert places.exact
    used = set()
    for spots, columns in zip(places.spots, places.columns, strict=True):
        sizes = np.zeros(len(columns), int)
        for spot, said, cells in _reached(defense, spots, columns, sets):
            np.testing.assert_array_equal(said, cells)
            sizes[spot] += 1
            used.add(int(columns[spot]))
        assert sizes.tolist() == spots.sizes.tolist()
        for spot, (top, left) in enumerate(spots.example.tolist()):
            i = int(np.searchsorted(spots.rows, top, side="right")) - 1
            j = int(np.searchsorted(spots.cols, left, side="right")) - 1
            assert spots.spot[i, j] == spot
    assert used == set(range(len(sets)))


@pytest.mark.parametrize(("threat", "field", "stride"), SEVERAL)
@pytest.mark.parametrize(
    ("kind", "more", "best"),
    [
        (PatchGuard, {}, 6),
        (PatchGuard, {"clip": 4, "threshold": 0.25}, 9),
        (ClippedBagNet, {"clip": 2}, 5),
        (BagCert, {"threshold": 1}, 5),
        (PatchGuardDetection, {"tau": 0.5}, 2),
        (PatchGuardDetection, {"tau": 0.36}, 0.4),  # some windows alert without an attack
    ],
)
def test_sets_of_cells_hold_iff_the_worst_attack_on_them_fails(
    threat, field, stride, kind, more, best
):
    defense = kind(threat, field=field, stride=stride, **more)
    evidence, labels = _evidence(11, best=best, cells=defense.cells)
    at, sets = defense.at_places(evidence, labels), defense._places()[1]
    holds = np.asarray(at.holds)
    assert holds.shape == (IMAGES, len(sets))
    robust = np.asarray(defense.results(evidence, labels).worst_case)
    np.testing.assert_array_equal(holds.all(axis=1), robust)
    assert 0 < holds.all(axis=1).sum() < holds.any(axis=1).sum()
    low = 0 if isinstance(defense, PatchGuard) else -1000
    outcomes, right = _outcomes_on(
        defense, evidence, labels, lambda wrong: _only(wrong, 1000, low), sets
    )
    assert not (holds & ~(outcomes & right[:, None])).any()
    assert (at.leads is not None) == defense.has_leads == (defense.kept_places[1] > 0)
    if defense.exact:
        np.testing.assert_array_equal(holds, outcomes & right[:, None])
        np.testing.assert_array_equal(np.asarray(at.leads, np.float16) > 0, holds)


def _only(wrong, high, low):
    return np.where(np.arange(CLASSES) == wrong, high, low)


@pytest.mark.parametrize(
    ("defense", "best", "spread"),
    [
        (PatchGuard(THREAT, **FIELD), 9, 1),
        (PatchGuard(THREAT, **FIELD, clip=2), 9, 1),
        (ClippedBagNet(THREAT, **FIELD, clip=2), 7, 1),
        (ClippedBagNet(THREAT, **FIELD), 80, 20),
        (BagCert(THREAT, **FIELD, threshold=1.5), 7, 1),
        (PatchGuardDetection(THREAT, **FIELD, tau=0.5), 2, 1),
    ],
    ids=lambda one: getattr(one, "name", None),
)
def test_a_window_holds_iff_the_worst_attack_on_it_fails(defense, best, spread):
    evidence, labels = _evidence(5, best=best, spread=spread)
    at = defense.at_places(evidence, labels)
    low = 0 if isinstance(defense, PatchGuard) else -1000
    outcomes, right = _outcomes(defense, evidence, labels, lambda wrong: _only(wrong, 1000, low))
    expected = outcomes & right[:, None]
    holds = np.asarray(at.holds)
    np.testing.assert_array_equal(holds, expected)
    robust = defense.results(evidence, labels).worst_case
    np.testing.assert_array_equal(holds.all(axis=1), robust)
    assert 0 < holds.all(axis=1).sum() < (holds.any(axis=1)).sum()  # some hold in part
    if isinstance(defense, PatchGuardDetection):
        assert at.leads is None
    else:
        np.testing.assert_array_equal(np.asarray(at.leads, np.float16) > 0, holds)


def test_leads_are_counted_by_hand():
    """One row of three cells, windows of one; what is left without a cell, and what comes to it."""
    threat = Threat.of((1, 3), 1)
    labels = np.array([0], np.int32)
    evidence = np.array([[[[4, 1], [2, 0], [1, 1]]]], np.float32)
    clipped = ClippedBagNet(threat, field=1, stride=1, clip=4)
    at = clipped.at_places(evidence, labels)
    # Without each cell 3, 5, 6 against 1, 2, 1; four more for the other. Class 0 wins a tie.
    np.testing.assert_allclose(at.leads[0] * 3, [3 - 5, 5 - 6, 6 - 5], atol=1e-3)
    assert at.holds.tolist() == [[False, False, True]]
    guard = PatchGuard(threat, field=1, stride=1)
    # The label loses the largest that is left too: 1, 1, 2. The other keeps 1, 2, 1; ties go to it.
    at = guard.at_places(evidence, labels)
    np.testing.assert_allclose(at.leads[0] * 3, [0, -1, 1], atol=1e-3)
    assert at.holds.tolist() == [[False, False, True]]


@pytest.mark.parametrize("reached", [None, np.eye(3, dtype=bool)[:, None]])
def test_a_tie_goes_to_the_smaller_class_at_every_place(reached):
    """Without each cell 8 are left of the label, and 7, 7 and 8 may be of the other."""
    label_first = np.array([[[[4, 2], [4, 2], [4, 1]]]], np.float32)
    how = {"window": (1, 1), "clip": 4, "reached": reached}
    at = clipped_bagnet.at_places(label_first, np.array([0], np.int32), **how)
    assert at.holds.tolist() == [[True, True, True]]
    at = clipped_bagnet.at_places(label_first[..., ::-1], np.array([1], np.int32), **how)
    assert at.holds.tolist() == [[True, True, False]]


def test_above_a_threshold_all_windows_hold_iff_the_worst_case_does():
    defense = PatchGuard(THREAT, **FIELD, clip=4, threshold=0.25)
    evidence, labels = _evidence(7, best=9)
    at = defense.at_places(evidence, labels)
    holds = np.asarray(at.holds)
    np.testing.assert_array_equal(holds.all(axis=1), defense.results(evidence, labels).worst_case)
    assert 0 < holds.all(axis=1).sum() < holds.any(axis=1).sum()
    np.testing.assert_array_equal(np.asarray(at.leads, np.float16) > 0, holds)
    for high in (0.5, 2, 1000):
        outcomes, right = _outcomes(
            defense, evidence, labels, lambda wrong, high=high: _only(wrong, high, 0)
        )
        assert not (holds & ~(outcomes & right[:, None])).any()


BANDS = [
    DerandomizedSmoothing(Threat.of(6, 1), band=2, threshold=0.4),
    DerandomizedSmoothing(Threat.of(6, (1, 2), (2, 1)), band=2, threshold=None, ties="largest"),
    SmoothedViT(Threat.of(6, 1), band=2, stride=2, wrap=False),
    SmoothedViT(Threat.of(6, 1), band=1, axis="both"),
    SmoothedViT(Threat.of(6, 2, region=(0, 0, 4, 3)), band=3, stride=3, axis="blocks"),
    MaskDS(Threat.of(6, 1), band=2),
    MaskDS(Threat.of(6, 1), band=1, features="votes", stride=2, wrap=False),
]


def test_above_a_threshold_bands_hold_iff_the_worst_case_does():
    defense = MaskDS(Threat.of(6, 1), band=2, threshold=0.2)
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 1, (IMAGES, 6, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, IMAGES).astype(np.int32)
    logits[np.arange(IMAGES), :, labels] += rng.uniform(0, 6, (IMAGES, 1))
    at = defense.at_places(logits, labels)
    holds = np.asarray(at.holds)
    np.testing.assert_array_equal(holds.all(axis=1), defense.results(logits, labels).worst_case)
    assert 0 < holds.all(axis=1).sum() < holds.any(axis=1).sum()
    assert at.leads is None
    assert defense.kept_places == (holds.shape[1], 0)
    assert not defense.places.exact


@pytest.mark.parametrize("defense", BANDS, ids=str)
def test_a_place_holds_iff_no_votes_of_its_bands_change_the_answer(defense):
    rng = np.random.default_rng(3)
    count = len(defense.masks)
    logits = rng.normal(0, 1, (IMAGES, count, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, IMAGES).astype(np.int32)
    logits[np.arange(IMAGES), :, labels] += rng.uniform(0, 4, (IMAGES, 1))
    places = defense.places
    at = defense.at_places(logits, labels)
    holds = np.asarray(at.holds)
    np.testing.assert_array_equal(holds.all(axis=1), defense.results(logits, labels).worst_case)
    assert 0 < holds.all(axis=1).sum() < holds.any(axis=1).sum()
    np.testing.assert_array_equal(np.asarray(at.leads, np.float16) > 0, holds)
    seen = np.ones((count, *defense.threat.image_size), bool)
    for band, boxes in enumerate(defense.masks.boxes.tolist()):
        for top, left, bottom, right in boxes:
            seen[band, top:bottom, left:right] = False
    where, attacked = [], []
    for spots, columns in zip(places.spots, places.columns, strict=True):
        height, width = spots.shape
        for spot, (top, left) in enumerate(spots.example.tolist()):
            met = seen[:, top : top + height, left : left + width].any(axis=(1, 2))
            assert places.reached[columns[spot]] == met.sum()
            where.append(columns[spot])
            for wrong in range(CLASSES):
                attacked.append(logits.copy())
                attacked[-1][:, met] = _only(wrong, 50, -50)
    every = np.concatenate([logits, *attacked])
    answers = defense.results(every, np.zeros(len(every), np.int32)).answer
    plain, *others = np.asarray(answers).reshape(-1, IMAGES)
    others = np.array(others).reshape(len(where), CLASSES, IMAGES)
    wrong = np.arange(CLASSES)[None, :, None]
    stays = ((others == labels) | (labels == wrong)).all(axis=1)
    np.testing.assert_array_equal(holds[:, where], (stays & (plain == labels)).T)


def test_votes_that_are_left_over_are_counted_by_hand():
    votes = np.zeros((1, 5, 2), bool)
    votes[0, :, 0] = True
    met = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
    for label, ties, leads in ((0, "smallest", [4, 2, 0]), (0, "largest", [3, 1, -1])):
        at = smoothing.by_place(votes, np.array([label], np.int32), met, ties=ties)
        assert at.leads.tolist() == [leads]
        assert at.holds.tolist() == [[lead > 0 for lead in leads]]


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        (SmoothedViT(Threat.of(8, 1, patches=2), band=1), "here are several at once"),
    ],
)
def test_what_has_no_places_says_why_and_keeps_none(defense, words):
    with pytest.raises(NoPlacesError, match=words):
        defense.places  # noqa: B018
    assert defense.kept_places == (0, 0)


def test_no_more_places_are_kept_than_a_run_has_room_for():
    assert ClippedBagNet(THREAT, **FIELD).kept_places == (9, 9)
    kept = [ClippedBagNet(Threat.of((64, side), 1), field=1, stride=1).kept_places
            for side in (64, 65)]  # fmt: skip
    assert kept == [(4096, 4096), (0, 0)]
