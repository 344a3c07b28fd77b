"""Proofs against any threat equal the table adversary over all placements; mutants are broken."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import oracle_threats
import pytest
from covers import random_cover

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import ALERT, Guarantee
from certmask_jax.defenses.defense import Seen
from certmask_jax.masks import distinct_unions, pair_covers
from certmask_jax.masks.combined_sets import any_shape, for_threat, several_patches
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import UNKNOWN, PredictionTable, from_labels

BUILDERS = {
    "double_masking": defenses.double_masking,
    "challenger_masking": defenses.challenger_masking,
    "minority_reports": lambda m, **k: defenses.minority_reports(m, tau=0.5, **k),
    "certmask": defenses.certmask,
    "certmask_detection": defenses.certmask_detection,
    "two_rounds": lambda m, **k: defenses.double_masking(m, m, **k),  # as if they had two sets
    "plurality": defenses.plurality,
    "minimum_explanation": defenses.minimum_explanation,
    "robust_masking": defenses.robust_masking,
    "pair_cover": defenses.pair_cover,
    "mrcert": defenses.mrcert,
}
PARTICULAR = {"pair_cover", "mrcert"}  # about the masks that they take


def _hidden(defense, threat):
    """Every masked image against every placement, on pixels: ``bool[V, L]``."""
    attacked = oracle_threats.placements(threat.image_size, threat.patches, threat.region)
    return oracle_threats.hidden(defense.masked_images.boxes, threat.image_size, attacked)


def _robust(defense, table, labels, hidden, *, choices=None):
    """The table adversary by exhaustion, for all rows at once: ``bool[T]``."""
    picks = list(itertools.product(range(table.num_classes), choices or (1.0,)))
    allowed = {ALERT} if defense.guarantee == Guarantee.DETECTION else set()
    robust = np.array(defense.rule(table) == labels)
    for location in np.unique(hidden.T, axis=0):
        free = np.flatnonzero(~location)
        if not len(free):
            continue
        every = np.indices((len(picks),) * len(free)).reshape(len(free), -1).T
        count = len(every)
        predictions = np.repeat(table.predictions, count, axis=0)
        trusts = np.repeat(table.confidences, count, axis=0)
        predictions[:, free] = np.tile(np.array([p[0] for p in picks])[every], (len(labels), 1))
        trusts[:, free] = np.tile(np.array([p[1] for p in picks])[every], (len(labels), 1))
        attacked = PredictionTable(
            predictions, np.ones(predictions.shape, np.float16), trusts,
            table.masked_images, table.num_classes,
        )  # fmt: skip
        answers = defense.rule(attacked).reshape(len(labels), count)
        good = (answers == labels[:, None]) | np.isin(answers, list(allowed))
        robust &= good.all(axis=1)
    return robust


def _tables(rng, defense, rows, num_classes, wrong=(0, 0, 0.15, 0.4)):
    shape = (rows, len(defense.masked_images))
    labels = rng.integers(0, num_classes, rows).astype(np.int32)
    flips = rng.random(shape) < rng.choice(wrong, size=(rows, 1))
    said = np.where(flips, rng.integers(0, num_classes, shape), labels[:, None])
    trusts = rng.choice([0.25, 0.5, 0.75], size=shape).astype(np.float16)
    ones = np.ones(shape, np.float16)
    table = PredictionTable(said.astype(np.int16), ones, trusts, defense.masked_images, num_classes)
    return table, labels


def _random_set(rng):
    """A mask set for several patches, several shapes, a region, or some of these at once."""
    match int(rng.integers(0, 4)):
        case 0:  # two patches, on 3 to 5 locations, with 2 to 4 masks
            base = random_cover(rng, int(rng.integers(2, 5)), int(rng.integers(3, 6)), 1)
            return several_patches(base, patches=2)
        case 1:  # two patches of different sizes
            width = int(rng.integers(3, 6))
            return several_patches([random_cover(rng, 2, width, p) for p in (1, 2)])
        case 2:
            threat = Threat.of((3, 4), (1, 2), (2, 1), region=(0, 0, 3, int(rng.integers(2, 5))))
            return for_threat(
                threat, lambda n, p: mask_sets.budgeted_grid(n, p, masks_per_axis=(2, 1))
            )
        case _:
            sets = [random_cover(rng, int(rng.integers(1, 4)), 4, patch) for patch in (1, 2)]
            return any_shape(sets, contained=bool(rng.integers(2)))


def _pair_cover_set(rng):
    """Pairs of three or four blocks in a row, where the attacker may not reach all locations."""
    patch = int(rng.integers(1, 4))
    width = int(rng.integers(patch + 4, patch + 7))
    return pair_covers.pairs_of_blocks((1, width), (1, patch), rows=[int(rng.integers(3, 5))])


def _smaller(rng, threat):
    """A threat of fewer placements, or of smaller patches."""
    if len(threat) == 1 and rng.random() < 0.3:
        height, width = threat.shapes[0]
        return Threat.of(threat.image_size, (height, max(1, width - 1)))
    top, _, bottom, right = threat.bounding_box()
    kept = threat.patches[: int(rng.integers(1, len(threat) + 1))]
    try:
        return Threat(threat.image_size, kept, ((top, int(rng.integers(0, right)), bottom, right),))
    except ValueError:
        return Threat.of(threat.image_size, (1, 1), region=threat.region or None)


@pytest.mark.parametrize("kind", BUILDERS)
def test_worst_case_equals_the_adversary_over_all_placements(kind):
    """2,000 random tables for each defense: sets of every sort, whole and smaller threats."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    choices = (0.0, 1.0) if kind == "minority_reports" else None
    checked = proved = 0
    while checked < 2000:
        own_sets = kind == "pair_cover" and rng.random() < 0.7
        masks = _pair_cover_set(rng) if own_sets else _random_set(rng)
        against = _smaller(rng, masks.threat) if rng.random() < 0.4 else None
        try:
            defense = BUILDERS[kind](masks, against=against)
        except ValueError:
            assert kind in PARTICULAR
            continue
        hidden = _hidden(defense, defense.threat)
        num_classes = int(rng.integers(2, 4))
        most = (num_classes * len(choices or "x")) ** int((~hidden).sum(axis=0).max())
        if most > 800:
            continue
        table, labels = _tables(rng, defense, 200, num_classes)
        robust = _robust(defense, table, labels, hidden, choices=choices)
        worst, certified = defense.worst_case(table, labels), defense.certificate(table, labels)
        if defense.exact:
            np.testing.assert_array_equal(worst, robust)
        assert not (worst & ~robust).any()
        assert not (certified & ~worst).any()
        checked += 200
        proved += worst.sum()
    assert proved > 0 or kind == "certmask"


