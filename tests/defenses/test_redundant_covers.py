"""Double masking with two mask sets and redundant ones: exact, and nothing weaker is enough."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_redundant_covers as literal
import pytest
from covers import random_cover
from early_exit_cases import CLASSES, evaluated, facts, filled_in, random_table

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import Row, adversary
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.patchcleanser_proofs import (
    TwoRounds,
    double_masking_worst_case,
    good_rows,
)
from certmask_jax.masks.distinct_unions import merge, unions, unions_of
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.programs import defense_specs
from certmask_jax.tables.prediction_table import UNKNOWN, from_labels


def _places(defense):
    """Where ``v_i`` and ``T[i, j]`` are in a row: ``[N1]``, ``[N1, N2]``."""
    first, second = defense.mask_set, defense.second_set
    if second is None:
        pair = unions(first, 2)[1]
        return pair.diagonal(), pair
    singles, of_mask = unions(first, 1)
    pairs, of_pair = unions_of([first, second])
    _, (of_single, of_union) = merge([singles, pairs])
    return of_single[of_mask], of_union[of_pair]


def _hidden(defense):
    """``bool[V, L]``, by painting."""
    masks = defense.mask_set
    hides = oracle.hides(defense.masked_images.boxes, masks.image_size, masks.patch_size)
    return hides.reshape(len(hides), -1)


def _rule(defense, num_classes):
    single, pair = _places(defense)
    ties = defense.options["ties"]
    return lambda rows: literal.two_rounds_of_rows(
        rows[:, single], rows[:, pair], num_classes, ties
    )


def _repeats(rng, masks):
    """Some masks listed twice."""
    order = np.append(np.arange(len(masks)), rng.integers(0, len(masks), rng.integers(0, 2)))
    return MaskSet(masks.boxes[order], masks.image_size, masks.patch_size)


def _random_defense(rng, kind, ties, most_choices, num_classes):
    """Two sets (or one), small enough for exhaustion."""
    while True:
        width, patch = int(rng.integers(2, 6)), int(rng.integers(1, 3))
        first = _repeats(rng, random_cover(rng, int(rng.integers(1, 5)), width, patch))
        second = None
        if kind == "two sets":
            second = _repeats(rng, random_cover(rng, int(rng.integers(1, 4)), width, patch))
        defense = defenses.double_masking(first, second, ties=ties)
        free = (~_hidden(defense)).sum(axis=0).max()
        if 1 < num_classes**free <= most_choices:
            return defense


def _tables(rng, defense, count, num_classes):
    """Rows from wholly true to noise, and some with a column or a row of one wrong label."""
    labels = rng.integers(0, num_classes, count)
    shape = (count, len(defense.masked_images))
    share = rng.choice([0.5, 0.7, 0.85, 0.95, 1.0], size=(count, 1))
    wrong = (labels + rng.integers(1, num_classes, count)) % num_classes
    noise = np.where(rng.random(shape) < 0.7, wrong[:, None], rng.integers(0, num_classes, shape))
    rows = np.where(rng.random(shape) < share, labels[:, None], noise)
    _, pair = _places(defense)
    for row, z in zip(rows[::4], wrong[::4], strict=True):
        i, j = rng.integers(0, pair.shape)
        row[pair[i] if rng.random() < 0.5 else pair[:, j]] = z
    return rows, labels


def _verdicts(defense, rows, labels, num_classes):
    """What the defense says of each row, compiled as one."""

    def of_row(predictions, label):
        row = Row(predictions, jnp.ones(len(predictions)))
        return {
            "answer": defense.row_rule(row, num_classes),
            "worst_case": defense.row_worst_case(row, label, num_classes),
            "certificate": defense.row_certificate(row, label, num_classes),
            "two_mask_correct": defense.row_conditions["two_mask_correct"](row, label, num_classes),
        }

    outcomes = jax.jit(jax.vmap(of_row))(jnp.asarray(rows), jnp.asarray(labels))
    return {name: np.asarray(values) for name, values in outcomes.items()}


@pytest.mark.parametrize(("num_classes", "ties"), [(2, "smallest"), (3, "largest")])
@pytest.mark.parametrize("kind", ["two sets", "one set"])
def test_rule_worst_case_and_certificate_against_exhaustion(kind, num_classes, ties):
    """5,280 random tables in all, on 24 random covers."""
    rng = np.random.default_rng(sum(map(ord, kind + ties)) + num_classes)
    robust_ones = beyond = 0
    for _ in range(6):
        defense = _random_defense(rng, kind, ties, 256, num_classes)
        rows, labels = _tables(rng, defense, 220, num_classes)
        verdicts = _verdicts(defense, rows, labels, num_classes)
        single, pair = _places(defense)
        answers = [literal.two_rounds(row[single], row[pair], ties) for row in rows]
        rule = _rule(defense, num_classes)
        np.testing.assert_array_equal(rule(rows), answers)
        np.testing.assert_array_equal(verdicts["answer"], answers)
        hidden = _hidden(defense)
        robust = literal.table_adversary(rule, rows, hidden, labels, num_classes)
        np.testing.assert_array_equal(verdicts["worst_case"], robust)
        good = [
            literal.good_rows(row[single], row[pair], y, hidden[single], hidden[pair])
            for row, y in zip(rows, labels, strict=True)
        ]
        certified, correct = verdicts["certificate"], verdicts["two_mask_correct"]
        np.testing.assert_array_equal(certified, good)
        assert not (certified & ~robust).any()
        assert not (correct & ~certified).any()
        robust_ones += robust.sum()
        beyond += (certified & ~correct).sum()
    assert robust_ones > 100
    assert beyond > 10  # good rows say more than two-mask correctness


SMALL = [  # first set, second set, image width: boxes of the one row of pixels
    ([[0, 0, 1, 2], [0, 1, 1, 3]], [[0, 0, 1, 3]], 3),
    ([[0, 0, 1, 2], [0, 1, 1, 3]], [[0, 0, 1, 1], [0, 1, 1, 3]], 3),
    ([[0, 0, 1, 1], [0, 1, 1, 2]], [[0, 0, 1, 1], [0, 0, 1, 2]], 2),
    ([[0, 0, 1, 2], [0, 0, 1, 2], [0, 2, 1, 3]], [[0, 0, 1, 2], [0, 2, 1, 3]], 3),
]


@pytest.mark.parametrize("ties", ["largest", "smallest"])
@pytest.mark.parametrize("number", range(len(SMALL)))
def test_all_tables_of_tiny_pairs_of_sets(number, ties):
    first, second, width = SMALL[number]
    sets = [MaskSet(np.array(boxes), (1, width), (1, 1)) for boxes in (first, second)]
    defense = defenses.double_masking(*sets, ties=ties)
    every = np.array(list(itertools.product(range(3), repeat=len(defense.masked_images))))
    rule = _rule(defense, 3)
    labels = np.repeat(np.arange(3), len(every))
    rows = np.tile(every, (3, 1))
    robust = literal.table_adversary(rule, rows, _hidden(defense), labels, 3)
    verdicts = _verdicts(defense, rows, labels, 3)
    np.testing.assert_array_equal(verdicts["worst_case"], robust)
    assert not (verdicts["certificate"] & ~robust).any()


@pytest.mark.parametrize("ties", ["largest", "smallest"])
def test_one_location_at_a_time(ties):
    """Five first masks, two or three of which hide the patch; rows in which masks often stand.

    Here several labels have votes that the attacker cannot touch, and the order of masks decides.
    """
    rng = np.random.default_rng(len(ties))
    pair = 5 + np.arange(10).reshape(5, 2)
    robust_ones = 0
    for shared in (False, True, False):
        single = np.arange(5)
        hidden = np.zeros(15, bool)
        hidden[rng.choice(5, rng.integers(2, 4), replace=False)] = True
        if shared:  # the last mask alone is a union of another
            single[4] = pair[2, 1]
            hidden[4] = False
        hidden[pair[hidden[single]]] = True
        hidden[pair[:, 0]] = True  # the second round's first mask hides the patch
        hidden[pair[hidden[single]]] = True
        one_location = TwoRounds(single, pair, hidden[None], symmetric=False)
        labels = rng.integers(0, 3, 600)
        rows = np.where(rng.random((600, 15)) < 0.4, labels[:, None], rng.integers(0, 3, (600, 15)))
        stands = rng.random((600, 5)) < 0.6
        rows[:, pair] = np.where(stands[..., None], rows[:, single][..., None], rows[:, pair])
        rows[::2, pair[:, 1]] = rows[::2, pair[:, 0]]

        def of_row(predictions, label, parts=one_location):
            return double_masking_worst_case(predictions, label, parts, num_classes=3, ties=ties)

        def rule(rows, single=single):
            return literal.two_rounds_of_rows(rows[:, single], rows[:, pair], 3, ties)

        free = ~hidden
        free[np.setdiff1d(np.arange(15), np.append(single, pair))] = False  # in no round
        robust = literal.table_adversary(rule, rows, ~free[:, None], labels, 3)
        worst_case = jax.jit(jax.vmap(of_row))(jnp.asarray(rows), jnp.asarray(labels))
        np.testing.assert_array_equal(worst_case, robust)
        robust_ones += robust.sum()
    assert robust_ones > 20


def test_the_packages_adversary_agrees():
    rng = np.random.default_rng(0)
    defense = _random_defense(rng, "two sets", "largest", 100, 2)
    rows, labels = _tables(rng, defense, 20, 2)
    table = from_labels(rows, defense.masked_images, num_classes=2)
    expected = [
        adversary.worst_case(defense.row_rule, row, _hidden(defense).T, int(y), num_classes=2)
        for row, y in zip(rows, labels, strict=True)
    ]
    assert defense.worst_case(table, labels).tolist() == expected


def test_the_same_set_twice_is_one_set():
    masks = mask_sets.exact_k_fold(12, 2, mask_size=5, coverage=2)
    once, twice = defenses.double_masking(masks), defenses.double_masking(masks, masks)
    assert len(once.masked_images) == len(twice.masked_images)
    rng = np.random.default_rng(0)
    rows, labels = _tables(rng, once, 300, 3)
    rows[:, :] = np.where(rng.random(rows.shape) < 0.98, labels[:, None], rows)
    table = from_labels(rows, once.masked_images, num_classes=3)
    for fact, values in facts(once, table, labels).items():
        np.testing.assert_array_equal(facts(twice, table, labels)[fact], values)


# --- weaker conditions, each broken by the attacker ---

# Pixels a, b, c; the first round hides ab or bc, the second round all but one pixel.
FIRST = MaskSet(np.array([[0, 0, 1, 2], [0, 1, 1, 3]]), (1, 3), (1, 1))
SECOND = MaskSet(
    np.array([[[0, 0, 1, 2], [0] * 4], [[0, 0, 1, 1], [0, 2, 1, 3]], [[0, 1, 1, 3], [0] * 4]]),
    (1, 3),
    (1, 1),
)


def _attacked(defense, row, y, num_classes=2):
    """Whether exhaustion breaks the row."""
    rule, hidden = _rule(defense, num_classes), _hidden(defense)
    rows, labels = np.array([row]), np.array([y])
    return not literal.table_adversary(rule, rows, hidden, labels, num_classes)[0]


def _one(defense, row, y, num_classes=2):
    table = from_labels([row], defense.masked_images, num_classes=num_classes)
    return {fact: bool(value[0]) for fact, value in facts(defense, table, [y]).items()}


def test_mutant_pairs_without_the_first_masks_alone():
    """All of M1 x M2 true, and a first mask alone wrong: it cannot stand, and nobody else does."""
    first = MaskSet(np.array([[0, 0, 1, 1], [0, 1, 1, 2], [0, 2, 1, 3]]), (1, 3), (1, 1))
    defense = defenses.double_masking(first, SECOND)
    single, pair = _places(defense)
    alone = np.setdiff1d(single, pair)
    assert len(alone) == 3  # no single pixel is a union
    row = np.zeros(len(defense.masked_images), int)
    row[alone[0]] = 1
    assert (row[pair] == 0).all()
    assert _attacked(defense, row, 0)
    assert not _one(defense, row, 0)["two_mask_correct"]
    assert not _one(defense, row, 0)["worst_case"]


def test_mutant_good_rows_of_the_first_round_only():
    """With two sets good rows may cover, and yet a row of wrong labels stands."""
    first = MaskSet(
        np.array([[0, 0, 1, 2], [0, 0, 1, 2], [0, 2, 1, 4], [0, 2, 1, 4], [0, 1, 1, 3]]),
        (1, 4),
        (1, 1),
    )
    second = MaskSet(np.array([[0, 0, 1, 1], [0, 1, 1, 2], [0, 2, 1, 4]]), (1, 4), (1, 1))
    defense = defenses.double_masking(first, second)
    single, pair = _places(defense)
    row = np.zeros(len(defense.masked_images), int)
    row[pair[4, 0]] = 1  # pixels 0, 1 and 2: only the last mask's row has it
    assert (row[pair[:4]] == 0).all()
    hiding = _hidden(defense)[single]
    assert hiding[:4].any(axis=0).all()  # the good rows 0 to 3 cover
    as_one_set = TwoRounds(single, pair, defense.groups, symmetric=True)
    assert good_rows(jnp.asarray(row), jnp.asarray(0), as_one_set)
    assert _attacked(defense, row, 0)
    facts = _one(defense, row, 0)
    assert not facts["certificate"]
    assert not facts["worst_case"]


def test_a_row_with_only_wrong_labels_need_not_win():
    """Exactness: with two sets the attacker may yet fail to make y lead, or to come first."""
    rng = np.random.default_rng(0)
    survivors = 0
    for _ in range(40):
        defense = _random_defense(rng, "two sets", "largest", 64, 2)
        rows, labels = _tables(rng, defense, 60, 2)
        hidden = _hidden(defense)
        robust = literal.table_adversary(_rule(defense, 2), rows, hidden, labels, 2)
        single, pair = _places(defense)
        wrong = rows != labels[:, None]
        for loc in range(hidden.shape[1]):
            kept = hidden[pair, loc]
            out = ~hidden[single, loc]
            uniform = (wrong[:, pair] | ~kept).all(axis=2) & out
            survivors += (uniform.any(axis=1) & robust).sum()
    assert survivors > 0


def test_mutant_a_second_set_that_does_not_cover():
    """All labels true, and the attacker's row stands, as no second mask hides the patch."""
    first = MaskSet(np.array([[0, 0, 1, 2], [0, 2, 1, 4], [0, 1, 1, 4]]), (1, 4), (1, 1))
    second = MaskSet(np.array([[0, 0, 1, 4]]), (1, 4), (1, 1))
    boxes = np.array([[[0, 0, 1, 3]]], np.int32)
    boxes.setflags(write=False)
    object.__setattr__(second, "boxes", boxes)  # as no constructor allows it
    defense = defenses.double_masking(first, second)
    row = np.zeros(len(defense.masked_images), int)
    assert _one(defense, row, 0)["two_mask_correct"]
    assert _attacked(defense, row, 0)
    assert not _one(defense, row, 0)["certificate"]


