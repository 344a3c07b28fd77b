"""Votes: rules equal their literal form, worst cases equal exhaustion, weaker conditions break."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_votes as literal
import pytest
from covers import random_cover
from oracle_redundant_covers import table_adversary

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import Row, adversary
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.programs import defense_specs
from certmask_jax.tables.prediction_table import from_labels

SCORES = {
    "plurality": literal.plurality,
    "minimum_explanation": literal.minimum_explanation,
    "robust_masking": literal.robust_masking,
}


def _hides(masks):
    """``bool[N, L]`` by painting."""
    hides = oracle.hides(masks.boxes, masks.image_size, masks.patch_size)
    return hides.reshape(len(hides), -1)


def _random_masks(rng):
    """Up to six random masks, some listed twice; often ones that hide much."""
    while True:
        width, patch = int(rng.integers(2, 6)), int(rng.integers(1, 3))
        masks = random_cover(rng, int(rng.integers(2, 7)), width, patch)
        extra = rng.integers(0, len(masks), rng.integers(0, 3))
        boxes = masks.boxes[np.append(np.arange(len(masks)), extra)]
        masks = MaskSet(boxes, masks.image_size, masks.patch_size)
        if 0 < (~_hides(masks)).sum(axis=0).max() <= 5:
            return masks


def _literal_rule(masks, score, num_classes, ties):
    """The oracle's rule on rows of distinct masked images, each set of votes decided once."""
    index, hides, known = unions(masks, 1)[1], _hides(masks), {}

    def answer(votes):
        if votes not in known:
            known[votes] = literal.rule(votes, hides, score, num_classes, ties)
        return known[votes]

    return lambda rows: np.array([answer(tuple(v)) for v in rows[:, index].tolist()])


def _rows(rng, count, width, num_classes):
    labels = rng.integers(0, num_classes, count)
    share = rng.choice([0.5, 0.7, 0.9, 1.0], size=(count, 1))
    true = rng.random((count, width)) < share
    return np.where(true, labels[:, None], rng.integers(0, num_classes, (count, width))), labels


def _verdicts(defense, rows, labels, num_classes):
    def of_row(predictions, label):
        row = Row(predictions, jnp.ones(len(predictions)))
        return (
            defense.row_rule(row, num_classes),
            defense.row_worst_case(row, label, num_classes),
            defense.row_certificate(row, label, num_classes),
        )

    return [
        np.asarray(values)
        for values in jax.jit(jax.vmap(of_row))(jnp.asarray(rows), jnp.asarray(labels))
    ]


def _robust(defense, rows, labels, num_classes, rule):
    images, masks = defense.masked_images, defense.mask_set
    hidden = oracle.hides(images.boxes, masks.image_size, masks.patch_size)
    return table_adversary(rule, rows, hidden.reshape(len(hidden), -1), labels, num_classes)


@pytest.mark.parametrize(("num_classes", "ties"), [(2, "smallest"), (3, "largest")])
@pytest.mark.parametrize("name", SCORES)
def test_rule_worst_case_and_certificate_against_exhaustion(name, num_classes, ties):
    """5,400 random tables in all, on 36 random covers."""
    rng = np.random.default_rng(sum(map(ord, name + ties)) + num_classes)
    robust_ones = 0
    for _ in range(6):
        masks = _random_masks(rng)
        defense = getattr(defenses, name)(masks, ties=ties)
        rows, labels = _rows(rng, 150, len(defense.masked_images), num_classes)
        answers, worst, certified = _verdicts(defense, rows, labels, num_classes)
        rule = _literal_rule(masks, SCORES[name], num_classes, ties)
        np.testing.assert_array_equal(answers, rule(rows))
        robust = _robust(defense, rows, labels, num_classes, rule)
        np.testing.assert_array_equal(worst, robust)
        index, hides = unions(masks, 1)[1], _hides(masks)
        strict = [
            literal.robust(row[index], y, hides, SCORES[name], num_classes)
            for row, y in zip(rows, labels, strict=True)
        ]
        np.testing.assert_array_equal(certified, strict)
        assert not (certified & ~worst).any()
        if name == "plurality":
            margins = [
                literal.plurality_margin(row[index], y, hides, num_classes)
                for row, y in zip(rows, labels, strict=True)
            ]
            np.testing.assert_array_equal(certified, margins)
        robust_ones += robust.sum()
    assert robust_ones > 50


