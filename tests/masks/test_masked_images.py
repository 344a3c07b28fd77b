"""Unions of masks: deduplicated by the pixels that they hide, nothing lost."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
from covers import random_cover

from certmask_jax import defenses, mask_sets
from certmask_jax.certification import evaluation
from certmask_jax.masks import distinct_unions


def _pixels(images: distinct_unions.MaskedImages) -> list[bytes]:
    return [oracle.paint(boxes, images.image_size).tobytes() for boxes in images.boxes]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_index_leads_to_the_union_and_unions_are_distinct(order, seed):
    rng = np.random.default_rng(seed)
    masks = random_cover(rng, masks=4, width=6, patch=2)
    images, index = distinct_unions.unions(masks, order)
    painted = [oracle.paint(boxes, masks.image_size) for boxes in masks.boxes]
    pixels = _pixels(images)
    assert len(set(pixels)) == len(pixels)
    for choice in itertools.product(range(4), repeat=order):
        union = np.logical_or.reduce([painted[i] for i in choice])
        assert pixels[index[choice]] == union.tobytes()
    assert set(index.ravel().tolist()) == set(range(len(images)))


def test_666_images_make_the_whole_six_by_six_table():
    masks = mask_sets.budgeted_grid(224, 32, masks_per_axis=6)
    images, index = distinct_unions.unions(masks, 2)
    assert len(images) == 36 * 37 // 2 == 666
    np.testing.assert_array_equal(index, index.T)


@pytest.mark.parametrize("coverage", [1, 6])
def test_replicated_masks_are_evaluated_once(coverage):
    masks = mask_sets.replicated(32, 5, mask_size=8, coverage=coverage)
    images, index = distinct_unions.unions(masks, 1)
    assert (len(images), len(index)) == (121, 121 * coverage)
    assert np.bincount(index).tolist() == [coverage] * 121


def test_two_patches_with_25_masks_are_15275_unions():
    """25 + 300 + 2,300 + 12,650 unions of one to four masks, of 25^4 = 390,625 (issue 5)."""
    masks = mask_sets.budgeted_grid(224, 32, masks_per_axis=5)
    images, index = distinct_unions.unions(masks, 4)
    assert (len(images), index.size) == (15275, 390625)
    for choice in ((3, 1, 24, 7), (7, 24, 1, 3), (3, 3, 1, 1), (5, 5, 5, 5)):
        pixels = oracle.paint(images.boxes[index[choice]], (224, 224))
        each = [oracle.paint(masks.boxes[i], (224, 224)) for i in choice]
        np.testing.assert_array_equal(pixels, np.any(each, axis=0))
    assert index[3, 1, 24, 7] == index[7, 24, 1, 3] != index[3, 1, 24, 8]


@pytest.mark.parametrize("coverage", [1, 6])
def test_what_a_run_evaluates_does_not_grow_with_repetitions(coverage):
    """Masks that are repeated, and a mask that hides nothing, cost nothing beside the others."""
    masks = mask_sets.replicated(32, 5, mask_size=8, coverage=coverage)
    nothing = np.zeros((1, *masks.boxes.shape[1:]), np.int32)
    more = mask_sets.MaskSet(np.concatenate([masks.boxes, nothing]), (32, 32), (5, 5))
    certmask = defenses.certmask(masks)
    for chosen in ([certmask], [certmask, certmask], [certmask, defenses.minority_reports(more)]):
        columns, questions = evaluation.merged(chosen)
        assert len(columns) == 1 + 121
        assert all(set(q.columns.tolist()) <= set(range(122)) for q in questions)


def test_merge_finds_what_two_defenses_share():
    masks = mask_sets.budgeted_grid(32, 5, masks_per_axis=6)
    pairs, singles = (distinct_unions.unions(masks, order)[0] for order in (2, 1))
    merged, (of_pairs, of_singles) = distinct_unions.merge([pairs, singles])
    assert len(merged) == 666
    assert len(of_pairs) == 666
    for k, column in enumerate(of_singles):
        one = oracle.paint(merged.boxes[column], (32, 32))
        np.testing.assert_array_equal(one, oracle.paint(singles.boxes[k], (32, 32)))


@pytest.mark.parametrize("seed", range(20))
def test_location_groups_keep_every_minimal_pattern_and_only_those(seed):
    rng = np.random.default_rng(seed)
    masks = random_cover(rng, masks=int(rng.integers(2, 6)), width=7, patch=2)
    images, _ = distinct_unions.unions(masks, 2)
    hidden = oracle.hides(images.boxes, masks.image_size, masks.patch_size)
    patterns = {tuple(column) for column in hidden.reshape(len(images), -1).T.tolist()}
    minimal = {
        p for p in patterns
        if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in patterns)
    }  # fmt: skip
    groups = images.location_groups(masks.patch_size)
    assert {tuple(row) for row in groups.tolist()} == minimal
    assert len(groups) == len(minimal)


def test_bad_input():
    masks = mask_sets.tight_grid(8, 2, mask_size=4)
    with pytest.raises(ValueError, match="at least 1"):
        distinct_unions.unions(masks, 0)
    with pytest.raises(ValueError, match="one image size"):
        distinct_unions.unions_of([masks, mask_sets.tight_grid(9, 2, mask_size=4)])
    with pytest.raises(ValueError, match="one image size"):
        distinct_unions.merge([distinct_unions.unmasked((8, 8)), distinct_unions.unmasked((9, 9))])


def test_a_box_that_is_listed_twice_is_kept_once():
    """In a mask united with itself, and in the union of two masks that share a box."""
    boxes = np.zeros((2, 2, 4), int)
    boxes[0] = [[0, 0, 1, 2], [0, 3, 1, 4]]
    boxes[1] = [[0, 0, 1, 2], [0, 2, 1, 3]]
    masks = mask_sets.MaskSet(boxes, (1, 4), (1, 1))
    images, pair = distinct_unions.unions(masks, 2)
    used = (images.boxes[..., 2] > images.boxes[..., 0]).sum(axis=1)
    assert used[pair].tolist() == [[2, 3], [3, 2]]
    assert images.boxes.shape == (3, 3, 4)
