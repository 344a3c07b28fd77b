"""Boxes and what they hide, against pixel-by-pixel painting."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certmask_jax.masks import geometry


@st.composite
def cases(draw):
    image = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    patch = (draw(st.integers(1, image[0])), draw(st.integers(1, image[1])))

    def interval(n: int):
        return st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted)

    box = st.tuples(interval(image[0]), interval(image[1])).map(
        lambda p: (p[0][0], p[1][0], p[0][1], p[1][1])
    )
    count, width = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    mask = st.lists(box, min_size=width, max_size=width)
    boxes = draw(st.lists(mask, min_size=count, max_size=count))
    return np.array(boxes), image, patch


@given(cases())
@settings(max_examples=300, deadline=None)
def test_hides_and_coverage_equal_painting(case):
    boxes, image, patch = case
    expected = oracle.hides(boxes, image, patch)
    np.testing.assert_array_equal(geometry.hides(boxes, image, patch), expected)
    np.testing.assert_array_equal(geometry.coverage(boxes, image, patch), expected.sum(0))


def test_two_boxes_hide_a_patch_that_neither_hides_alone():
    left, right = [0, 0, 4, 2], [0, 2, 4, 4]
    assert geometry.hides([[left, right]], 4, 2).all()
    assert geometry.hides([[left, [0, 0, 0, 0]]], 4, 2).sum() == 3  # only column 0, rows 0 to 2


@pytest.mark.parametrize(
    ("percent", "image", "side"),
    [(1, 224, 23), (2, 224, 32), (3, 224, 39), (0.4, 224, 14), (2.4, 224, 35), (0.4, 32, 2),
     (2.4, 32, 5)],
)  # fmt: skip
def test_percent_of_pixels_as_the_papers_mean_it(percent, image, side):
    assert geometry.patch_size_from_percent(percent, image) == (side, side)


@pytest.mark.parametrize("percent", [0, -1, 101, float("nan")])
def test_percent_out_of_range(percent):
    with pytest.raises(ValueError, match=r"\(0, 100\]"):
        geometry.patch_size_from_percent(percent, 32)


def test_square_of_too_many_percent_does_not_fit_a_flat_image():
    with pytest.raises(ValueError, match="fits the image"):
        geometry.patch_size_from_percent(50, (4, 64))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 5, 2]], "mask 0, box 0"),
        ([[2, 0, 1, 2]], "mask 0, box 0"),
        ([[0.0, 0, 1, 2]], "integers"),
        ([0, 0, 1, 2], "shape"),
    ],
)
def test_malformed_boxes_are_named(boxes, message):
    with pytest.raises(ValueError, match=message):
        geometry.hides(boxes, 4, 1)


@pytest.mark.parametrize("size", [0, -3, (1, 2, 3), (4, 0), 2.5, (2.5, 2), None, "2"])
def test_sizes_are_positive_ints_or_pairs(size):
    with pytest.raises(ValueError, match=r"patch_size: expected a positive int or \(height, width"):
        geometry.as_size(size, "patch_size")


def test_patch_larger_than_image():
    with pytest.raises(ValueError, match="fits the image of 4x4"):
        geometry.num_locations(4, (2, 5))


@settings(max_examples=200)
@given(cases())
def test_a_mask_hides_all_if_every_pixel_is_in_a_box(case):
    boxes, image, _ = case
    expected = []
    for mask in boxes:
        seen = np.ones(image, bool)
        for top, left, bottom, right in mask:
            seen[top:bottom, left:right] = False
        expected.append(not seen.any())
    np.testing.assert_array_equal(geometry.hides(boxes, image, image)[:, 0, 0], expected)


def test_two_halves_hide_all_and_two_that_overlap_need_not():
    halves = [(0, 0, 4, 2), (0, 2, 4, 4)]
    overlapping = [(0, 0, 4, 3), (0, 0, 4, 3)]
    got = geometry.hides([halves, overlapping], 4, 4)
    np.testing.assert_array_equal(got[:, 0, 0], [True, False])