def _pairs_of_blocks(blocks):
    """All pairs of the pixels of a ``1 x blocks`` image: a pair cover of 1-pixel patches."""
    pairs = np.array(list(itertools.combinations(range(blocks), 2)))
    boxes = np.zeros((len(pairs), 2, 4), int)
    boxes[..., 1], boxes[..., 2], boxes[..., 3] = pairs, 1, pairs + 1
    return MaskSet(boxes, (1, blocks), (1, 1))


def _all_but(blocks, kept):
    """Masks that hide all but ``kept`` of the pixels of a ``1 x blocks`` image, in every way."""
    hidden = np.array(list(itertools.combinations(range(blocks), blocks - kept)))
    boxes = np.zeros((*hidden.shape, 4), int)
    boxes[..., 1], boxes[..., 2], boxes[..., 3] = hidden, 1, hidden + 1
    return MaskSet(boxes, (1, blocks), (1, 1))


@pytest.mark.parametrize("name", SCORES)
def test_all_tables_of_tiny_sets(name):
    sets = [
        MaskSet(np.array([[0, 0, 1, 2], [0, 1, 1, 3]]), (1, 3), (1, 1)),
        MaskSet(np.array([[0, 0, 1, 2], [0, 1, 1, 3], [0, 0, 1, 2]]), (1, 3), (1, 1)),
        _pairs_of_blocks(3),
        _all_but(4, 1),
    ]
    for masks in sets:
        for ties in ("largest", "smallest"):
            defense = getattr(defenses, name)(masks, ties=ties)
            every = itertools.product(range(3), repeat=len(defense.masked_images))
            every = np.array(list(every))
            rows, labels = np.tile(every, (3, 1)), np.repeat(np.arange(3), len(every))
            answers, worst, certified = _verdicts(defense, rows, labels, 3)
            rule = _literal_rule(masks, SCORES[name], 3, ties)
            np.testing.assert_array_equal(answers, rule(rows))
            np.testing.assert_array_equal(worst, _robust(defense, rows, labels, 3, rule))
            assert not (certified & ~worst).any()


def test_the_packages_adversary_agrees():
    rng = np.random.default_rng(1)
    masks = _all_but(4, 1)
    defense = defenses.minimum_explanation(masks)
    rows, labels = _rows(rng, 30, len(masks), 3)
    table = from_labels(rows, defense.masked_images, num_classes=3)
    expected = [
        adversary.worst_case(defense.row_rule, row, _hides(masks).T, int(y), num_classes=3)
        for row, y in zip(rows, labels, strict=True)
    ]
    assert defense.worst_case(table, labels).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_hand_made_votes():
    """Pixels a, b, c, d; masks hide all but one of them: abc, abd, acd, bcd; c(l) = 3 of 4."""
    masks = _all_but(4, 1)
    rows = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    # With one wrong vote and the patch in a, two say 0 (abd, acd) and two say 1 (abc, bcd): either
    # is explained by one error, and has one vote out of reach. Two wrong votes lose.
    for name in SCORES:
        for ties, robust in (("largest", [1, 0, 0]), ("smallest", [1, 1, 0])):
            defense = getattr(defenses, name)(masks, ties=ties)
            table = from_labels(rows, defense.masked_images, num_classes=2)
            assert defense.worst_case(table, [0, 0, 0]).tolist() == robust, name
            assert defense.certificate(table, [0, 0, 0]).tolist() == [1, 0, 0], name
            assert defense.rule(table).tolist() == [0, 0, 0 if ties == "smallest" else 1], name
            # D = 1. Four votes to none lead by more than 2, three to one by just 2.
            conditions = defense.conditions(table, [0, 0, 0])
            assert set(conditions) == ({"vote_gap"} if name == "plurality" else set())
            for gap in conditions.values():
                assert gap.tolist() == robust


