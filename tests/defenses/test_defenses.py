"""Rules equal the papers' algorithms; worst cases equal the table adversary; certificates hold."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from defense_cases import CASES

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import ALERT, Defense, Guarantee, adversary
from certmask_jax.defenses.certmask_votes import certmask_attacked
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.tables.prediction_table import from_labels

VOTES = ("plurality", "minimum_explanation", "robust_masking")


def _index(masks: MaskSet, order: int) -> np.ndarray:
    return unions(masks, order)[1]


def _hidden(defense: Defense) -> np.ndarray:
    """Every masked image against every location, by painting: ``bool[V, L]``."""
    masks = defense.mask_set
    hides = oracle.hides(defense.masked_images.boxes, masks.image_size, masks.patch_size)
    return hides.reshape(len(hides), -1)


# Those of votes have tiny tables of their own.
KINDS = [name for name, case in CASES.items() if case.literal and not name.startswith(VOTES)]


@pytest.mark.parametrize("kind", KINDS)
def test_all_tiny_tables_against_the_literal_oracle(kind):
    """Every table of every 1 x 2 and 1 x 3 image with two overlapping or disjoint masks."""
    covers = [
        MaskSet(np.array([[0, 0, 1, 2], [0, 1, 1, 3]]), (1, 3), (1, 1)),
        MaskSet(np.array([[0, 0, 1, 1], [0, 1, 1, 2]]), (1, 2), (1, 1)),
    ]
    for masks in covers:
        defense = CASES[kind].build(masks)
        hidden = _hidden(defense)
        literal = CASES[kind].literal(defense, 3)

        def rule(row, trust=None, literal=literal):
            return literal(np.asarray(row), np.asarray(trust))

        width = len(defense.masked_images)
        every = np.array(list(itertools.product(range(3), repeat=width)))
        trust = [0.75] * width if kind == "minority_reports" else None
        for y in range(3):
            table = from_labels(
                every,
                defense.masked_images,
                num_classes=3,
                confidences=1 if trust is None else 0.75,
            )
            labels = np.full(len(every), y)
            worst = defense.worst_case(table, labels)
            certified = defense.certificate(table, labels)
            for row, robust, proved in zip(every, worst, certified, strict=True):
                exact = oracle.table_adversary(
                    rule, row, hidden, y, 3, defense.guarantee.value, trust
                )
                if defense.exact:
                    assert robust == exact, (row, y)
                assert exact or not robust
                assert robust or not proved


@pytest.mark.parametrize("kind", ["double_masking", "challenger_masking"])
def test_two_mask_correctness_is_the_certificate_on_patchcleansers_own_sets(kind):
    masks = mask_sets.budgeted_grid(12, 3, masks_per_axis=3)
    defense = CASES[kind].build(masks)
    assert defense.exact
    rng = np.random.default_rng(1)
    predictions = np.zeros((200, len(defense.masked_images)), int)
    for row in predictions[40:]:
        row[rng.integers(0, len(row), rng.integers(1, 3))] = rng.integers(1, 4)
    table, labels = (
        from_labels(predictions, defense.masked_images, num_classes=4),
        np.zeros(200, int),
    )
    correct = defense.conditions(table, labels)["two_mask_correct"]
    assert correct[:40].all()
    assert not correct[40:].any()
    np.testing.assert_array_equal(defense.worst_case(table, labels), correct)
    np.testing.assert_array_equal(defense.certificate(table, labels), correct)


def test_good_rows_certify_more_than_two_mask_correctness_on_redundant_covers():
    boxes = np.array([[0, 0, 1, 3], [0, 0, 1, 3], [0, 3, 1, 6], [0, 3, 1, 5], [0, 4, 1, 6]])
    masks = MaskSet(boxes, (1, 6), (1, 1))
    defense = defenses.double_masking(masks)
    pair = _index(masks, 2)
    labels = np.zeros(len(defense.masked_images), int)
    labels[pair[3, 4]] = 0
    labels[pair[3, 3]] = 1  # mask 3 alone is wrong; masks 0, 2 and 4 stand
    table = from_labels(labels[None], defense.masked_images, num_classes=2)
    good = oracle.good_rows(labels[pair], 0, oracle.hides(masks.boxes, (1, 6), (1, 1))[:, 0])
    assert good
    assert defense.certificate(table, [0]).all()
    assert defense.worst_case(table, [0]).all()
    assert not defense.conditions(table, [0])["two_mask_correct"].any()


@pytest.mark.parametrize("ties", ["largest", "smallest"])
def test_k_fold_correctness_is_not_robust_for_masks_smaller_than_the_image(ties):
    """The published certificate of CertMask: all labels true, and yet the worst case is no."""
    masks = mask_sets.exact_k_fold(12, 2, mask_size=5, coverage=(3, 2))
    defense = defenses.certmask(masks, ties=ties)
    table = from_labels(np.zeros((1, len(masks)), int), defense.masked_images, num_classes=3)
    assert defense.conditions(table, [0])["k_fold_correct"].all()
    assert not defense.worst_case(table, [0]).any()
    assert not defense.certificate(table, [0]).any()
    # The same table, read as a detector, is proved.
    detector = defenses.certmask_detection(masks, tolerance=masks.promise - 1)
    assert detector.worst_case(table, [0]).all()
    assert detector.guarantee == Guarantee.DETECTION


@pytest.mark.parametrize(("free", "robust"), [(1, True), (2, False)])
def test_certmask_is_robust_iff_fewer_than_k_masks_are_out_of_reach(free, robust):
    """N - c <= k - 1 (soundness, 2.1) with N = 4, k = 2: c = 3 holds, c = 2 does not."""
    hidden = (
        [[0, 0, 1, 2]] * (4 - free)
        + [[0, 0, 1, 1]] * (free // 2)
        + [[0, 1, 1, 2]] * (free - free // 2)
    )
    masks = MaskSet(np.array(hidden), (1, 2), (1, 1), promise=2)
    votes = [0] * (4 - free) + [1] * free
    assert (oracle.certmask_rule(votes, 2) == 0) == robust
    defense = defenses.certmask(masks)
    table = from_labels(
        np.zeros((1, len(defense.masked_images)), int), defense.masked_images, num_classes=2
    )
    assert defense.worst_case(table, [0]).all() == robust or not defense.exact


def test_several_classes_with_exactly_k_votes_leave_it_to_the_majority():
    assert oracle.certmask_rule([0, 0, 2, 2, 1, 1, 1], 2) == 1
    assert oracle.certmask_rule([0, 0, 2, 2], 2) == 2
    assert oracle.certmask_rule([0, 0, 2, 2], 2, "smallest") == 0
    masks = MaskSet(np.array([[0, i, 1, i + 1] for i in range(7)]), (1, 7), (1, 1))
    images = unions(masks, 1)[0]
    rows = [[0, 2, 1, 1, 1, 1, 1], [0, 3, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 0]]
    for ties, expected in (("largest", [1, 1, 0]), ("smallest", [1, 1, 0])):
        table = from_labels(rows, images, num_classes=5)
        assert defenses.certmask(masks, ties=ties).rule(table).tolist() == expected


@pytest.mark.parametrize("ties", ["largest", "smallest"])
@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("k", [1, 2, 3, -1])
def test_certmask_closed_form_on_all_small_vote_counts(ties, num_classes, k):
    """Every way to have up to 3 fixed votes a class, and every way to add up to 5 free ones."""
    cases, expected = [], []
    for votes in itertools.product(range(4), repeat=num_classes):
        for free in range(6 if num_classes < 4 else 4):
            if sum(votes) + free == 0:
                continue
            outcomes = set()
            for added in itertools.product(range(free + 1), repeat=num_classes):
                if sum(added) == free:
                    counts = np.add(votes, added)
                    labels = np.repeat(np.arange(num_classes), counts)
                    outcomes.add(oracle.certmask_rule(labels, k, ties))
            for y in range(num_classes):
                cases.append((votes, free, y))
                expected.append(bool(outcomes - {y}))
    attacked = jax.jit(jax.vmap(functools.partial(certmask_attacked, k=k, ties=ties)))
    attackable = attacked(*(jnp.array(column) for column in zip(*cases, strict=True)))
    np.testing.assert_array_equal(attackable, expected)


def test_minority_reports_at_equality_the_authors_condition_is_not_sound():
    """Confidence exactly tau: called provable, but a wrong clean label then raises no alert."""
    masks = MaskSet(np.array([[0, 0, 1, 1], [0, 1, 1, 2]]), (1, 2), (1, 1))
    defense = defenses.minority_reports(masks, tau=0.5)
    zeros = np.zeros((1, len(defense.masked_images)), np.int16)
    table = from_labels(zeros, defense.masked_images, num_classes=2, confidences=0.5)
    assert defense.conditions(table, [0])["provable_detection"].all()
    assert not defense.certificate(table, [0]).any()
    assert not defense.worst_case(table, [0]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_ties_and_nan_are_never_certified(kind):
    masks = MaskSet(np.array([[0, 0, 1, 2]]), (1, 2), (1, 1))  # hides everything: always robust
    defense = CASES[kind].build(masks)
    shape = (3, len(defense.masked_images))
    predictions, margins = np.zeros(shape, np.int16), np.ones(shape, np.float16)
    margins[1, 0] = 0  # a tie
    predictions[2, 0], margins[2, 0] = -1, np.nan  # no finite logits
    table = from_labels(predictions, defense.masked_images, num_classes=2, margins=margins)
    assert table.non_finite_images().tolist() == [2]
    for proof in (defense.worst_case, defense.certificate):
        proved = proof(table, np.zeros(3, int))
        assert not proved[1:].any()
    assert not any(v[1:].any() for v in defense.conditions(table, np.zeros(3, int)).values())
    assert defense.rule(table)[2] in (-1, ALERT, 0)


def test_alerts_are_not_labels():
    masks = MaskSet(np.array([[0, 0, 1, 1], [0, 1, 1, 2]]), (1, 2), (1, 1))
    defense = defenses.certmask_detection(masks)
    table = from_labels([[0, 0], [0, 1]], defense.masked_images, num_classes=2)
    assert defense.rule(table).tolist() == [0, ALERT]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: defenses.double_masking(m, ties="first"), "largest"),
        (lambda m: defenses.certmask(m, ties="first"), "largest"),
        (lambda m: defenses.certmask_detection(m, tolerance=5), "tolerance"),
        (lambda m: defenses.certmask_detection(m, tolerance=-1), "tolerance"),
        (lambda m: defenses.minority_reports(m, tau=1.0), "tau"),
        (lambda m: defenses.minority_reports(m, tau=-0.1), "tau"),
    ],
)
def test_bad_hyper_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build(mask_sets.budgeted_grid(8, 2, masks_per_axis=3))


def test_bad_labels_and_foreign_tables():
    defense = defenses.double_masking(mask_sets.budgeted_grid(8, 2, masks_per_axis=2))
    table = from_labels(
        np.zeros((2, len(defense.masked_images)), int), defense.masked_images, num_classes=3
    )
    with pytest.raises(ValueError, match=r"0\.\.2 .* 7 \(image 1\)"):
        defense.worst_case(table, [0, 7])
    with pytest.raises(ValueError, match="expected 2 integers"):
        defense.worst_case(table, [0])
    other = defenses.double_masking(mask_sets.budgeted_grid(8, 2, masks_per_axis=3))
    with pytest.raises(ValueError, match="are missing from its"):
        other.rule(table)


def test_the_adversary_refuses_large_cases_with_the_estimate():
    defense = defenses.double_masking(mask_sets.budgeted_grid(8, 2, masks_per_axis=3))
    row = np.zeros(len(defense.masked_images), int)
    with pytest.raises(ValueError, match=r"free masked images with 10 choices each, 1e\+"):
        adversary.worst_case(defense.row_rule, row, defense.groups, 0, num_classes=10)