# --- two patches ---


def test_the_deduplicated_table_gives_the_verdicts_of_the_whole_one():
    """A model that says anything of any pixels: 625 x 625 pairs of ordered pairs of 25 masks."""
    rng = np.random.default_rng(5)
    base = mask_sets.budgeted_grid((5, 5), 1, masks_per_axis=5)  # a mask hides one pixel
    masks = several_patches(base, patches=2)
    defense = defenses.double_masking(masks)
    assert (len(masks), len(defense.masked_images)) == (325, 15275)
    pixels = np.array([np.flatnonzero(oracle.paint(m, (5, 5)).ravel())[0] for m in base.boxes])
    pairs = (1 << pixels[:, None] | 1 << pixels[None, :]).ravel()  # 625, as sets of pixels
    painted = [oracle.paint(m, (5, 5)).ravel() for m in defense.masked_images.boxes]
    keys = np.array([(1 << np.flatnonzero(hidden)).sum() for hidden in painted])
    whole_index = np.full(1 << 25, -1, np.int32)
    whole_index[keys] = np.arange(len(keys))
    index = whole_index[pairs[:, None] | pairs[None, :]]  # [625, 625] -> union
    assert index.shape == (625, 625)
    assert set(index.ravel().tolist()) == set(range(15275))
    said = np.zeros((12, 15275), int)
    for row, count in zip(said[2:], (1, 1, 1, 2, 5, 50, 500, 5000, 15000, 15275), strict=True):
        row[rng.choice(15275, count, replace=False)] = rng.integers(1, 3, count)
    table = from_labels(said, defense.masked_images, num_classes=3)
    labels = np.zeros(12, int)
    correct = np.array([oracle.two_mask_correct(row[index], 0) for row in said])
    assert correct.tolist() == [True] * 2 + [False] * 10
    for verdict in (
        defense.worst_case(table, labels),
        defense.certificate(table, labels),
        defense.conditions(table, labels)["two_mask_correct"],
    ):
        np.testing.assert_array_equal(verdict, correct)
    # The rule on the 625 masks as they are listed, some of them twice.
    doubled = MaskSet(_united_boxes(base), (5, 5), masks.threat)
    listed = defenses.double_masking(doubled)
    answers = listed.rule(table)
    np.testing.assert_array_equal(answers, [oracle.double_masking(row[index]) for row in said])
    np.testing.assert_array_equal(listed.worst_case(table, labels), correct)