@pytest.mark.parametrize("name", ["minimum_explanation", "robust_masking"])
def test_true_votes_are_robust_exactly_on_pair_covers(name):
    rng = np.random.default_rng(5)
    verdicts = set()
    for _ in range(30):
        masks = random_cover(rng, int(rng.integers(2, 8)), int(rng.integers(2, 5)), 1)
        hides = _hides(masks).astype(int)
        is_pair_cover = bool((hides.T @ hides > 0).all())
        defense = getattr(defenses, name)(masks)
        row = jnp.zeros(len(defense.masked_images), int)
        robust = bool(defense.row_certificate(Row(row, row.astype(jnp.float32)), jnp.array(0), 2))
        assert robust == is_pair_cover
        verdicts.add(robust)
    assert verdicts == {True, False}


def test_no_rectangles_smaller_than_the_image_give_plurality_anything():
    """The patch in two opposite corners is hidden by different masks: c(l) <= N / 2 somewhere."""
    for masks in (
        mask_sets.budgeted_grid(12, 2, masks_per_axis=2),
        mask_sets.exact_k_fold(12, 2, mask_size=11, coverage=(3, 3)),
        mask_sets.tight_grid(12, 2, mask_size=11),
    ):
        assert 2 * masks.coverage().min() <= len(masks)
        defense = defenses.plurality(masks)
        zeros = np.zeros((1, len(defense.masked_images)), int)
        table = from_labels(zeros, defense.masked_images, num_classes=2)
        assert defense.rule(table).tolist() == [0]
        assert not defense.worst_case(table, [0]).any()
    defense = defenses.plurality(_all_but(4, 1))
    table = from_labels([[0] * 4], defense.masked_images, num_classes=2)
    assert defense.certificate(table, [0]).all()


# --- weaker conditions, each broken by the attacker ---


def _broken(name, mutant, ties):
    """Rows that a weakened condition takes for robust, and the attacker breaks."""
    rng = np.random.default_rng(2)
    count = 0
    for masks in [_all_but(4, 1)] + [_random_masks(rng) for _ in range(9)]:
        defense = getattr(defenses, name)(masks, ties=ties)
        rows, labels = _rows(rng, 60, len(defense.masked_images), 3)
        rule = _literal_rule(masks, SCORES[name], 3, ties)
        robust = _robust(defense, rows, labels, 3, rule)
        index, hides = unions(masks, 1)[1], _hides(masks)
        weak = np.array(
            [
                mutant(row[index], y, hides, SCORES[name], 3)
                for row, y in zip(rows, labels, strict=True)
            ]
        )
        count += (weak & ~robust).sum()
    return count


def _weakened(equal_is_enough=False, free_masks=True, every=all):
    def condition(votes, y, hides, score, num_classes):
        everyone = set(range(len(votes)))
        leads = []
        for loc in range(hides.shape[1]):
            hiding = {i for i in everyone if hides[i, loc]}
            true = {i for i in hiding if votes[i] == y}
            free = everyone - hiding if free_masks else set()
            for z in set(range(num_classes)) - {y}:
                least = score(true, hides)
                most = score({i for i in hiding if votes[i] == z} | free, hides)
                leads.append(least > most or (equal_is_enough and least == most))
        return every(leads)

    return condition


@pytest.mark.parametrize("name", SCORES)
def test_mutants_are_broken(name):
    assert _broken(name, _weakened(), "smallest") == 0
    assert _broken(name, _weakened(equal_is_enough=True), "smallest") > 0
    assert _broken(name, _weakened(free_masks=False), "largest") > 0
    assert _broken(name, _weakened(every=any), "largest") > 0


def test_mutant_a_score_that_is_not_monotone():
    """PatchGuard's threshold T > 0: support that is too concentrated counts for less.

    One more vote can raise the share of the largest window above T, and lower the score. The
    attacker then wins with votes that are held back.
    """
    # Pixels a to d; the masks hide acd, ab, abd, ad, abc, ac.
    hidden = np.array(
        [[1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0]]
    )
    boxes = np.zeros((6, 4, 4), int)
    for mask, pixel in zip(*np.nonzero(hidden), strict=True):
        boxes[mask, pixel] = 0, pixel, 1, pixel + 1
    masks = MaskSet(boxes, (1, 4), (1, 1))
    images, _ = distinct_unions.one_round(masks)

    def thresholded(says):  # T = 0.6
        votes = says.sum()
        window = (says[None, :] & (jnp.asarray(hidden.T) == 0)).sum(axis=1).max()
        return jnp.where(5 * window > 3 * votes, votes - window, votes)

    with pytest.raises(ValueError, match=r"expected a monotone score, got .* with mask \d added"):
        defenses.votes(masks, thresholded)

    # Past the check: one wrong vote, and the condition calls the image robust.
    class Broken(defenses.Scored):
        def score(self, says):
            return thresholded(says)

    defense = Broken(masks)
    table = from_labels([[0, 0, 0, 1, 0, 0]], images, num_classes=2)
    assert defense.certificate(table, [0]).all()
    # The patch in d, which masks 1, 4 and 5 do not hide; mask 1 votes for the truth, and harms it.
    attacked = from_labels([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 1]], images, num_classes=2)
    assert defense.rule(attacked).tolist() == [1, 0]
    assert not adversary.worst_case(
        defense.row_rule, table.predictions[0], hidden.T == 1, 0, num_classes=2
    )