def test_a_second_set_for_another_patch_or_image_is_refused():
    first = mask_sets.budgeted_grid(12, 3, masks_per_axis=3)
    for second in (
        mask_sets.budgeted_grid(12, 2, masks_per_axis=3),
        mask_sets.budgeted_grid(14, 3, masks_per_axis=3),
    ):
        with pytest.raises(ValueError, match="build both for the same threat"):
            defenses.double_masking(first, second)


# --- early exit ---


@pytest.mark.parametrize("kind", ["two sets", "one set", "many masks"])
def test_early_exit_gives_the_verdicts_of_the_whole_table(kind):
    rng = np.random.default_rng(sum(map(ord, kind)))
    left_out = 0
    for ties in ("largest", "smallest"):
        if kind == "many masks":
            first = random_cover(rng, 7, 5, 1)
            second = random_cover(rng, 4, 5, 1)
            defense = defenses.double_masking(first, second, ties=ties)
        else:
            defense = _random_defense(rng, kind, ties, 1 << 30, 2)
        table, labels = random_table(rng, defense, 64)
        known = evaluated(rng, defense, table, labels)
        left_out += (~known).sum()
        whole = facts(defense, table, labels)
        fillings = [filled_in(table, known, UNKNOWN, np.inf, 0)]
        for _ in range(4):
            anything = rng.integers(0, CLASSES, known.shape)
            fillings.append(filled_in(table, known, anything, 1, rng.random(known.shape)))
        for filled in fillings:
            for fact, values in facts(defense, filled, labels).items():
                np.testing.assert_array_equal(values, whole[fact], err_msg=fact)
        alone = evaluated(rng, defense, table, [None] * len(labels))
        anything = rng.integers(0, CLASSES, known.shape)
        filled = filled_in(table, alone, anything, 1, rng.random(known.shape))
        np.testing.assert_array_equal(defense.rule(filled), whole["answer"])
    assert left_out > 0