def _united_boxes(base):
    one = base.boxes[:, 0]
    i, j = (axis.ravel() for axis in np.indices((len(one), len(one))))
    return np.stack([one[i], one[j]], axis=1)


def _four_pixels():
    return mask_sets.budgeted_grid((1, 4), (1, 1), masks_per_axis=(1, 4))


def _counts(defense):
    """How many pixels each masked image hides."""
    size = defense.mask_set.image_size
    return np.array([oracle.paint(m, size).sum() for m in defense.masked_images.boxes])


def test_mutant_unions_of_three_masks_do_not_certify_two_patches():
    masks = several_patches(_four_pixels(), patches=2)
    defense = defenses.double_masking(masks)
    said = np.where(_counts(defense) <= 3, 0, 1)  # wrong on the union of four alone
    table, labels = from_labels([said], defense.masked_images, num_classes=2), np.zeros(1, int)
    assert (said == 1).sum() == 1
    assert not defense.certificate(table, labels).any()
    assert not _robust(defense, table, labels, _hidden(defense, masks.threat)).any()
    all_right = from_labels([0 * said], defense.masked_images, num_classes=2)
    assert _robust(defense, all_right, labels, _hidden(defense, masks.threat)).all()
    assert defense.certificate(all_right, labels).all()


@pytest.mark.parametrize("build", [defenses.double_masking, defenses.challenger_masking])
def test_mutant_a_one_patch_certificate_is_broken_by_two_patches(build):
    defense = build(_four_pixels())
    table = from_labels([[0] * 10], defense.masked_images, num_classes=2)
    labels = np.zeros(1, int)
    assert defense.certificate(table, labels).all()
    assert _robust(defense, table, labels, _hidden(defense, defense.threat)).all()
    two = Threat.of((1, 4), 1, patches=2)
    assert not _robust(defense, table, labels, _hidden(defense, two)).any()
    with pytest.raises(CoverageError, match="is hidden by 0"):
        build(_four_pixels(), against=two)


# --- shapes and regions ---


def test_mutant_a_certificate_for_a_region_is_broken_outside_of_it():
    masks = _four_pixels()
    inside = Threat.of((1, 4), 1, region=(0, 0, 1, 2))
    placed = defenses.double_masking(masks, against=inside)
    anywhere = defenses.double_masking(masks)
    pair = unions(masks, 2)[1]
    said = np.zeros(10, int)
    said[pair[2, 3]] = 1  # the rows of the masks at pixels 0 and 1 are good
    table, labels = from_labels([said], placed.masked_images, num_classes=2), np.zeros(1, int)
    assert placed.certificate(table, labels).all()
    assert placed.worst_case(table, labels).all()
    assert _robust(placed, table, labels, _hidden(placed, inside)).all()
    assert not anywhere.worst_case(table, labels).any()
    assert not _robust(placed, table, labels, _hidden(placed, masks.threat)).any()
    assert str(placed) == (
        "double_masking: 4 masks of 1x1 for 1x1 patches on 1x4, against 1x1 patches within "
        "0,0,1,2 on 1x4, 10 masked images, recovery"
    )


