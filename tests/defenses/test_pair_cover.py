"""Pair covers: every two locations share a mask, one round recovers, and what breaks otherwise."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import numpy as np
import oracle
import oracle_pair_cover as literal
import pytest
from covers import random_cover

from certmask_jax import CoverageError, data, defenses, mask_sets, models, predict, weights
from certmask_jax.defenses import adversary
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.pair_cover_recovery import pair_cover_worst_case
from certmask_jax.inference import defended_model
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import finite_planes, geometry, pair_covers, partitions
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.programs import defense_specs
from certmask_jax.tables.prediction_table import NO_LABEL, UNKNOWN, from_labels

# --- mask sets ---


def _hidden(masks: MaskSet) -> np.ndarray:
    """Every mask against every location, by painting: ``bool[N, L]``."""
    return oracle.hides(masks.boxes, masks.image_size, masks.patch_size).reshape(len(masks), -1)


SETS = {
    "2/3": lambda n, p: pair_covers.pairs_of_blocks(n, p, rows=(2, 3)),
    "2/3 transposed": lambda n, p: pair_covers.pairs_of_blocks(n, p, rows=(2, 3), transposed=True),
    "2x3": lambda n, p: pair_covers.pairs_of_blocks(n, p, rows=(3, 3)),
    "3/4": lambda n, p: pair_covers.pairs_of_blocks(n, p, rows=(3, 4)),
    "1/1/1": lambda n, p: pair_covers.pairs_of_blocks(n, p, rows=(1, 1, 1)),
    "AG(2,2)": lambda n, p: pair_covers.affine_plane(n, p, order=2),
    "AG(2,3)": lambda n, p: pair_covers.affine_plane(n, p, order=3),
    "AG(2,4)": lambda n, p: pair_covers.affine_plane(n, p, order=4),
    "Fano": pair_covers.fano_plane,
    "budget 15": lambda n, p: pair_covers.pair_cover(n, p, budget=15),
}
COUNTS = dict(zip(SETS, (10, 10, 15, 21, 3, 6, 12, 20, 7, 15), strict=True))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("image", "patch"), [(12, 3), ((11, 14), (2, 4)), ((13, 9), (1, 3)), (8, 5), (7, 4)]
)
def test_every_pair_of_locations_shares_a_mask(name, image, patch):
    masks = SETS[name](image, patch)
    assert len(masks) <= COUNTS[name]
    if name != "budget 15":
        assert len(masks) == COUNTS[name]
    assert literal.unpaired(_hidden(masks)) == []
    areas = [oracle.paint(mask, masks.image_size).sum() for mask in masks.boxes]
    assert partitions.hidden_areas(masks.boxes, masks.image_size).tolist() == areas


@pytest.mark.parametrize("order", [2, 3, 4, 5, 7, 8, 9, 16])
def test_affine_planes(order):
    assert literal.is_affine_plane(finite_planes.affine_lines(order), order)


def test_planes_on_pixels_have_as_many_masks_as_lines():
    counts = [len(pair_covers.affine_plane(32, 5, order=q)) for q in (2, 3, 4, 5, 7, 8, 9)]
    assert counts == [6, 12, 20, 30, 56, 72, 90]


def test_the_fields_of_4_and_9_elements_by_hand():
    add, times = finite_planes.field_tables(4)  # 2 = x, 3 = x + 1, x^2 = x + 1
    assert add[2].tolist() == [2, 3, 0, 1]
    assert times[2].tolist() == [0, 2, 3, 1]
    add, times = finite_planes.field_tables(9)  # 3 = x; x^2 = -1 = 2
    assert add[4, 8] == 0  # (x + 1) + (2 x + 2)
    assert times[3, 3] == 2
    assert times[4, 4] == 6  # (x + 1)^2 = x^2 + 2 x + 1 = 2 x


def test_the_fano_plane():
    lines = finite_planes.fano_lines()
    assert lines.shape == (7, 3)
    for a, b in itertools.combinations(range(7), 2):
        assert sum(a in line and b in line for line in lines) == 1


@pytest.mark.parametrize("order", [0, 1, 6, 10, 12, 100, 2.0])
def test_an_order_without_a_field_is_refused(order):
    with pytest.raises(ValueError, match=r"prime power from 2 to 64 .* got"):
        pair_covers.affine_plane(224, 23, order=order)


def test_splits_are_exact_and_even():
    lengths = {k: [b - a for a, b in mask_sets.stretches(28, k)] for k in (2, 3, 4, 5, 6)}
    assert lengths == {
        2: [14, 14], 3: [9, 10, 9], 4: [7] * 4, 5: [6, 5, 6, 5, 6], 6: [5, 4, 5, 5, 4, 5],
    }  # fmt: skip
    for count in range(1, 40):
        for parts in range(1, count + 1):
            stretches = mask_sets.stretches(count, parts)
            assert [x for a, b in stretches for x in range(a, b)] == list(range(count))
            sizes = {b - a for a, b in stretches}
            assert sizes <= {count // parts, -(-count // parts)}


def test_blocks_on_cifar_by_hand():
    """28 x 28 locations, a margin of 4 pixels; heights 11 and 17 are as 2 to 3."""
    masks = pair_covers.pairs_of_blocks(32, 5, rows=(2, 3))
    blocks = [
        [0, 0, 15, 18], [0, 14, 15, 32], [11, 0, 32, 13], [11, 9, 32, 23], [11, 19, 32, 32],
    ]  # fmt: skip
    assert masks.boxes.tolist() == [list(pair) for pair in itertools.combinations(blocks, 2)]
    assert partitions.hidden_areas(masks.boxes, (32, 32)).max() == 2 * 21 * 13
    three = pair_covers.pairs_of_blocks(32, 5, rows=(3, 3, 3))
    assert sorted(set(three.boxes[..., 0].ravel().tolist())) == [0, 9, 19]
    assert three.boxes[0].tolist() == [[0, 0, 13, 13], [0, 9, 13, 23]]


@pytest.mark.parametrize("rows", [(2, 3), (3, 4), (1, 2), (2, 1, 2), (4, 5, 4)])
def test_no_other_heights_of_two_rows_hide_less(rows):
    """The descent ends in the best of all heights for which rows of one length are alike."""
    masks = pair_covers.pairs_of_blocks(32, 5, rows=rows)
    least = _rank(masks)
    for heights in itertools.product(range(1, 28), repeat=len(rows)):
        kinds = {n: [h for h, m in zip(heights, rows, strict=True) if m == n] for n in rows}
        if sum(heights) != 28 or any(max(k) - min(k) > 1 for k in kinds.values()):
            continue
        edges = np.cumsum([0, *heights])
        blocks = [
            [edges[i], a, edges[i + 1] + 4, b + 4]
            for i, n in enumerate(rows)
            for a, b in mask_sets.stretches(28, n)
        ]
        boxes = np.array(list(itertools.combinations(blocks, 2)))
        assert least <= _rank(MaskSet(boxes, (32, 32), (5, 5)))


def _rank(masks: MaskSet) -> tuple[int, float]:
    areas = [oracle.paint(mask, masks.image_size).sum() for mask in masks.boxes]
    return max(areas), sum(areas) / len(areas)


def test_the_budget_takes_the_least_hidden_area():
    for image, patch in ((14, 3), ((12, 18), (2, 5))):
        counts = geometry.num_locations(image, patch)
        candidates = []
        for blocks, transposed in itertools.product(range(3, 8), (False, True)):
            down, across = counts[::-1] if transposed else counts
            for cuts in range(min(blocks, down)):
                rows = [b - a for a, b in mask_sets.stretches(blocks, cuts + 1)]
                if max(rows) <= across:
                    masks = pair_covers.pairs_of_blocks(
                        image, patch, rows=rows, transposed=transposed
                    )
                    candidates.append((_rank(masks), len(masks)))
        for budget in (3, 5, 6, 10, 15, 20, 21):
            cover = pair_covers.pair_cover(image, patch, budget=budget)
            assert len(cover) <= budget
            assert _rank(cover) == min(rank for rank, count in candidates if count <= budget)


def test_fano_hides_least_among_all_labellings_of_its_partitions():
    masks = pair_covers.fano_plane(10, 3)
    lines = finite_planes.fano_lines()
    for rows, transposed in itertools.product([(3, 4), (7,), (2, 3, 2)], (False, True)):
        pairs = pair_covers.pairs_of_blocks(10, 3, rows=rows, transposed=transposed)
        blocks = [pairs.boxes[0, 0], *pairs.boxes[:6, 1]]  # pairs 01, 02, ..., 06
        for order in list(itertools.permutations(range(7)))[::97]:
            boxes = np.array([[blocks[order[i]] for i in line] for line in lines])
            assert _rank(masks) <= _rank(MaskSet(boxes, (10, 10), (3, 3)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pair_covers.pairs_of_blocks(12, 3, rows=(2,)), "at least 3"),
        (lambda: pair_covers.pairs_of_blocks(12, 3, rows=()), "at least 3"),
        (lambda: pair_covers.pairs_of_blocks(12, 3, rows=(2, 0, 3)), "at least 3"),
        (lambda: pair_covers.pairs_of_blocks(12, 10, rows=(3, 4)), "at most 3 rows of at most 3"),
        (lambda: pair_covers.pairs_of_blocks((12, 4), 3, rows=(1, 1, 1), transposed=True),
         "at most 2 rows of at most 10 .*transposed"),
        (lambda: pair_covers.affine_plane(12, 10, order=4), "at most 3 rows"),
        (lambda: pair_covers.fano_plane(12, 11), "at least 7 locations"),
        (lambda: pair_covers.pair_cover(12, 12, budget=9), "at least 3 locations"),
        (lambda: pair_covers.pair_cover(12, 3, budget=2), "from 3 masks"),
        (lambda: pair_covers.pair_cover(12, 3, budget=5000), "got 5000"),
        (lambda: pair_covers.pair_cover(12, 13, budget=9), "patch that fits"),
    ],
)  # fmt: skip
def test_bad_sizes(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("build", [pair_covers.check, defenses.pair_cover])
def test_a_set_in_which_two_locations_share_no_mask_is_refused_with_them(build):
    masks = pair_covers.pairs_of_blocks(12, 3, rows=(2, 2))
    build(masks)
    boxes = masks.boxes.copy()
    boxes[1, 1] = boxes[0, 1]  # blocks 0 and 2 are no longer hidden together
    holed = MaskSet(boxes, (12, 12), (3, 3), name="holed")
    first, second = (0, 0), (5, 0)
    assert first[0] * 10 + first[1] in [a for a, _ in literal.unpaired(_hidden(holed))]
    with pytest.raises(CoverageError, match="holed: expected a pair cover") as error:
        build(holed)
    named = re.findall(r"the 3x3 patch at row (\d+), column (\d+)", str(error.value))
    (a, b), (c, d) = [tuple(map(int, one)) for one in named]
    pairs = literal.unpaired(_hidden(holed))
    assert (a * 10 + b, c * 10 + d) in pairs or (c * 10 + d, a * 10 + b) in pairs
    assert {(a >= 5, b >= 5), (c >= 5, d >= 5)} == {(False, False), (True, False)}
    assert second[0] >= 5
    # A plain grid is a cover, and far from a pair cover.
    with pytest.raises(CoverageError, match=r"hides both the 3x3 patch at row \d+, column \d+"):
        build(mask_sets.budgeted_grid(12, 3, masks_per_axis=3))


def test_the_check_equals_brute_force_on_random_covers():
    rng = np.random.default_rng(2)
    are_covers = []
    for _ in range(200):
        masks = random_cover(rng, int(rng.integers(1, 7)), int(rng.integers(2, 7)), 2)
        is_pair_cover = not literal.unpaired(_hidden(masks))
        are_covers.append(is_pair_cover)
        if is_pair_cover:
            pair_covers.check(masks)
        else:
            with pytest.raises(CoverageError):
                pair_covers.check(masks)
    assert 20 < sum(are_covers) < 180


# --- the mutant of ceil-stride blocks, and the even split of double masking ---


def test_ceil_stride_blocks_reach_beyond_the_image_or_hide_more():
    """28 locations into 3 at a stride of 10 reach 30: off the image, or pulled back and larger."""
    reaching = [[a, 0, a + 14, 14] for a in (0, 10, 20)]
    with pytest.raises(ValueError, match=r"0 <= top <= bottom <= 32"):
        MaskSet(np.array(reaching), (32, 32), (5, 5))
    starts = (0, 10, 18)
    blocks = [[t, left, t + 14, left + 14] for t in starts for left in starts]
    ceil = MaskSet(np.array(list(itertools.combinations(blocks, 2))), (32, 32), (5, 5))
    pair_covers.check(ceil)  # sound, but ...
    even = pair_covers.pairs_of_blocks(32, 5, rows=(3, 3, 3))
    assert len(ceil) == len(even)
    assert _rank(even)[0] < _rank(ceil)[0]
    assert _rank(even)[1] < 0.95 * _rank(ceil)[1]


def test_floor_stride_blocks_leave_a_hole():
    blocks = [[t, 0, t + 13, 32] for t in (0, 9, 18)]
    with pytest.raises(CoverageError, match="row 27"):
        MaskSet(np.array(list(itertools.combinations(blocks, 2))), (32, 32), (5, 5))


@pytest.mark.parametrize(("image", "patch"), [(32, 5), ((9, 20), (3, 2)), (12, 12), ((5, 30), 4)])
def test_even_grids_are_covers_with_as_many_masks_and_none_larger(image, patch):
    for k in range(1, 10):
        published = mask_sets.budgeted_grid(image, patch, masks_per_axis=k)
        even = mask_sets.budgeted_grid(image, patch, masks_per_axis=k, split="even")
        assert oracle.coverage(even.boxes, even.image_size, even.patch_size).min() == 1
        assert oracle.coverage(even.boxes, even.image_size, even.patch_size).max() == 1
        counts = geometry.num_locations(image, patch)
        assert len(even) == min(k, counts[0]) * min(k, counts[1])
        assert all(a <= b for a, b in zip(even.mask_size, published.mask_size, strict=True))


def test_even_grid_on_cifar_by_hand():
    six = mask_sets.budgeted_grid(32, 5, masks_per_axis=6, split="even")
    tops = sorted({(int(t), int(b)) for t, _, b, _ in six.boxes[:, 0]})
    assert tops == [(0, 9), (5, 13), (9, 18), (14, 23), (19, 27), (23, 32)]
    # 28 into 4 is 7 each: the published stride is even already.
    four = [mask_sets.budgeted_grid(32, 5, masks_per_axis=4, split=s) for s in ("even", "stride")]
    np.testing.assert_array_equal(four[0].boxes, four[1].boxes)
    with pytest.raises(ValueError, match=r"stride .as published. or even, got 'odd'"):
        mask_sets.budgeted_grid(32, 5, masks_per_axis=6, split="odd")
    with pytest.raises(ValueError, match="masks_per_axis for an even split"):
        mask_sets.budgeted_grid(32, 5, mask_stride=4, split="even")


# --- rule and proofs ---


def _random_pair_cover(rng, masks: int, width: int, patch: int = 1) -> MaskSet:
    """Random pixel sets of a ``1 x width`` image, some of them often larger, and some repeated."""
    while True:
        density = rng.uniform(0.5, 0.95)
        hidden = rng.random((masks, width)) < density
        hidden[rng.random(masks) < 0.2] = hidden[0]
        boxes = np.zeros((masks, width, 4), dtype=int)
        for mask, pixel in zip(*np.nonzero(hidden), strict=True):
            boxes[mask, pixel] = 0, pixel, 1, pixel + 1
        try:
            cover = MaskSet(boxes, (1, width), (1, patch))
        except CoverageError:
            continue
        if not literal.unpaired(_hidden(cover)):
            return cover


def _random_rows(rng, count: int, columns: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mostly true rows; labels."""
    labels = rng.integers(0, classes, count)
    truth = rng.random((count, columns)) < rng.choice([0.5, 0.75, 0.9, 1.0], (count, 1))
    return np.where(truth, labels[:, None], rng.integers(0, classes, (count, columns))), labels