def test_a_lone_mask_with_a_wrong_row_is_not_always_lost():
    """Two first masks and two sets: the true label leads by the order of ties, and is robust."""
    boxes = [[[0, 0, 1, 1], [0] * 4], [[0, 2, 1, 3], [0] * 4], [[0, 1, 1, 2], [0, 3, 1, 4]],
             [[0, 2, 1, 4], [0] * 4]]  # fmt: skip
    first = MaskSet(np.array([[0, 0, 1, 2], [0, 1, 1, 4]]), (1, 4), (1, 1))  # ab, bcd
    second = MaskSet(np.array(boxes), (1, 4), (1, 1))  # a, c, bd, cd
    defense = defenses.double_masking(first, second)
    single, pair = _places(defense)
    row = np.ones(len(defense.masked_images), np.int32)
    row[pair[0, 1]] = 0  # abc: at a, mask ab alone hides the patch, and does not stand
    facts = _one(defense, row, 1)
    assert facts["worst_case"]
    assert not facts["certificate"]
    assert not _attacked(defense, row, 1)
    assert _attacked(defense, 1 - row, 0)  # the other order
    known = np.zeros(len(row), bool)
    known[[*single, pair[0, 1]]] = True
    seen = Seen(row, np.ones(len(row), np.float16), known)
    assert sorted(defense.open_columns(seen, 1)) == np.flatnonzero(~known).tolist()


