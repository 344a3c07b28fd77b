"""Threats: shapes, several patches, regions; groups and promises equal brute force on pixels."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import oracle
import oracle_threats
import pytest
from covers import random_cover

from certmask_jax import mask_sets
from certmask_jax.masks import combined_sets, distinct_unions, placements
from certmask_jax.masks.combined_sets import any_shape, for_threat, restricted, several_patches
from certmask_jax.masks.distinct_unions import MaskedImages, unions
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.rectangles import rectangles_of_area
from certmask_jax.masks.threats import Threat


def _random_boxes(rng, image, count, width=2):
    edges = [np.sort(rng.integers(0, n + 1, (count, width, 2)), axis=-1) for n in image]
    return np.stack(
        [edges[0][..., 0], edges[1][..., 0], edges[0][..., 1], edges[1][..., 1]], axis=-1
    ).astype(np.int32)


def _random_threat(rng, image, most=2):
    """Up to ``most`` patches of up to two small shapes, in the image or one or two boxes."""
    while True:
        shapes = [
            tuple((int(rng.integers(1, 3)), int(rng.integers(1, 3))) for _ in range(2))
            for _ in range(int(rng.integers(1, most + 1)))
        ]
        boxes = _random_boxes(rng, image, int(rng.integers(0, 3)), 1)[:, 0]
        try:
            return Threat(image, tuple(shapes), tuple(map(tuple, boxes.tolist())))
        except ValueError:  # a region that is empty, or too small for a shape
            continue


def _brute(boxes, threat):
    attacked = oracle_threats.placements(threat.image_size, threat.patches, threat.region)
    return oracle_threats.hidden(boxes, threat.image_size, attacked)


@pytest.mark.parametrize("seed", range(40))
def test_groups_are_the_minimal_patterns_of_all_placements(monkeypatch, seed):
    """Whether masks are compared in one look or a few at a time."""
    monkeypatch.setattr(placements, "_FIRST_MEMBERS", 1 if seed % 2 else 1024)
    rng = np.random.default_rng(seed)
    image = (int(rng.integers(2, 6)), int(rng.integers(2, 6)))
    threat = _random_threat(rng, image)
    boxes = _random_boxes(rng, image, int(rng.integers(1, 9)), int(rng.integers(1, 4)))
    groups = MaskedImages(boxes, image).location_groups(threat)
    expected = oracle_threats.minimal(_brute(boxes, threat))
    assert {tuple(row) for row in groups.tolist()} == expected
    assert len(groups) == len(expected)


@pytest.mark.parametrize("first", [1, 4, 1024])
def test_groups_of_three_patches(monkeypatch, first):
    monkeypatch.setattr(placements, "_FIRST_MEMBERS", first)
    rng = np.random.default_rng(2)
    for patches in (((1, 1),) * 3, ((1, 2), (1, 1), (2, 1))):
        threat = Threat((3, 3), tuple((shape,) for shape in patches))
        boxes = _random_boxes(rng, (3, 3), 9)
        groups = MaskedImages(boxes, (3, 3)).location_groups(threat)
        expected = oracle_threats.minimal(_brute(boxes, threat))
        assert {tuple(row) for row in groups.tolist()} == expected


@pytest.mark.parametrize("seed", range(30))
def test_the_least_hidden_placement_is_found_and_named(seed):
    rng = np.random.default_rng(100 + seed)
    image = (int(rng.integers(2, 6)), int(rng.integers(2, 6)))
    threat = _random_threat(rng, image)
    boxes = np.tile(np.array([0, 0, *image], np.int32), (9, 3, 1))
    boxes[3:] = _random_boxes(rng, image, 6, 3)  # a whole one with a row or column less, beside
    boxes[3:, 0] = [0, 0, *image]
    boxes[3:, 0] += np.eye(4, dtype=int)[[0, 1, 2, 3, 0, 1]] * [1, 1, -1, -1]
    least, example = placements.least_hidden(boxes, threat)
    assert least == _brute(boxes, threat).sum(axis=0).min() >= 3
    pixels = np.zeros(image, bool)
    for h, w, row, col in example:
        pixels[row : row + h, col : col + w] = True
    assert oracle_threats.hidden(boxes, image, [pixels]).sum() == least
    legal = oracle_threats.placements(image, threat.patches, threat.region)
    assert any((pixels == one).all() for one in legal)
    MaskSet(boxes, image, threat, promise=least)
    with pytest.raises(CoverageError, match=f"is hidden by {least};"):
        MaskSet(boxes, image, threat, promise=least + 1)


def test_shapes_that_another_one_contains_are_left_out():
    threat = Threat.of(32, (5, 9), (5, 5), (9, 5), (2, 9), (5, 9))
    assert threat.patches == (((5, 9), (9, 5)),)
    assert threat == Threat.of((32, 32), (9, 5), (5, 9))
    as_json = dataclasses.asdict(threat)
    assert Threat(**json.loads(json.dumps(as_json))) == threat


def test_in_a_region_of_two_boxes_a_contained_shape_may_reach_further():
    region = [(0, 0, 4, 4), (6, 6, 8, 8)]
    threat = Threat.of(8, 4, 2, region=region)
    assert threat.shapes == ((2, 2), (4, 4))  # only the smaller one fits the second box
    only_first = MaskSet([[0, 0, 4, 4]], 8, Threat.of(8, 4, region=region))
    with pytest.raises(CoverageError, match="2x2 patch at row 6, column 6 is hidden by 0"):
        only_first.check(threat)
    assert Threat.of(8, 4, 2, region=region[0]).shapes == ((4, 4),)
    # Two boxes that touch are one region: a patch may lie across.
    across = Threat.of(8, (2, 6), region=[(0, 0, 2, 3), (0, 3, 2, 6)])
    assert np.argwhere(across.allowed((2, 6))).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("threat", "line"),
    [
        (Threat.of(32, 5), "5x5 patches on 32x32"),
        (Threat.of(32, (9, 5), (5, 9)), "5x9 or 9x5 patches on 32x32"),
        (Threat.of(32, (9, 5), 6, (5, 9)), "5x9, 6x6 or 9x5 patches on 32x32"),
        (Threat.of(32, 2, patches=2), "2 patches of 2x2 on 32x32"),
        (Threat.of(32, (1, 3), (3, 1), patches=3), "3 patches of 1x3 or 3x1 on 32x32"),
        (Threat((32, 32), (((3, 3),), ((2, 2),))), "2 patches of 2x2 and of 3x3 on 32x32"),
        (Threat.of(32, 5, region=(4, 3, 20, 28)), "5x5 patches within 4,3,20,28 on 32x32"),
        (Threat.of((9, 8), 2, region=(0, 0, 9, 8)), "2x2 patches on 9x8"),
    ],
)
def test_a_threat_is_one_readable_line(threat, line):
    assert str(threat) == line


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Threat.of(8, 9), "fits the image of 8x8"),
        (lambda: Threat.of(8, 2, (1, 9)), "fits the image of 8x8 pixels, got 1x9"),
        (lambda: Threat.of(8), "at least 1 shape"),
        (lambda: Threat((8, 8), ()), "at least 1 patch"),
        (lambda: Threat.of(8, 2, patches=0), "patches: expected an int of at least 1, got 0"),
        (lambda: Threat.of(8, 2, patches=1.5), "patches: expected an int of at least 1"),
        (lambda: Threat.of(8, 0), "patch_size: expected a positive int"),
        (lambda: Threat.of(8, 4, region=(0, 0, 3, 8)), "no 4x4 patch lies inside"),
        (lambda: Threat.of(8, 2, 4, region=(0, 0, 3, 8)), "no 4x4 patch lies inside"),
        (lambda: Threat.of(8, 2, region=(0, 0, 9, 8)), "bottom <= 8 .* got .0, 0, 9, 8."),
        (lambda: Threat.of(8, 2, region=(4, 0, 4, 8)), "top < bottom"),
        (lambda: Threat.of(8, 2, region=(0, 5, 4, 2)), "left < right"),
        (lambda: Threat.of(8, 2, region=(0, 0, 4)), "expected top, left, bottom, right"),
        (lambda: Threat.of(8, 2, region=[(0, 0, 4, 4), (0, 0, 4, 99)]), "got .0, 0, 4, 99."),
        (
            lambda: MaskSet([[0, 0, 8, 8]], 8, Threat.of(9, 2)),
            "image of 8x8 pixels, got one on 9x9",
        ),
        (lambda: several_patches(_grid(8, 2), patches=0), "an int of at least 1, got 0"),
        (lambda: several_patches([_grid(8, 2)], patches=2), "one mask set for each of 2, got 1"),
        (lambda: several_patches([]), "at least 1 mask set"),
        (lambda: several_patches(_grid(8, 1), patches=30), "choices of one mask from each set"),
        (lambda: several_patches(_grid(8, 1), patches=999), r"but \d+\^999 are \d\.\de\+\d{3,4};"),
        (lambda: several_patches([_grid(8, 2), _grid(9, 2)]), "one image size"),
        (lambda: any_shape([]), "got none"),
        (lambda: any_shape([several_patches(_grid(8, 2), patches=2)]), "one patch each"),
        (lambda: rectangles_of_area(8, 0), "area: expected an int of at least 1"),
        (lambda: rectangles_of_area(8, 3, most=0), "most: expected at least 1"),
        (lambda: several_patches(_grid(8, 2), patches=2).patch_size, "one patch of one shape"),
        (lambda: _grid(8, 2).check(Threat.of(8, 3)), "3x3 patch at row 0, column 2 is hidden by 0"),
    ],
)
def test_bad_input_is_one_clear_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def _grid(image, patch, k=3):
    return mask_sets.budgeted_grid(image, patch, masks_per_axis=k)


# --- several patches ---


def test_two_patches_with_25_masks_are_325_masks_and_15275_unions():
    base = _grid(224, 32, 5)
    masks = several_patches(base, patches=2)
    images, pair = unions(masks, 2)
    assert (len(base), len(masks), len(images)) == (25, 325, 15275)
    assert 625 * 626 // 2 == 195_625  # what the pairs of 625 ordered pairs of masks would be
    assert str(masks) == "325 masks of up to 2 boxes of 70x70 for 2 patches of 32x32 on 224x224"
    of_four, _ = unions(base, 4)
    assert len(distinct_unions.merge([images, of_four])[0]) == len(of_four) == 15275
    groups = images.location_groups(masks.threat)
    assert groups.shape == (300, 15275)  # two patches under one mask are no minimal group
    np.testing.assert_array_equal(groups[:, pair.diagonal()].sum(axis=1), 1)


def test_three_patches_on_nine_masks():
    masks = several_patches(_grid(12, 2), patches=3)
    assert len(masks) == 9 + 36 + 84
    assert len(unions(masks, 2)[0]) == 9 + 36 + 84 + 126 + 126 + 84


@pytest.mark.parametrize("seed", range(15))
def test_unions_hide_several_patches_of_different_sizes(seed):
    rng = np.random.default_rng(seed)
    width = int(rng.integers(3, 7))
    sets = [random_cover(rng, int(rng.integers(2, 5)), width, patch) for patch in (1, 2)]
    masks = several_patches(sets)
    assert masks.threat == Threat((1, width), (((1, 2),), ((1, 1),)))
    hidden = _brute(masks.boxes, masks.threat)
    assert hidden.sum(axis=0).min() == masks.promise >= 1
    painted = {oracle.paint(m, masks.image_size).tobytes() for m in masks.boxes}
    each = [[oracle.paint(m, s.image_size) for m in s.boxes] for s in sets]
    assert painted == {(a | b).tobytes() for a, b in itertools.product(*each)}
    assert len(painted) == len(masks)


def test_one_set_hides_one_patch_only():
    with pytest.raises(CoverageError, match=r"1x1 patch at row 0, column \d with the 1x1 patch at"):
        MaskSet(_grid((1, 6), 1).boxes, (1, 6), Threat.of((1, 6), 1, patches=2))


def test_more_unions_than_would_be_done_are_refused_with_the_estimate():
    with pytest.raises(ValueError, match=r"at most 20,000,000 boxes, but .* pairs with [\d,]+ box"):
        unions(several_patches(_grid(32, 2, 11), patches=2), 2)
    with pytest.raises(ValueError, match="at most 20,000,000 boxes"):
        several_patches(_grid(224, 2, 90), patches=2)


# --- any shape ---


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 5), (8, 8), (6, 11), (12, 9)])
@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_rectangles_contain_every_rectangle_of_an_area(size, most):
    for area in range(1, size[0] * size[1] + 3):
        rectangles = rectangles_of_area(size, area, most=most)
        assert 1 <= len(rectangles) <= most
        assert all(h <= size[0] and w <= size[1] for h, w in rectangles)
        assert oracle_threats.contain_all(rectangles, oracle_threats.rectangles(size, area))
        if len(rectangles) > 1:  # none is needless
            for one in rectangles:
                rest = [r for r in rectangles if r != one]
                assert not oracle_threats.contain_all(rest, oracle_threats.rectangles(size, area))


@pytest.mark.parametrize("size", [(4, 4), (3, 6), (5, 3)])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_rectangles_are_the_best_of_all_choices(size, most):
    """Against every choice of rectangles: least largest mask, then fewest, then least in sum."""
    every = [(h, w) for h in range(1, size[0] + 1) for w in range(1, size[1] + 1)]
    masks = {s: int(np.prod(_grid(size, s, 2).mask_size)) for s in every}.__getitem__
    for area in range(1, size[0] * size[1]):
        wanted = oracle_threats.rectangles(size, area)
        best = min(
            (max(map(masks, chosen)), len(chosen), sum(map(masks, chosen)))
            for count in range(1, most + 1)
            for chosen in itertools.combinations(every, count)
            if oracle_threats.contain_all(chosen, wanted)
        )
        rectangles = rectangles_of_area(size, area, most=most, masks_per_axis=2)
        assert (max(map(masks, rectangles)), len(rectangles), sum(map(masks, rectangles))) == best


def test_any_rectangle_of_one_percent_at_224():
    paper = [(5, 224), (12, 83), (23, 38), (39, 20), (84, 12), (224, 5)]
    wanted = oracle_threats.rectangles((224, 224), 501)
    assert oracle_threats.contain_all(paper, wanted)
    rectangles = rectangles_of_area(224, 501)
    assert oracle_threats.contain_all(rectangles, wanted)
    assert rectangles == ((3, 224), (21, 125), (125, 22), (224, 3))
    counts = {}
    for name, shapes in (("paper", paper), ("ours", rectangles)):
        sets = [_grid(224, shape, 6) for shape in shapes]
        masks = [any_shape(sets, contained=kept) for kept in (True, False)]
        largest = max(int(np.prod(s.mask_size)) for s in sets)
        counts[name] = [len(m) for m in masks], len(unions(masks[1], 2)[0]), largest
    # No mask of one of these shapes contains one of another.
    assert counts["paper"] == ([156, 156], 12_246, 41 * 224)
    assert counts["ours"] == ([84, 84], 3_570, 39 * 224)


def test_masks_that_another_contains_are_dropped_and_the_rest_covers():
    sets = [_grid(12, (2, 6), 2), _grid(12, (1, 1), 4), _grid(12, (6, 2), 2)]
    whole, rest = (any_shape(sets, contained=kept) for kept in (True, False))
    assert whole.threat == rest.threat == Threat.of(12, (2, 6), (6, 2))
    painted = [oracle.paint(m, (12, 12)) for m in whole.boxes]
    outside = [
        a.tobytes() for a in painted if not any((a <= b).all() and (a != b).any() for b in painted)
    ]
    assert [oracle.paint(m, (12, 12)).tobytes() for m in rest.boxes] == outside
    assert len(rest) < len(whole)
    assert _brute(rest.boxes, rest.threat).any(axis=0).all()


def test_sets_that_hide_more_than_once_keep_their_masks():
    sets = [
        mask_sets.repeated(mask_sets.tight_grid(8, shape, mask_size=5), coverage=times)
        for shape, times in (((2, 4), 2), ((4, 2), 3))
    ]
    masks = any_shape(sets)
    assert masks.promise == 2
    assert _brute(masks.boxes, masks.threat).sum(axis=0).min() >= 2


# --- placed patches ---


@pytest.mark.parametrize("seed", range(10))
def test_restricted_sets_drop_only_masks_that_hide_nothing(seed):
    rng = np.random.default_rng(seed)
    masks = _grid(8, 2, 4)
    threat = _random_threat(rng, (8, 8), most=1)
    fewer = restricted(masks, threat)
    hides = _brute(masks.boxes, threat).any(axis=1)
    np.testing.assert_array_equal(fewer.boxes, masks.boxes[hides])
    assert fewer.threat == threat


def test_a_set_for_a_region_stays_inside_it():
    threat = Threat.of(32, 5, region=(8, 4, 20, 28))
    masks = for_threat(threat, lambda image, patch: _grid(image, patch, 4))
    assert len(masks) == 16
    assert masks.mask_size == (6, 9)  # 12x24 pixels, 8x20 locations: stride 2x5
    assert (masks.boxes.min(axis=(0, 1)) >= [8, 4, 0, 0]).all()
    assert (masks.boxes[..., 2:].max(axis=(0, 1)) == [20, 28]).all()
    assert _brute(masks.boxes, threat).any(axis=0).all()
    fewer = restricted(_grid(32, 5, 4), threat)
    assert len(fewer) == 2 * 4  # rows 8 to 15 of locations: the masks of 7 to 13 and of 14 to 20
    assert fewer.mask_size == (11, 11)


@pytest.mark.parametrize("seed", range(12))
def test_a_set_for_any_threat_covers_it(seed):
    rng = np.random.default_rng(seed)
    threat = _random_threat(rng, (6, 7))
    masks = for_threat(threat, lambda image, patch: _grid(image, patch, 2))
    assert masks.threat == threat
    assert _brute(masks.boxes, threat).any(axis=0).all()


def test_for_one_patch_anywhere_it_is_the_builders_own_set():
    own = _grid(8, 2)
    assert for_threat(own.threat, lambda image, patch: own) is own
    assert combined_sets.for_threat(Threat.of(8, 2, patches=2), _grid).promise == 1
