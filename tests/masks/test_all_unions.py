"""All unions of up to so many masks: every one once, and where one more mask leads."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracle
import pytest
from covers import random_cover

from certmask_jax import mask_sets
from certmask_jax.masks import distinct_unions, edge_grids, geometry
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.union_lattice import all_unions


def _painted(boxes, image_size):
    return [oracle.paint(mask, image_size) for mask in boxes]


def test_three_masks_by_hand():
    masks = MaskSet(np.array([[0, i, 1, i + 1] for i in range(3)]), (1, 3), (1, 1))
    unions = all_unions(masks, 2)
    assert unions.up_to == (1, 4, 7)
    assert unions.order == 2
    assert unions.masks_of.tolist() == [
        [-1, -1], [0, -1], [1, -1], [2, -1], [0, 1], [0, 2], [1, 2],
    ]  # fmt: skip
    assert unions.adding.tolist() == [[1, 2, 3], [1, 4, 5], [4, 2, 6], [5, 6, 3]]
    pixels = [row[0].astype(int).tolist() for row in _painted(unions.images.boxes, (1, 3))]
    assert pixels == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]
    assert all_unions(masks, 4).up_to == (1, 4, 7, 8, 8)  # there are no more


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_union_once_on_random_covers(order):
    rng = np.random.default_rng(order)
    for _ in range(12):
        masks = random_cover(rng, int(rng.integers(1, 6)), int(rng.integers(2, 7)), 2)
        unions = all_unions(masks, order)
        pixels = _painted(unions.images.boxes, masks.image_size)
        number = {p.tobytes(): i for i, p in enumerate(pixels)}
        assert len(number) == len(pixels)
        single = _painted(masks.boxes, masks.image_size)
        fewest: dict[bytes, int] = {}
        for size in range(order + 1):
            for chosen in itertools.combinations(single, size):
                union = np.any([np.zeros(masks.image_size, bool), *chosen], axis=0)
                fewest.setdefault(union.tobytes(), size)
        assert set(fewest) == set(number)
        for union, i in number.items():
            assert unions.up_to[fewest[union] - 1] <= i < unions.up_to[fewest[union]] or i == 0
        distinct = distinct_unions.distinct(masks.boxes, masks.image_size)[0].boxes
        for v, row in enumerate(unions.adding):
            for i, w in enumerate(row):
                both = pixels[v] | oracle.paint(distinct[i], masks.image_size)
                assert number[both.tobytes()] == w
        for i, chosen in enumerate(unions.masks_of):
            own = [oracle.paint(distinct[m], masks.image_size) for m in chosen if m >= 0]
            union = np.any([np.zeros(masks.image_size, bool), *own], axis=0)
            assert number[union.tobytes()] == i


def test_36_masks_have_fewer_than_all_choices_of_four():
    masks = mask_sets.budgeted_grid(32, 5, masks_per_axis=6)
    unions = all_unions(masks, 4)
    assert sum(math.comb(36, j) for j in range(5)) == 66_712
    assert unions.up_to == (1, 37, 667, 7795, 66_296)  # the last masks of an axis overlap
    pair = distinct_unions.unions(masks, 2)[0]
    assert len(pair) == 666
    merged, _ = distinct_unions.merge([unions.images, pair])
    assert len(merged) == 66_296


def test_too_many_unions_are_refused_with_their_number():
    masks = mask_sets.budgeted_grid(64, 5, masks_per_axis=8)
    with pytest.raises(ValueError, match=r"262,144 unions, got up to 679,121 of up to 4 of 64"):
        all_unions(masks, 4)
    with pytest.raises(ValueError, match="order of at least 1"):
        all_unions(masks, 0)


def _on_grid(boxes, image, patch, few_cells):
    """What each mask hides at every stretch of locations, and which locations these begin at."""
    grid = edge_grids.location_grid(boxes, image, patch)
    hides = edge_grids.hides_on_grid(boxes, image, patch, grid, few_cells=few_cells)
    return hides, np.ix_(np.arange(len(boxes)), grid.rows, grid.cols)


@pytest.mark.parametrize("few_cells", [0, 1 << 20])
def test_grids_of_few_cells_are_looked_at_as_all_others(few_cells):
    """64 cells at a time, or by sums over rectangles: one and the same."""
    rng = np.random.default_rng(0)
    for patch in ((2, 3), (1, 1), (4, 2)):
        corners = np.sort(rng.integers(0, 10, (30, 2, 2, 2)), axis=2)  # mask, box, end, axis
        boxes = corners.reshape(30, 2, 4).astype(np.int32)
        expected = oracle.hides(boxes, (9, 9), patch)
        hides, at = _on_grid(boxes, (9, 9), patch, few_cells)
        np.testing.assert_array_equal(hides, expected[at])
        np.testing.assert_array_equal(geometry.hides(boxes, (9, 9), patch), expected)
    masks = mask_sets.budgeted_grid(32, 5, masks_per_axis=4)
    unions = all_unions(masks, 3).images
    expected = oracle.hides(unions.boxes, (32, 32), (5, 5))
    hides, at = _on_grid(unions.boxes, (32, 32), (5, 5), few_cells)
    np.testing.assert_array_equal(hides, expected[at])
    groups = unions.location_groups((5, 5))
    hidden = expected.reshape(len(unions), -1).T
    assert {row.tobytes() for row in groups} <= {row.tobytes() for row in hidden}
    assert all((groups <= row).all(axis=1).any() for row in np.unique(hidden, axis=0)[:50])