@pytest.mark.parametrize("ties", ["largest", "smallest"])
def test_the_rule_is_the_literal_one_over_all_locations(ties):
    """The literal one looks at every location and mask, ours at minimal groups, masked images."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        masks = _random_pair_cover(rng, int(rng.integers(1, 8)), int(rng.integers(2, 6)), 2)
        defense = defenses.pair_cover(masks, ties=ties)
        rows, _ = _random_rows(rng, 80, len(defense.masked_images), 3)
        rows[rng.random(rows.shape) < 0.03] = NO_LABEL
        hidden, index = _hidden(masks), unions(masks, 1)[1]
        expected = [literal.pair_cover_rule(row[index], hidden, ties) for row in rows]
        table = from_labels(rows, defense.masked_images, num_classes=3)
        np.testing.assert_array_equal(defense.rule(table), expected)


def test_no_two_locations_settle_different_labels():
    """All tables of all small pair covers; without the pair cover they do."""
    rng = np.random.default_rng(4)
    for _ in range(60):
        hidden = _hidden(_random_pair_cover(rng, int(rng.integers(1, 6)), 4))
        for row in itertools.product(range(2), repeat=len(hidden)):
            assert len(literal.settled_labels(row, hidden)) <= 1
    apart = np.array([[True, False], [False, True]])
    assert literal.settled_labels([0, 1], apart) == {0, 1}


def test_all_tables_of_all_pair_covers_of_three_locations():
    """Every set of distinct masks that is a pair cover, every table of two or three classes.

    The closed form is compiled once: sets are padded with repeated groups and masks of no weight.
    """
    subsets = [s for r in (1, 2, 3) for s in itertools.combinations(range(3), r)]
    cases = []
    for size in (1, 2, 3, 4, 5):
        for chosen in itertools.combinations(subsets, size):
            hidden = np.array([[x in s for x in range(3)] for s in chosen])
            if not literal.unpaired(hidden):
                cases.append(hidden)
    assert len(cases) == 64
    for classes in (2, 3):
        rows, robust, hiding, labels = [], [], [], []
        for hidden in cases:
            for row in itertools.product(range(classes), repeat=len(hidden)):
                for y in range(classes) if classes == 2 else (1,):
                    rows.append(np.pad(row, (0, 5 - len(row))))
                    hiding.append(hidden)
                    labels.append(y)
                    robust.append(literal.robust(row, hidden, y, classes, "largest"))
        verdicts = _closed_form(rows, labels, hiding, 5, 3, classes, "largest")
        np.testing.assert_array_equal(verdicts, robust)
        assert 0 < sum(robust) < len(robust)


@pytest.mark.parametrize("ties", ["largest", "smallest"])
@pytest.mark.parametrize("classes", [2, 3])
def test_worst_case_equals_the_table_adversary_on_random_pair_covers(ties, classes):
    """2,500 cases each: repeated masks, redundant masks, groups inside groups, ties."""
    rng = np.random.default_rng(classes)
    rows, labels, hiding, robust, all_right = [], [], [], [], []
    while len(rows) < 2500:
        width = int(rng.integers(2, 5))
        count = int(rng.integers(2, 9))
        hidden = _hidden(_random_pair_cover(rng, count, width))
        distinct = np.unique(hidden, axis=0)
        if classes ** (~hidden).sum(axis=0).max() > 300 or len(hidden) > len(distinct) + 2:
            continue
        # Equal masks are one masked image: they say the same, the attacker's choice included.
        of_mask = np.array([(distinct == mask).all(axis=1).argmax() for mask in hidden])
        for row, y in zip(*_random_rows(rng, 10, len(distinct), classes), strict=True):
            rows.append(np.pad(row, (0, 8 - len(row))))
            labels.append(y)
            hiding.append((distinct, np.bincount(of_mask)))
            robust.append(_robust_with_repeats(row, distinct, of_mask, y, classes, ties))
            all_right.append((row == y).all())
    groups = [h for h, _ in hiding]
    verdicts = _closed_form(rows, labels, groups, 8, 5, classes, ties, [w for _, w in hiding])
    np.testing.assert_array_equal(verdicts, robust)
    robust, all_right = np.array(robust), np.array(all_right)
    assert robust[all_right].all()
    assert (robust & ~all_right).sum() > 100
    assert (~robust).sum() > 100


def _robust_with_repeats(row, distinct, of_mask, y, classes, ties) -> bool:
    for location in range(distinct.shape[1]):
        free = np.flatnonzero(~distinct[:, location])
        picks = np.array(list(itertools.product(range(classes), repeat=len(free))), dtype=int)
        rows = np.repeat(row[None], len(picks), axis=0)
        rows[:, free] = picks
        hidden = distinct[of_mask]
        if (literal.rules_of_many(rows[:, of_mask], hidden, classes, ties) != y).any():
            return False
    return True


def _closed_form(rows, labels, hiding, width, locations, classes, ties, weights=None):
    """One compilation for many covers of one shape."""
    groups, votes = [], []
    for number, hidden in enumerate(hiding):
        minimal = _minimal(hidden.T)
        spare = ((0, locations - len(minimal)), (0, width - len(hidden)))
        minimal = np.pad(minimal, (spare[0], (0, 0)), mode="edge")
        groups.append(np.pad(minimal, ((0, 0), spare[1])))
        given = np.ones(len(hidden)) if weights is None else weights[number]
        votes.append(np.pad(given, spare[1]))
    proof = functools.partial(pair_cover_worst_case, num_classes=classes, ties=ties)
    over = jax.jit(jax.vmap(proof))
    return np.asarray(
        over(
            np.array(rows, np.int32), np.array(labels, np.int32), np.array(groups),
            np.array(votes, np.int32),
        )
    )  # fmt: skip


def _minimal(groups: np.ndarray) -> np.ndarray:
    kept = {tuple(g) for g in groups.tolist()}
    inside = lambda a, b: a != b and all(y or not x for x, y in zip(a, b, strict=True))  # noqa: E731
    return np.array(sorted(g for g in kept if not any(inside(o, g) for o in kept)))


def test_the_defense_as_a_value_equals_the_table_adversary():
    """Through Defense and adversary.worst_case; certificates imply the worst case."""
    rng = np.random.default_rng(5)
    counts = np.zeros(3, int)
    for number in range(12):
        masks = _random_pair_cover(rng, int(rng.integers(2, 7)), int(rng.integers(2, 6)), 2)
        masks = _all_but_one(4 + number // 6) if number % 6 == 0 else masks
        defense = defenses.pair_cover(masks)
        assert defense.exact
        free = (~_hidden(masks)).sum(axis=0).max()
        if 3**free > 3000:
            continue
        rows, labels = _random_rows(rng, 16, len(defense.masked_images), 3)
        table = from_labels(rows, defense.masked_images, num_classes=3)
        hidden = oracle.hides(
            defense.masked_images.boxes, masks.image_size, masks.patch_size
        ).reshape(len(defense.masked_images), -1)
        expected = [
            adversary.worst_case(defense.row_rule, row, hidden.T, y, num_classes=3)
            for row, y in zip(rows, labels, strict=True)
        ]
        worst, certified = defense.worst_case(table, labels), defense.certificate(table, labels)
        correct = defense.conditions(table, labels)["all_masks_correct"]
        np.testing.assert_array_equal(worst, expected)
        assert worst[certified].all()
        assert certified[correct].all()
        np.testing.assert_array_equal(correct, (rows == labels[:, None]).all(axis=1))
        counts += worst.sum(), certified.sum(), correct.sum()
    assert counts[0] > counts[1] >= counts[2] > 10


@pytest.mark.parametrize("name", ["2/3", "2x3", "3/4", "AG(2,2)", "AG(2,3)", "Fano"])
def test_where_two_locations_share_one_mask_robust_is_all_masks_right(name):
    masks = SETS[name](24, 3)
    defense = defenses.pair_cover(masks)
    shared = defense.groups.astype(int) @ defense.groups.T.astype(int)
    assert (shared[~np.eye(len(shared), dtype=bool)] == 1).all()
    rng = np.random.default_rng(0)
    rows = np.zeros((200, len(masks)), int)
    for row in rows[40:]:
        row[rng.integers(0, len(row), rng.integers(1, 3))] = rng.integers(1, 4)
    table = from_labels(rows, defense.masked_images, num_classes=4)
    expected = (rows == 0).all(axis=1)
    labels = np.zeros(200, int)
    np.testing.assert_array_equal(defense.worst_case(table, labels), expected)
    np.testing.assert_array_equal(defense.certificate(table, labels), expected)
    # And no rule could do better: a wrong mask makes the table one that an image of the other
    # class, with all masks right, may have as well.
    first, second = next((a, b) for a in range(len(shared)) for b in range(len(shared)) if a != b)
    common = int((defense.groups[first] & defense.groups[second]).argmax())
    of_y, of_z = np.zeros(len(masks), int), np.ones(len(masks), int)
    of_y[common] = 1
    attacked_y = np.where(defense.groups[first], of_y, of_z)
    attacked_z = np.where(defense.groups[second], of_z, attacked_y)
    np.testing.assert_array_equal(attacked_y, attacked_z)


def _all_but_one(count: int) -> MaskSet:
    """The mask of everything, and for each of some locations the mask of all others."""
    boxes = np.zeros((count + 1, 2, 4), int)
    boxes[0, 0] = 0, 0, 1, count
    for hole in range(count):
        boxes[hole + 1] = [[0, 0, 1, hole], [0, hole + 1, 1, count]]
    return MaskSet(boxes, (1, count), (1, 1))


def test_a_redundant_pair_cover_certifies_images_with_a_wrong_mask():
    """Every two of four locations share three masks, of which one may be wrong.

    Say, the one with a hole at 1. At location 0 the masks are y, y, y and z, and the attacker has
    one more; what 0 shares with another location has a y, so none settles z, and 3 beat 2.
    """
    defense = defenses.pair_cover(_all_but_one(4))
    rows = np.ones((4, 5), int)
    rows[0, 2] = 0
    rows[1, 2:4] = 0  # two of them wrong: what is shared with another location may be wrong
    rows[2, 0] = 0  # the mask of everything
    table = from_labels(rows, defense.masked_images, num_classes=2)
    labels = np.ones(4, int)
    assert defense.worst_case(table, labels).tolist() == [True, False, True, True]
    assert defense.certificate(table, labels).tolist() == [False, False, False, True]
    hidden = _hidden(defense.mask_set)
    for row, expected in zip(rows, (True, False, True, True), strict=True):
        assert literal.robust(row, hidden, 1, 2, "largest") == expected


def test_a_mask_that_hides_nothing_of_a_minimal_group_may_say_anything():
    """Two masks of everything but one pixel more: the small mask decides no location."""
    boxes = np.array([[[0, 0, 1, 3]], [[0, 0, 1, 1]]])
    defense = defenses.pair_cover(MaskSet(boxes, (1, 3), (1, 1)))
    table = from_labels([[1, 0], [0, 1]], defense.masked_images, num_classes=2)
    for proof in (defense.certificate, defense.worst_case):
        assert proof(table, [1, 1]).tolist() == [True, False]
    assert not defense.conditions(table, [1, 1])["all_masks_correct"].any()


# --- mutants: weaken the condition, and the adversary breaks it ---


def _broken(rule, hidden, row, y=0, classes=2) -> bool:
    return not oracle.table_adversary(rule, row, hidden, y, classes)


def test_mutant_a_pair_of_locations_without_a_common_mask(monkeypatch):
    """All masks right, one pair missing: with the patch at the one, the other settles z."""
    masks = pair_covers.pairs_of_blocks(6, 1, rows=(2, 2))
    boxes = masks.boxes.copy()
    boxes[1, 1] = boxes[0, 1]
    holed = MaskSet(boxes, masks.image_size, masks.patch_size)
    monkeypatch.setattr(pair_covers, "check_groups", lambda *_: None)
    whole, broken = defenses.pair_cover(masks), defenses.pair_cover(holed)
    for defense, survives in ((whole, True), (broken, False)):
        row = np.zeros(len(defense.masked_images), int)
        for y in (0, 1):
            robust = adversary.worst_case(
                defense.row_rule, row + y, defense.groups, y, num_classes=2
            )
            # With ties for the largest, the first location that settles decides between the two.
            assert robust == survives or (not survives and y == 1)
        results = [
            adversary.worst_case(defense.row_rule, row + y, defense.groups, y, num_classes=2)
            for y in (0, 1)
        ]
        assert all(results) == survives
    hidden = _hidden(holed)
    assert _broken(lambda labels: literal.pair_cover_rule(labels, hidden), hidden, [0] * 6)
    hidden = _hidden(masks)
    assert not _broken(lambda labels: literal.pair_cover_rule(labels, hidden), hidden, [0] * 6)


def test_mutant_any_for_all():
    hidden = _hidden(pair_covers.pairs_of_blocks((1, 4), 1, rows=(1, 1, 1), transposed=True))
    for need, broken in ((all, False), (any, True)):
        rule = functools.partial(literal.pair_cover_rule, hidden=hidden, need=need)
        assert any(_broken(rule, hidden, [y] * 3, y) for y in (0, 1)) == broken


def test_mutant_the_majority_alone():
    hidden = _hidden(pair_covers.pairs_of_blocks((1, 4), 1, rows=(4,)))
    assert _broken(lambda v: oracle._most_frequent(v, "largest"), hidden, [0] * 6)


def test_one_mask_correctness_of_a_plain_cover_certifies_nothing():
    """Soundness, 2.4, with pixels: two clean images that differ in two patches have a common one.

    Both are right under every single mask of a cover, and no rule whatever can be right on the
    patched image that they share. Under a pair cover they cannot both be right on all masks.
    """

    def classify(image, mask):
        """The larger of the visible of pixels 0 and 3; 0 means hidden, and is class 0."""
        seen = np.where(mask, 0, image)
        return int(max(seen[0], seen[3]))

    ones, twos = np.array([1, 0, 0, 1]), np.array([2, 0, 0, 2])
    common = np.array([1, 0, 0, 2])
    assert (common != ones).sum() == (common != twos).sum() == 1  # one pixel patched in each

    def labels(image, masks):
        return [classify(image, oracle.paint(mask, (1, 4))[0]) for mask in masks.boxes]

    plain = mask_sets.budgeted_grid((1, 4), 1, masks_per_axis=(1, 4))
    assert set(labels(ones, plain)) == {1}
    assert set(labels(twos, plain)) == {2}
    with pytest.raises(CoverageError):
        defenses.pair_cover(plain)
    covering = pair_covers.pairs_of_blocks((1, 4), 1, rows=(4,))
    assert set(labels(ones, covering)) == {0, 1}
    assert set(labels(twos, covering)) == {0, 2}
    # The rule's answer on the patched image cannot be both; on a plain cover it is not robust.
    hidden = _hidden(plain)
    answer = literal.pair_cover_rule(labels(common, plain), hidden)
    assert answer in (1, 2)
    rule = functools.partial(literal.pair_cover_rule, hidden=hidden)
    assert _broken(rule, hidden, labels(ones, plain), 1, 3) or _broken(
        rule, hidden, labels(twos, plain), 2, 3
    )


# --- early exit ---


def _facts(defense, table, labels):
    return {
        "answer": defense.rule(table),
        "worst_case": defense.worst_case(table, labels),
        "certificate": defense.certificate(table, labels),
        **defense.conditions(table, labels),
    }


def _evaluated(rng, defense, table, labels):
    known = np.zeros(table.predictions.shape, bool)
    for i, label in enumerate(labels):
        while True:
            said = np.where(known[i], table.predictions[i], 77).astype(np.int32)
            margins = np.where(known[i], table.margins[i], np.float16(7))
            columns = defense.open_columns(Seen(said, margins, known[i]), label)
            assert not known[i][columns].any()
            assert len(set(columns.tolist())) == len(columns)
            if not len(columns):
                break
            known[i, columns[: rng.integers(1, len(columns) + 1)]] = True
    return known


def _early_exit_cases(rng):
    for name in ("2/3", "2x3", "AG(2,3)", "Fano"):
        yield defenses.pair_cover(SETS[name](12, 3))
    for number in range(4):
        ties = ("largest", "smallest")[number % 2]
        masks = _random_pair_cover(rng, int(rng.integers(2, 9)), int(rng.integers(2, 6)), 2)
        yield defenses.pair_cover(masks, ties=ties)
    for count in (4, 7):
        yield defenses.pair_cover(_all_but_one(count))


@pytest.mark.parametrize("decides", ["verdicts", "answers"])
def test_what_is_left_out_changes_nothing(decides):
    rng = np.random.default_rng(8)
    left_out = 0
    for defense in _early_exit_cases(rng):
        shape = (60, len(defense.masked_images))
        rows, labels = _random_rows(rng, 60, shape[1], 3)
        others = rng.random(60) < 0.1  # unanimously wrong
        rows[others] = rng.integers(0, 3, (others.sum(), 1))
        rows[rng.random(shape) < 0.01] = NO_LABEL
        margins = np.where(rng.random(shape) < 0.01, 0, rng.random(shape)).astype(np.float16)
        table = from_labels(rows, defense.masked_images, num_classes=3, margins=margins)
        asked = labels if decides == "verdicts" else [None] * 60
        known = _evaluated(rng, defense, table, asked)
        left_out += (~known).sum()
        facts = _facts if decides == "verdicts" else lambda d, t, _: {"answer": d.rule(t)}
        whole = facts(defense, table, labels)
        fillings = [np.full(shape, UNKNOWN)] + [rng.integers(-1, 3, shape) for _ in range(6)]
        for filling in fillings:
            filled = from_labels(
                np.where(known, rows, filling),
                defense.masked_images,
                num_classes=3,
                margins=np.where(known, margins, np.where(filling >= -1, 1, np.inf)),
            )
            for fact, values in facts(defense, filled, labels).items():
                np.testing.assert_array_equal(values, whole[fact], err_msg=fact)
    assert left_out > 500


def test_the_first_location_that_settles_the_label_ends_it():
    masks = pair_covers.pairs_of_blocks(12, 3, rows=(3, 3))
    defense = defenses.pair_cover(masks)

    def ask(said, label=None):
        known = np.array([x is not None for x in said])
        labels = np.array([0 if x is None else x for x in said])
        return defense.open_columns(Seen(labels, np.ones(15, np.float16), known), label)

    nothing = [None] * 15
    first = ask(nothing)
    assert len(first) == 5  # the masks of one block of six
    said = list(nothing)
    for column in first:
        said[column] = 2
    assert len(ask(said)) == 0
    assert len(ask(said, 2)) == 10  # a verdict needs all the others
    assert len(ask(said, 1)) == 0  # wrong, and nothing to save
    said[first[0]] = 1
    assert len(ask(said)) == 4  # another block; one of its masks is known
    assert not set(ask(said).tolist()) & set(first.tolist())
    np.testing.assert_array_equal(ask(said, 2), ask(said))  # the verdict is lost, the answer open


def test_a_location_of_which_nothing_is_known_may_yet_settle_any_label():
    """Five masks hide pixel 0 alone; they have the majority, but 1 and 2 may settle pixel 1."""
    boxes = np.array([[0, 0, 1, 1]] * 5 + [[0, 0, 1, 2], [0, 1, 1, 2]])
    defense = defenses.pair_cover(MaskSet(boxes, (1, 2), (1, 1)))
    known = np.array([True, False, False])

    def ask(labels, known):
        return defense.open_columns(
            Seen(np.array(labels), np.ones(3, np.float16), np.array(known)), None
        )

    assert ask([2, 0, 0], known).tolist() == [1]  # settles pixel 0, or not
    assert ask([2, 1, 0], [True, True, False]).tolist() == [2]
    assert ask([2, 1, 0], [True, True, True]).tolist() == []
    table = from_labels([[2, 2, 0], [2, 1, 1], [2, 1, 0]], defense.masked_images, num_classes=3)
    assert defense.rule(table).tolist() == [2, 1, 2]


def test_a_wrong_mask_loses_no_verdict_that_others_may_save():
    """At pixel 0: 0 says z with one vote, the attacker has three, and two are not known yet."""
    boxes = np.array([[0, 0, 1, 1]] + [[0, 0, 1, 3]] * 3 + [[0, 0, 1, 2]] * 2 + [[0, 1, 1, 3]] * 3)
    defense = defenses.pair_cover(MaskSet(boxes, (1, 3), (1, 1)))
    seen = Seen(np.array([0, 1, 0, 1]), np.ones(4, np.float16), np.array([True, True, False, True]))
    assert defense.open_columns(seen, 1).tolist() == [2]
    assert defense.open_columns(seen, None).tolist() == []  # pixel 2 settles the answer
    table = from_labels([[0, 1, 1, 1], [0, 1, 0, 1]], defense.masked_images, num_classes=2)
    assert defense.worst_case(table, [1, 1]).tolist() == [True, False]


# --- with a model, and from the command line ---


def test_the_guarded_classifier_on_real_digits():
    model = models.create("vit_digits")
    params = weights.load(models.default_weights("vit_digits"), model)
    images, labels = (array[:24] for array in data.digits_arrays("test"))
    preprocessing = Preprocessing(model.data_config.mean, model.data_config.std)
    defense = defenses.pair_cover(pair_covers.pair_cover(8, 1, budget=15))
    table = predict(
        model.apply_fn, params, images, defense.masked_images, preprocessing=preprocessing
    )
    guarded = defended_model.defended(
        model.apply_fn, params, defense, channels=1, preprocessing=preprocessing
    )
    answers = guarded(images)
    np.testing.assert_array_equal(answers.labels, defense.rule(table))
    assert answers.masked_images.min() == 5
    assert defense.worst_case(table, labels).any()


@pytest.mark.parametrize(
    ("spec", "masks"),
    [
        ("pair_cover", 15), ("pair_cover:budget=10", 10), ("pair_cover:partition=2/3", 10),
        ("pair_cover:partition=2/3,transposed=true", 10), ("pair_cover:partition=3x3", 36),
        ("pair_cover:plane=3,ties=smallest", 12), ("pair_cover:plane=fano", 7),
        ("double_masking:masks_per_axis=5,split=even", 25), ("minority_reports:split=even", 36),
    ],
)  # fmt: skip
def test_specs(spec, masks):
    assert len(defense_specs.build(spec, (32, 32), (5, 5)).mask_set) == masks


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pair_cover:plane=6", "prime power"),
        ("pair_cover:plane=fan", "expected fano or an order"),
        ("pair_cover:partition=2y3", "2x3"),
        ("pair_cover:partition=1x2", "at least 3"),
        ("pair_cover:budget=2", "from 3 masks"),
        ("pair_cover:budget=9,plane=3", "only one of budget, partition, plane"),
        ("pair_cover:masks_per_axis=3", "expected a pair cover, in which every two locations"),
        ("pair_cover:plane=3,masks_per_axis=3", "unknown option 'masks_per_axis'"),
        ("pair_cover:plane=3,transposed=true", "unknown option 'transposed'"),
        ("double_masking:mask_stride=4,split=even", "masks_per_axis for an even split"),
        ("double_masking:mask_size=9,split=even", "unknown option 'split'"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        defense_specs.build(spec, (32, 32), (5, 5))