def test_mutant_a_shape_that_was_left_out_breaks_the_certificate():
    wide = mask_sets.budgeted_grid((3, 3), (1, 2), masks_per_axis=(3, 1))  # whole rows
    defense = defenses.double_masking(wide)
    count = len(defense.masked_images)
    table = from_labels([[0] * count], defense.masked_images, num_classes=2)
    labels = np.zeros(1, int)
    assert defense.certificate(table, labels).all()
    tall = Threat.of((3, 3), (1, 2), (2, 1))
    assert not _robust(defense, table, labels, _hidden(defense, tall)).any()
    with pytest.raises(CoverageError, match="2x1 patch at row 0"):
        defenses.double_masking(wide, against=tall)
    both = any_shape([wide, mask_sets.budgeted_grid((3, 3), (2, 1), masks_per_axis=(1, 3))])
    full = defenses.double_masking(both)
    right = from_labels([[0] * len(full.masked_images)], full.masked_images, num_classes=2)
    assert full.certificate(right, labels).all()


def test_a_smaller_patch_needs_fewer_good_rows():
    """Masks of 4 pixels every 2: a 2-pixel patch has three masks at most, a 1-pixel patch more."""
    rng = np.random.default_rng(0)
    boxes = [[0, max(0, s), 1, min(8, s + 4)] for s in range(-2, 8, 2)]
    masks = MaskSet(boxes, (1, 8), (1, 2))
    whole = defenses.double_masking(masks)
    smaller = defenses.double_masking(masks, against=Threat.of((1, 8), 1))
    table, labels = _tables(rng, whole, 400, 2, wrong=(0.05, 0.1))
    own, less = whole.certificate(table, labels), smaller.certificate(table, labels)
    assert not (own & ~less).any()
    assert less.sum() > own.sum() > 0


def test_dropping_contained_masks_loses_no_two_mask_correct_image():
    rng = np.random.default_rng(1)
    sets = [
        mask_sets.budgeted_grid(6, shape, masks_per_axis=2) for shape in ((1, 3), (1, 1), (3, 1))
    ]
    whole, rest = (defenses.double_masking(any_shape(sets, contained=c)) for c in (True, False))
    assert len(rest.masked_images) < len(whole.masked_images)
    table, labels = _tables(rng, whole, 300, 3, wrong=(0, 0.01, 0.05))
    before, after = (d.conditions(table, labels)["two_mask_correct"] for d in (whole, rest))
    assert not (before & ~after).any()
    assert after.sum() > before.sum() > 0
    assert not (after & ~rest.worst_case(table, labels)).any()


# --- early exit ---


@pytest.mark.parametrize("name", ["double_masking", "challenger_masking"])
@pytest.mark.parametrize("sort", ["two patches", "shapes", "region"])
def test_early_exit_has_the_verdicts_of_the_whole_table(name, sort):
    rng = np.random.default_rng(len(name + sort))
    if sort == "two patches":
        masks = several_patches(mask_sets.budgeted_grid(8, 2, masks_per_axis=3), patches=2)
    elif sort == "shapes":
        masks = any_shape([_grid(8, (2, 4)), _grid(8, (4, 2))])
    else:
        masks = _grid(8, 2)
    against = Threat.of(8, 2, region=(0, 0, 6, 3)) if sort == "region" else None
    defense = BUILDERS[name](masks, against=against)
    table, labels = _tables(rng, defense, 40, 3, wrong=(0, 0.002, 0.02, 0.3))
    known = np.zeros(table.predictions.shape, bool)
    for i, label in enumerate(labels):
        while True:
            seen = Seen(np.where(known[i], table.predictions[i], 77), table.margins[i], known[i])
            columns = defense.open_columns(seen, int(label))
            if not len(columns):
                break
            known[i, columns[: rng.integers(1, len(columns) + 1)]] = True
    assert 0 < known.sum() < known.size
    for filling in (UNKNOWN, 0, 1, 2):
        part = PredictionTable(
            np.where(known, table.predictions, filling).astype(np.int16),
            table.margins, table.confidences, table.masked_images, 3,
        )  # fmt: skip
        np.testing.assert_array_equal(defense.rule(part), defense.rule(table))
        for proof in (defense.worst_case, defense.certificate):
            np.testing.assert_array_equal(proof(part, labels), proof(table, labels))


def _grid(image, patch, k=3):
    return mask_sets.budgeted_grid(image, patch, masks_per_axis=k)


def test_merged_with_others_several_patches_share_their_masked_images():
    base = _grid(8, 2)
    one = defenses.double_masking(base)
    two = defenses.double_masking(several_patches(base, patches=2))
    merged, _ = distinct_unions.merge([one.masked_images, two.masked_images])
    assert len(merged) == len(two.masked_images)
