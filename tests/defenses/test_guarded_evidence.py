"""Certificates within a margin guard: no logits that another device may give change them.

Perturbations of evidence, the worst of which are tried on purpose, and every corner of tiny cases;
attacks on what is perturbed by rules in plain NumPy.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracle_small_fields as oracle
import pytest
from many_cases import cases

from certmask_jax.defenses import clipped_bagnet, patchguard
from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.evidence_defense import EvidenceDefense, check_guarded
from certmask_jax.defenses.guarded_evidence import checked_guard, softmax_within, votes_against
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.defenses.quantised_evidence import Grid, quantised, quantised_within
from certmask_jax.masks.threats import Threat

ONE = Threat.of((4, 5), 2)
SHAPES = Threat.of((4, 5), (1, 2), (2, 1))
BANDS = Threat.of((1, 7), (1, 2))
CELLS = {"field": 1, "stride": 1}
GUARD = 0.25
INSIDE = GUARD / 2 * (1 - 2.0**-10)  # float32 adds it to evidence without leaving the guard

CASES = {
    "patchguard": PatchGuard(ONE, **CELLS),
    "patchguard, sets": PatchGuard(SHAPES, **CELLS, clip=3),
    "patchguard, T": PatchGuard(ONE, **CELLS, threshold=0.5),
    "patchguard, T, sets": PatchGuard(SHAPES, **CELLS, threshold=0.3125),
    "patchguard_pp": PatchGuardDetection(ONE, **CELLS, tau=0.4),
    "patchguard_pp, sets": PatchGuardDetection(SHAPES, **CELLS, tau=0.4),
    "clipped_bagnet, tanh": ClippedBagNet(ONE, **CELLS),
    "clipped_bagnet, sets": ClippedBagNet(SHAPES, **CELLS, clip=3),
    "bagcert": BagCert(ONE, **CELLS, threshold=0.5),
    "bagcert, sets": BagCert(SHAPES, **CELLS),
    "derandomized_smoothing": DerandomizedSmoothing(BANDS, band=1, threshold=0.3),
    "derandomized_smoothing, top": DerandomizedSmoothing(
        BANDS, band=1, threshold=None, ties="largest"
    ),
    "smoothed_vit": SmoothedViT(BANDS, band=1),
    "mask_ds": MaskDS(BANDS, band=1),
    "mask_ds, T": MaskDS(BANDS, band=1, threshold=0.5),
    "mask_ds, votes": MaskDS(BANDS, band=1, features="votes", above=0.4),
}
EXACT = ("patchguard", "patchguard, sets", "clipped_bagnet, sets", "bagcert", "bagcert, sets",
         "smoothed_vit", "derandomized_smoothing, top")  # fmt: skip


LEADS = {  # of the label's logits, where not from 0 to 4
    "clipped_bagnet, tanh": (13, 17),
    "patchguard_pp": (0, 2),
    "patchguard_pp, sets": (0, 2),
}


def _evidence(name, count):
    """Logits of 3 classes: more for the label, by so much that half is certified."""
    defense, random = CASES[name], np.random.default_rng(len(name))
    labels = random.integers(0, 3, count).astype(np.int32)
    parts = (defense.num_parts,) if defense.of_cells is None else defense.cells
    logits = random.normal(0, 1, (count, *parts, 3))
    leads = random.uniform(*LEADS.get(name, (0, 4)), (count,) + (1,) * len(parts))
    logits[np.arange(count), ..., labels] += leads
    return logits.astype(np.float32), labels


def _moves(shape, labels, *, seed):
    """-1 to 1 for all numbers: the worst for each class, some corners, and some that are inside."""
    random = np.random.default_rng(seed)
    classes = np.arange(shape[-1])
    true = labels.reshape((-1,) + (1,) * (len(shape) - 1))
    yield np.broadcast_to(np.where(classes == true, -1.0, 1.0), shape)
    for other in classes:
        yield np.broadcast_to(np.where(classes == other, 1.0, -1.0), shape)
    for _ in range(4):
        one = random.choice([-1.0, 1.0], shape)
        yield one
        yield np.where(classes == true, -1.0, one)
        yield one * random.random(shape)
        yield one * (random.random(shape) < 0.1)


@pytest.mark.parametrize("name", CASES)
def test_what_is_guarded_stays_answered_and_certified_within_the_guard(name):
    defense = CASES[name]
    count = cases(300)
    logits, labels = _evidence(name, count)

    @jax.jit  # one program, asked often
    def outcome(u):
        return *defense.results(u, labels)[:2], defense.guarded(u, labels, margin_guard=GUARD)

    plain, guarded = map(np.asarray, outcome(logits)[1:])
    assert not (guarded & ~plain).any()
    assert 15 < guarded.sum() < plain.sum() < count - 15
    lost, further = np.zeros(count, bool), np.zeros(count, bool)
    for move in _moves(logits.shape, labels, seed=1):
        moved = (logits + INSIDE * move).astype(np.float32)
        answer, proved, _ = map(np.asarray, outcome(moved))
        assert (answer[guarded] == labels[guarded]).all()
        assert proved[guarded].all()
        lost |= plain & ~proved
        if name in EXACT:
            moved = (logits + 1.01 * GUARD / 2 * move).astype(np.float32)
            further |= ~np.asarray(outcome(moved)[1])
    assert lost.sum() > 5  # without a guard other logits do take certificates
    if name in EXACT:  # and a guard takes no other ones
        assert further[plain & ~guarded].all()


def _rule_on_votes(votes):
    return votes.sum(axis=1).argmax(axis=1)


def _tiny_answers(name, logits):
    """What rules in plain NumPy answer of three cells or bands, which a patch reaches one of."""
    if name == "smoothed_vit":
        return _rule_on_votes(logits == logits.max(axis=2, keepdims=True))
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    trust = powers / powers.sum(axis=2, keepdims=True)
    if name == "derandomized_smoothing":
        return _rule_on_votes(trust >= 0.3)
    if name == "mask_ds":
        return oracle.robust_masking(trust[:, :, None], (1, 1), 1, 0, True)
    on_map = logits[:, :, None]
    if name == "clipped_bagnet":
        return oracle.clipped_mean(on_map, 3)
    if name == "bagcert":
        return _rule_on_votes(logits > 1)
    return oracle.robust_masking(on_map, (1, 1), 3, 0.5 if name == "patchguard, T" else 0)


TINY = Threat.of((3, 1), 1)
TINY_CASES = {
    "patchguard": PatchGuard(TINY, **CELLS, clip=3),
    "patchguard, T": PatchGuard(TINY, **CELLS, clip=3, threshold=0.5),
    "clipped_bagnet": ClippedBagNet(TINY, **CELLS, clip=3),
    "bagcert": BagCert(TINY, **CELLS, threshold=1),
    "smoothed_vit": SmoothedViT(TINY, band=1, axis="rows"),
    "derandomized_smoothing": DerandomizedSmoothing(TINY, band=1, threshold=0.3, axis="rows"),
    "mask_ds": MaskDS(TINY, band=1, axis="rows"),
}


@pytest.mark.parametrize("name", TINY_CASES)
def test_every_corner_of_tiny_cases_under_attack(name):
    """All 64 corners of logits of 3 parts and 2 classes, and what a patch puts into each part."""
    defense, count = TINY_CASES[name], cases(150)
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, count).astype(np.int32)
    logits = random.integers(0, 5, (count, 3, 2)) / 2 + random.uniform(-0.1, 0.1, (count, 3, 2))
    logits[np.arange(count), :, labels] += random.uniform(0, 3, (count, 1))
    logits = logits.astype(np.float32)
    given = jnp.asarray(logits if defense.of_cells is None else logits[:, :, None])

    @jax.jit
    def outcome(u):
        within = defense.guarded(u, labels, margin_guard=0.5)
        return defense.results(u, labels).worst_case, within

    plain, guarded = map(np.asarray, outcome(given))
    stays = np.ones(count, bool)
    for corner in itertools.product((-1, 1), repeat=6):
        moved = (logits + 0.249 * np.reshape(corner, (3, 2))).astype(np.float64)
        for part, content in itertools.product(range(3), itertools.product((-9, 1, 9), repeat=2)):
            attacked = moved.copy()
            attacked[:, part] = content
            stays &= _tiny_answers(name, attacked) == labels
    assert not (guarded & ~stays).any()
    assert (plain & ~stays).any()
    assert 5 < guarded.sum() < plain.sum()


@pytest.mark.parametrize("error", [1e-9, 0.01, 0.3, 1.0, 77.7])
def test_integers_within_an_error_contain_those_of_all_numbers_that_are_nearer(error):
    grid = Grid(bits=1, low=-2000, high=2000)
    random = np.random.default_rng(0)
    halves = random.integers(-4096, 4096, 400) / 8
    numbers = np.concatenate([halves, random.normal(0, 90, 400), [1e8, -1e8, 0.25, 1e-42]])
    for kind in (np.float32, np.float64):
        given = numbers.astype(kind)
        least, most = quantised_within(given, grid, error)
        inside = (Fraction(error) * Fraction(999, 1000), Fraction(error))
        for number, low, high in zip(given.tolist(), least.tolist(), most.tolist(), strict=True):
            ends = [Fraction(number) + side * one for side in (-1, 1) for one in inside]
            at = [min(max(round(2 * end), grid.low), grid.high) for end in ends]
            assert low <= at[0]
            assert at[2] <= high
            slack = Fraction(2) ** -18 * (1 + Fraction(error))
            around = [round(2 * (ends[1] - slack)), round(2 * (ends[3] + slack))]
            assert low >= min(max(around[0], grid.low), grid.high)
            assert high <= min(max(around[1], grid.low), grid.high)
        traced = jax.jit(lambda u: quantised_within(u, grid, error))(
            jnp.asarray(given, jnp.float32)
        )
        np.testing.assert_array_equal(traced, quantised_within(given.astype("f4"), grid, error))


def test_no_error_and_an_error_beyond_all_numbers():
    grid = Grid(bits=2, low=-7, high=9)
    given = np.array([0.125, 0.375, -3, 1e30], np.float32)
    for one in quantised_within(given, grid, 0.0):
        np.testing.assert_array_equal(one, quantised(given, grid))
    least, most = quantised_within(given, grid, 1e30)
    assert (least == -7).all()
    assert (most == 9).all()
    far = Grid(bits=20, low=0, high=2**30)
    least, most = quantised_within(np.array([-1e30, 1e30], np.float32), far, 500.0)
    assert most.tolist() == [0, 2**30]
    assert least[0] == 0
    assert 0 <= 2**30 - 500 * 2**20 - least[1] < 600


@pytest.mark.parametrize("guard", [1e-6, 0.1, 3.0, 60.0, 65.0])
def test_a_softmax_within_a_guard_is_between_the_two(guard):
    random = np.random.default_rng(1)
    logits = random.normal(0, 6, (40, 5)).astype(np.float32)
    logits[0] = [200, 0, -200, 0, 199]
    least, most = map(np.asarray, softmax_within(logits, guard))
    for number in range(5):
        away = np.where(np.arange(5) == number, -1, 1) * guard / 2
        for side, bound in ((1, least), (-1, most)):
            moved = logits.astype(np.float64) + side * away
            powers = np.exp(moved - moved.max(axis=1, keepdims=True))
            end = (powers / powers.sum(axis=1, keepdims=True))[:, number]
            assert (bound[:, number] * side <= end * side).all()
            if guard < 64:
                assert (abs(bound[:, number] - end) < 1e-4).all()
    plain = np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))
    assert ((least <= plain) & (plain <= most)).all()
    for one in softmax_within(logits, 0):
        np.testing.assert_array_equal(one, plain)


def test_votes_by_hand():
    """Leads of 1, 0.4 and 0.1 of a class, and a softmax of 0.5 at a threshold of 0.4 and 0.45.

    Odds of 1 become ``exp(0.3)``, a share of 0.43, or ``exp(-0.3)``, one of 0.57.
    """
    logits = np.array([[[1, 0, -3], [0, 0.4, -3], [0.1, 0, -3]]], np.float32)
    for shared in (False, True):
        votes = votes_against(logits, np.array([0]), margin_guard=0.3, shared=shared)
        assert votes.astype(int).tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 0]]]
    votes = votes_against(logits, np.array([1]), margin_guard=0.41)
    assert votes.astype(int).tolist() == [[[1, 0, 0], [1, 0, 0], [1, 0, 0]]]
    even = np.array([[[0.0, 0.0, -99]]], np.float32)
    both, other, none = [1, 1, 0], [0, 1, 0], [0, 0, 0]
    for threshold, expected in ((0.4, both), (0.45, other), (0.56, other), (0.58, none)):
        votes = votes_against(even, np.array([0]), margin_guard=0.3, threshold=threshold)
        assert votes[0, 0].astype(int).tolist() == expected
    one = votes_against(np.array([[[99.0, 0, 0]]]), np.array([0]), margin_guard=0.1, threshold=1.0)
    assert not one.any()  # its softmax rounds to 1 here, and may not elsewhere


def test_by_hand_the_lead_of_a_sum():
    """Two cells are left of four, of 2 for the label and 1 for the other: 4 against 3 x 1.

    A guard of E moves 2 cells of the label by E / 2, and 3 of the other: 4 - E > 3 + 3 E / 2 while
    E is below 0.4. What is below 0 does not count before it is above. Clipped at 2, three cells
    lead by 3 - 3 E, and one moves 2: E is below 1/3.
    """
    evidence = np.zeros((1, 1, 4, 2), np.float32)
    evidence[..., 0], evidence[..., 1] = 2, 1
    label = np.zeros(1, np.int32)
    for guard, holds in ((0.0, True), (0.39, True), (0.41, False), (1e9, False)):
        how = {"window": 1, "margin_guard": guard}
        assert patchguard.robust_masking_worst_case(evidence, label, **how) == holds
    for guard, holds in ((0.0, True), (0.33, True), (0.34, False)):
        how = {"window": 1, "clip": 2, "margin_guard": guard}
        assert clipped_bagnet.worst_case(evidence, label, **how) == holds
    evidence[..., 1] = -1
    assert patchguard.robust_masking_worst_case(evidence, label, window=1, margin_guard=1.9)


@pytest.mark.parametrize("name", ["patchguard_pp, sets", "mask_ds"])
def test_a_guard_of_nothing_is_the_verdict_itself(name):
    defense, (logits, labels) = CASES[name], _evidence(name, 300)

    @jax.jit
    def outcome(u):
        within = (defense.guarded(u, labels, margin_guard=guard) for guard in (0.0, 1e-6))
        return defense.results(u, labels).worst_case, *within

    plain, within, tiny = map(np.asarray, outcome(logits))
    np.testing.assert_array_equal(within, plain)
    assert (tiny != plain).mean() < 0.02


class Inherits(PatchGuard):
    """Another rule, perhaps."""


def test_what_no_class_promises_is_refused():
    check_guarded([*CASES.values(), Inherits(ONE, **CELLS)], 0.0)
    check_guarded(CASES.values(), 0.1)
    with pytest.raises(ValueError, match="no margin guard, as the class Inherits does not"):
        check_guarded([Inherits(ONE, **CELLS)], 0.1)
    with pytest.raises(NotImplementedError, match="patchguard: nothing is known within a margin"):
        EvidenceDefense.guarded(CASES["patchguard"], None, None, margin_guard=0.1)
    for bad in (-1, np.inf, np.nan):
        with pytest.raises(ValueError, match="margin guard: expected a number of at least 0, got"):
            checked_guard(bad)
    cells, label = np.ones((1, 2, 2, 2), np.float32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="margin guard: expected 0 beside exact"):
        patchguard.robust_masking_worst_case(
            cells, label, window=1, threshold=0.5, exact=True, margin_guard=0.1
        )


def _shares(own, other):
    """Robust masking's map of ten cells: two that may hold the largest share, and four others."""
    evidence = np.full((1, 10, 1, 3), -9.0, np.float32)
    evidence[0, [0, 1, 3, 5, 7, 9], 0, 0] = own
    evidence[0, [2, 4, 6], 0, 1] = other
    return evidence, np.zeros(1, np.int32)


