"""Proofs against any threat equal the table adversary over all placements; mutants are broken."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracle
import pytest
from defense_cases import CASES, hidden_of, random_table, robust_of

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.combined_sets import any_shape, several_patches
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import UNKNOWN, from_labels

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
    assert not robust_of(defense, table, labels, hidden_of(defense, masks.threat)).any()
    all_right = from_labels([0 * said], defense.masked_images, num_classes=2)
    assert robust_of(defense, all_right, labels, hidden_of(defense, masks.threat)).all()
    assert defense.certificate(all_right, labels).all()


@pytest.mark.parametrize("build", [defenses.double_masking, defenses.challenger_masking])
def test_mutant_a_one_patch_certificate_is_broken_by_two_patches(build):
    defense = build(_four_pixels())
    table = from_labels([[0] * 10], defense.masked_images, num_classes=2)
    labels = np.zeros(1, int)
    assert defense.certificate(table, labels).all()
    assert robust_of(defense, table, labels, hidden_of(defense, defense.threat)).all()
    two = Threat.of((1, 4), 1, patches=2)
    assert not robust_of(defense, table, labels, hidden_of(defense, two)).any()
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
    assert robust_of(placed, table, labels, hidden_of(placed, inside)).all()
    assert not anywhere.worst_case(table, labels).any()
    assert not robust_of(placed, table, labels, hidden_of(placed, masks.threat)).any()
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
    assert not robust_of(defense, table, labels, hidden_of(defense, tall)).any()
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
    table, labels = random_table(rng, whole, 400, 2, wrong=(0.05, 0.1))
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
    table, labels = random_table(rng, whole, 300, 3, wrong=(0, 0.01, 0.05))
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
    defense = CASES[name].build(masks, against=against)
    table, labels = random_table(rng, defense, 40, 3, wrong=(0, 0.002, 0.02, 0.3))
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
        part = dataclasses.replace(
            table, predictions=np.where(known, table.predictions, filling).astype(np.int16)
        )
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