# --- sets as users name them ---

build = functools.partial(defense_specs.build, image_size=(32, 32), threat=(5, 5))


@pytest.mark.parametrize(
    ("spec", "passes"),
    [
        ("mask_size=12", 136),
        ("tiling=exact,mask_size=12,coverage=2", 504),
        ("tiling=exact,mask_size=12,coverage=4", 1964),
        ("masks_per_axis=4", 136),
        # Of the second masks, those inside a first mask add nothing: 4 of each; 6 (above) or 3.
        ("masks_per_axis=2,second_masks_per_axis=4", 4 * (16 - 4) + 4),
        (
            "masks_per_axis=2,second_tiling=exact,second_mask_size=12,second_coverage=1x2",
            2 * (32 - 6) + 2 * (32 - 3) + 4,
        ),
    ],
)
def test_unions_of_sets_that_the_command_line_names(spec, passes):
    assert len(build("double_masking:" + spec).masked_images) == passes


def test_a_second_set_is_named_in_reports():
    defense = build("double_masking:masks_per_axis=6,second_masks_per_axis=4")
    assert str(defense).startswith(
        "double_masking: 36 masks of 9x9 for 5x5 patches on 32x32, then 16 of 11x11, "
    )
    assert build("double_masking:masks_per_axis=6").masks_and_threat == str(defense.mask_set)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("second_masks_per_axis=4,second_mask_size=9", "expected only one of"),
        ("second_colour=4", "unknown option 'second_colour'"),
        ("second_coverage=2", "unknown option 'second_coverage'"),
        ("second_tiling=exact,second_mask_size=4", "expected at least the patch"),
        ("second_ties=largest", "unknown option 'second_ties'"),
    ],
)
def test_bad_second_sets_are_one_clear_error(spec, message):
    with pytest.raises(ValueError, match=message):
        build("double_masking:" + spec)
    with pytest.raises(ValueError, match="unknown option 'second_masks_per_axis'"):
        build("challenger_masking:second_masks_per_axis=4")