def test_by_hand_a_share_that_passes_the_threshold_within_the_guard():
    """T = 0.38, windows of two. Of 0.91, 0.91 and four of 1 the two are below T when one is away.

    So 3.82 is left at least, against 1.5 / 0.62. At 1.01, 1.01 and 0.9 they are above it: 2.7 are
    left, and 1.8 of the other become 2.9 by what is put into two cells. With all of the label
    lower by as much the share falls.
    """
    how = {"window": (2, 1), "threshold": 0.38}
    evidence, label = _shares([0.91, 0.91, 1, 1, 1, 1], 0.5)
    assert patchguard.robust_masking_worst_case(evidence, label, **how)
    for low in (0.0, 0.1):
        moved = _shares(np.array([0.91, 0.91, 1, 1, 1, 1]) - low, 0.6)[0]
        assert patchguard.robust_masking_worst_case(moved, label, **how)
    attacked, _ = _shares([1.009, 1.009, 0.901, 0.901, 0.901, 0], 0.599)
    attacked[0, 8:, 0, 1] = 0.55
    assert oracle.robust_masking(attacked, (2, 1), np.inf, 0.38) == 1
    assert not patchguard.robust_masking_worst_case(evidence, label, **how, margin_guard=0.2)
    assert patchguard.robust_masking_worst_case(evidence, label, **how, margin_guard=0.002)


