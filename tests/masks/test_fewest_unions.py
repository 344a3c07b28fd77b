"""What is counted before a set for several patches is made is never more than there is then."""

from __future__ import annotations

import math

import numpy as np
import pytest
from covers import random_cover

from certmask_jax import mask_sets
from certmask_jax.masks import distinct_unions, placements
from certmask_jax.masks.combined_sets import several_patches
from certmask_jax.masks.fewest_unions import check_rounds, needed, up_to
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


def _groups(boxes, image, patch, count):
    return len(placements.groups(boxes, Threat.of(image, patch, patches=count)).hidden)


@pytest.mark.parametrize("seed", range(30))
def test_there_is_never_less(seed):
    rng = np.random.default_rng(seed)
    patches, rounds = int(rng.integers(2, 4)), int(rng.integers(1, 3))
    masks = random_cover(rng, masks=int(rng.integers(2, 5)), width=7, patch=2)
    own, alone = needed(masks)
    assert alone <= own <= len(masks)
    whole = several_patches(masks, patches=patches)
    images, _ = distinct_unions.unions(whole, rounds)
    assert up_to(own, patches) <= len(whole)
    assert up_to(own, rounds * patches) <= len(images)
    assert alone <= _groups(images.boxes, masks.image_size, masks.patch_size, 1)
    of_others = _groups(images.boxes, masks.image_size, masks.patch_size, patches - 1)
    assert math.comb(alone, patches - 1) <= of_others


@pytest.mark.parametrize("patches", [2, 3])
def test_of_masks_side_by_side_it_is_all_there_is(patches):
    masks = mask_sets.budgeted_grid(8, 1, masks_per_axis=3)
    assert needed(masks) == (9, 9)
    whole = several_patches(masks, patches=patches)
    assert len(whole) == up_to(9, patches) == {2: 9 + 36, 3: 9 + 36 + 84}[patches]
    assert _groups(whole.boxes, (8, 8), 1, patches - 1) == math.comb(9, patches - 1)


def test_masks_without_a_pixel_of_their_own_are_not_counted():
    """Two halves, the one of them twice, and a mask over their border, which hides the rest."""
    boxes = [[0, 0, 4, 2], [0, 2, 4, 4], [0, 2, 4, 4], [0, 0, 4, 3]]
    assert needed(MaskSet(np.array(boxes)[:, None], 4, 1)) == (0, 0)
    assert needed(MaskSet(np.array(boxes)[[0, 1], None], 4, 1)) == (2, 2)
    # A patch of 2x2 pixels across the border is hidden by the third alone, with no such pixel.
    across = np.array([[0, 0, 4, 2], [0, 2, 4, 4], [0, 1, 4, 3]])[:, None]
    assert needed(MaskSet(across, 4, 2)) == (2, 2)


def test_what_is_refused_is_what_would_be_after_the_work():
    masks = mask_sets.budgeted_grid(8, 1, masks_per_axis=8)
    with pytest.raises(ValueError, match=r"43744 x 43744 are 1\.9e\+09 or more; use"):
        check_rounds(masks, 3, 2)
    with pytest.raises(ValueError, match=r"2,016 x 64 x 43,744 = 5\.6e\+09 or more; use"):
        check_rounds(masks, 3, 1)
    check_rounds(masks, 2, 1)
    check_rounds(mask_sets.budgeted_grid(8, 1, masks_per_axis=5), 2, 2)
    assert distinct_unions.MOST_CHOICES < 43744**2