# --- scores of one's own ---


def test_a_score_of_ones_own_is_exact():
    """Masks with unequal say, and a score that saturates; ties by the order."""
    rng = np.random.default_rng(4)
    checked = 0
    while checked < 300:
        masks = _random_masks(rng)
        images = unions(masks, 1)[0]
        trust = rng.integers(0, 4, len(images))

        def score(says, trust=trust):
            return jnp.minimum(jnp.where(says, jnp.asarray(trust), 0).sum(), 5) / 7

        defense = defenses.votes(masks, score, name="trusted", ties="smallest")
        rows, labels = _rows(rng, 100, len(images), 3)
        answers, worst, certified = _verdicts(defense, rows, labels, 3)

        def rule(rows, trust=trust):
            said = rows[:, :, None] == np.arange(3)
            return np.minimum((said * trust[:, None]).sum(axis=1), 5).argmax(axis=1)

        np.testing.assert_array_equal(answers, rule(rows))
        np.testing.assert_array_equal(worst, _robust(defense, rows, labels, 3, rule))
        assert not (certified & ~worst).any()
        checked += 100
    assert str(defense).startswith("trusted: ")


def test_scores_that_are_none_are_refused():
    few, many = _pairs_of_blocks(4), _pairs_of_blocks(6)
    with pytest.raises(ValueError, match=r"expected one number for bool\[6\], got shape \(6,\)"):
        defenses.votes(few, lambda says: says)
    for masks in (few, many):
        with pytest.raises(ValueError, match="expected a monotone score"):
            defenses.votes(masks, lambda says: -says.sum())
        with pytest.raises(ValueError, match="expected a monotone score"):
            defenses.votes(masks, lambda says: says.sum().astype(jnp.float32) / 0.0 * 0.0)
    for build in (defenses.plurality, defenses.robust_masking, defenses.minimum_explanation):
        with pytest.raises(ValueError, match="largest"):
            build(few, ties="first")


@pytest.mark.parametrize("name", SCORES)
def test_ties_and_nan_are_never_certified_and_replicates_are_seen_once(name):
    masks = mask_sets.repeated(_all_but(4, 1), coverage=3)
    defense = getattr(defenses, name)(masks)
    assert len(defense.masked_images) == 4
    predictions, margins = np.zeros((4, 4), np.int16), np.ones((4, 4), np.float16)
    margins[1, 0] = 0
    predictions[2, 0], margins[2, 0] = -1, np.nan
    predictions[3], margins[3] = -1, np.nan
    table = from_labels(predictions, defense.masked_images, num_classes=2, margins=margins)
    zeros = np.zeros(4, int)
    assert defense.worst_case(table, zeros).tolist() == [True, False, False, False]
    assert defense.certificate(table, zeros).tolist() == [True, False, False, False]
    assert defense.rule(table).tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize("name", SCORES)
def test_from_the_command_line(name):
    build = defense_specs.build
    defense = build(f"{name}:tiling=exact,mask_size=8,coverage=3x2,ties=smallest", (32, 32), (5, 5))
    assert (defense.name, defense.options["ties"]) == (name, "smallest")
    assert len(build(f"{name}:masks_per_axis=2", (32, 32), (5, 5)).mask_set) == 4
    with pytest.raises(ValueError, match="unknown option 'tau'"):
        build(f"{name}:tau=0", (32, 32), (5, 5))