def test_by_hand_the_same_of_confidences_of_bands():
    shares, label = _shares([0.455, 0.455, 0.5, 0.5, 0.5, 0.5], 0.26)
    trust = np.maximum(shares[..., 0, :2], 1e-4)
    rest = 1 - trust.sum(axis=2, keepdims=True)
    logits = np.log(np.concatenate([trust, np.repeat(rest / 20, 20, axis=2)], axis=2))
    how = {"band": 1, "wrap": False, "threshold": 0.38}
    defense = MaskDS(Threat.of((1, 10), (1, 2)), **how)

    @jax.jit
    def outcome(u):
        within = (defense.guarded(u, label, margin_guard=guard)[0] for guard in (0.2, 0.002))
        return defense.results(u, label).worst_case[0], *within

    rises = np.full(logits.shape, -1.0, np.float32)
    rises[0, [3, 5, 7, 9]] *= -1
    rises[0, [0, 1, 3, 5, 7, 9], 0] *= -1
    rises[0, [2, 4, 6], 1] = 1
    assert list(map(bool, outcome(logits))) == [True, False, True]
    assert not outcome(logits + 0.099 * rises)[0]
    lower = np.where(np.arange(22) == 0, -1, 1).astype(np.float32)
    assert outcome(logits + 0.099 * lower)[0]


def test_by_hand_an_alert_without_a_patch_within_the_guard():
    """A mean without the last cell is unsure of another class, 0.3 ahead of a third, at 0.574.

    Three cells of four move that by 0.15 for a guard of 0.2, to a confidence of 0.61. What is
    worst for the label leaves the two others where they are to each other.
    """
    evidence = np.zeros((1, 4, 1, 3), np.float32)
    evidence[0, :, 0, 0] = [-9, -9, -9, 60]
    evidence[0, :3, 0, 1] = 0.4
    reached = np.arange(4).reshape(1, 4, 1) == 0
    how = {"window": 1, "tau": 0.6, "reached": reached}
    label = np.zeros(1, np.int32)
    assert patchguard.detection_worst_case(evidence, label, **how)
    moved = evidence + np.array([0, 0.0999, -0.0999], np.float32)
    assert oracle.detection(moved, (1, 1), 0.6) == -2
    assert not patchguard.detection_worst_case(evidence, label, **how, margin_guard=0.2)
    assert patchguard.detection_worst_case(evidence, label, **how, margin_guard=0.1)
