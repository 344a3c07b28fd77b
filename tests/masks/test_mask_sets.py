"""Mask sets: printed counts, the published program's boxes, promises kept and refused."""

from __future__ import annotations

import json

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certmask_jax import mask_sets
from certmask_jax.masks.mask_set import CoverageError, MaskSet

# n, p, q | k = 1 printed, exact | k = 6 replicated, offset (printed), minimum: soundness, 1
COUNTS = [
    (224, 23, 32, 625, 441, 3750, 3750, 2646),
    (224, 32, 48, 196, 144, 1176, 1176, 864),
    (224, 39, 56, 196, 121, 1176, 1080, 726),
    (224, 14, 16, 12544, 5041, 75264, 75264, 30246),
    (224, 35, 56, 121, 81, 726, 704, 486),
    (32, 5, 8, 121, 49, 726, 704, 294),
]


@pytest.mark.parametrize(("n", "p", "q", "once", "tight", "repl", "offs", "least"), COUNTS)
def test_counts_of_the_table(n, p, q, once, tight, repl, offs, least):
    size = {"mask_size": q}
    assert len(mask_sets.replicated(n, p, coverage=1, **size)) == once
    assert len(mask_sets.replicated(n, p, coverage=6, **size)) == repl
    assert len(mask_sets.tight_grid(n, p, **size)) == tight
    assert len(mask_sets.offset(n, p, coverage=(3, 2), **size)) == offs
    minimum = mask_sets.repeated(mask_sets.tight_grid(n, p, **size), coverage=6)
    assert len(minimum) == least
    assert minimum.coverage().min() >= 6


@pytest.mark.parametrize(
    ("patch", "mask"), [(23, 56), (32, 64), (39, 69), (14, 49), (35, 66)]
)  # fmt: skip
def test_patchcleanser_masks_at_224(patch, mask):
    masks = mask_sets.budgeted_grid(224, patch, masks_per_axis=6)
    assert (len(masks), masks.mask_size) == (36, (mask, mask))


def test_budgeted_grid_equals_the_published_program(shared):
    for case in json.loads((shared / "golden" / "patchcleanser_masks.json").read_text()):
        masks = mask_sets.budgeted_grid(
            tuple(case["image"]),
            tuple(case["patch"]),
            masks_per_axis=case["masks_per_axis"],
            mask_stride=case["stride"],
        )
        assert masks.boxes[:, 0].tolist() == case["boxes"]
        assert list(masks.mask_size) == case["mask"]


sizes = st.tuples(st.integers(1, 14), st.integers(1, 14))


@given(sizes, st.data())
@settings(max_examples=150, deadline=None)
def test_budgeted_grid_equals_the_literal_equations(image, data):
    patch = tuple(data.draw(st.integers(1, n)) for n in image)
    budget, stride = data.draw(st.one_of(
        st.tuples(st.integers(1, 7), st.none()), st.tuples(st.none(), st.integers(1, 7))
    ))  # fmt: skip
    masks = mask_sets.budgeted_grid(image, patch, masks_per_axis=budget, mask_stride=stride)
    expected = oracle.patchcleanser_boxes(image, patch, masks_per_axis=budget, stride=stride)
    assert [tuple(box) for box in masks.boxes[:, 0].tolist()] == expected
    assert oracle.coverage(masks.boxes, image, patch).min() >= 1


@given(sizes, st.data())
@settings(max_examples=150, deadline=None)
def test_exact_k_fold_hides_every_location_exactly_k_times(image, data):
    patch = tuple(data.draw(st.integers(1, n)) for n in image)
    mask = tuple(data.draw(st.integers(p, n)) for p, n in zip(patch, image, strict=True))
    fold = tuple(data.draw(st.integers(1, q - p + 1)) for p, q in zip(patch, mask, strict=True))
    spread = data.draw(st.sampled_from(["fewest", "even"]))
    masks = mask_sets.exact_k_fold(image, patch, mask_size=mask, coverage=fold, spread=spread)
    assert (oracle.coverage(masks.boxes, image, patch) == fold[0] * fold[1]).all()
    starts = [
        oracle.exact_k_fold_starts(n, p, q, m, spread)
        for n, p, q, m in zip(image, patch, mask, fold, strict=True)
    ]
    assert len(masks) == len(starts[0]) * len(starts[1])


@pytest.mark.parametrize(("spread", "count"), [("fewest", 345), ("even", 384)])
def test_exact_three_by_two_fold_on_cifar(spread, count):
    masks = mask_sets.exact_k_fold(32, 5, mask_size=8, coverage=(3, 2), spread=spread)
    assert len(masks) == count
    assert len({m.tobytes() for m in masks.boxes}) == count  # all distinct
    assert np.unique(masks.coverage()).tolist() == [6]
    tops, lefts = (sorted(set(masks.boxes[:, 0, i].tolist())) for i in (2, 3))
    expected = {"fewest": ({0, 1, 3}, {1, 3}), "even": ({0, 1, 2}, {0, 2})}[spread]
    # A mask of residue b ends at pixel b + 5 (clipped masks end at the border).
    assert {(end - 5) % 4 for end in tops if end < 32} == expected[0]
    assert {(end - 5) % 4 for end in lefts if end < 32} == expected[1]


@pytest.mark.parametrize("case", COUNTS[:3] + COUNTS[4:])
def test_offset_tiling_covers_six_to_twelve_times_never_exactly_six(case):
    n, p, q = case[:3]
    for wrap in (True, False):
        covered = mask_sets.offset(n, p, mask_size=q, coverage=(3, 2), wrap=wrap).coverage()
        assert 6 <= covered.min() < covered.max() <= 12


def test_wrapping_hides_more_pixels_than_cutting_and_is_not_needed():
    wrapped = mask_sets.offset(224, 32, mask_size=48, coverage=(3, 2))
    cut = mask_sets.offset(224, 32, mask_size=48, coverage=(3, 2), wrap=False)

    def area(masks: MaskSet) -> int:
        return int(np.prod(masks.boxes[..., 2:] - masks.boxes[..., :2], axis=-1).sum())

    assert area(wrapped) > area(cut)
    assert cut.coverage().min() >= 6


@pytest.mark.parametrize(
    ("n", "p", "q", "hidden_by"), [(224, 39, 56, 0), (224, 32, 48, 2 * 2)]
)  # fmt: skip
def test_rounded_strides_leave_holes_and_are_refused(n, p, q, hidden_by):
    with pytest.raises(CoverageError, match=f"is hidden by {hidden_by};") as caught:
        mask_sets.offset(n, p, mask_size=q, coverage=(3, 2), rounded_stride="floor")
    assert "row" in str(caught.value)
    assert "column" in str(caught.value)


@pytest.mark.parametrize(("n", "p", "q", "m"), [(32, 5, 8, 3), (224, 39, 56, 3), (28, 4, 7, 2)])
def test_offset_starts_equal_the_literal_formula(n, p, q, m):
    masks = mask_sets.offset((n, n), (p, p), mask_size=q, coverage=(m, 1), wrap=False)
    tops = sorted(set(masks.boxes[:, 0, 0].tolist()))
    starts = oracle.certmask_centres(n, p, q, m)
    assert tops == sorted({max(0, s) for s in starts if max(0, s) < min(n, s + q)})


def test_printed_tiling_cut_at_the_border_leaves_a_hole_for_masks_over_two_patches():
    """28 pixels, patch 3, mask 7: 7 masks centred at 0, 4, ..., 24 end at pixel 27 of 28."""
    with pytest.raises(CoverageError, match="is hidden by 0"):
        mask_sets.replicated(28, 3, mask_size=7, coverage=1)
    assert mask_sets.offset(28, 3, mask_size=7, coverage=(1, 1)).coverage().min() == 1


def test_a_set_of_ones_own_is_verified_and_the_hole_is_named():
    with pytest.raises(CoverageError, match="row 0, column 2 is hidden by 0"):
        MaskSet(np.array([[0, 0, 4, 3], [0, 3, 4, 4]]), 4, 2)
    assert len(MaskSet(np.array([[0, 0, 4, 3], [0, 2, 4, 4]]), 4, 2)) == 2


def test_repeated_masks_keep_a_multiple_of_the_promise():
    tight = mask_sets.tight_grid(32, 5, mask_size=8)
    assert (len(tight), len(mask_sets.repeated(tight, coverage=6))) == (49, 294)
    assert mask_sets.repeated(tight, coverage=6).promise == 6


@pytest.mark.parametrize(
    ("k", "limits", "factors"),
    [(6, (9, 9), (3, 2)), (4, (9, 9), (2, 2)), (6, (2, 3), (2, 3)), (6, (1, 6), (1, 6)),
     (7, (7, 7), (7, 1)), (1, (1, 1), (1, 1))],
)  # fmt: skip
def test_k_is_factored(k, limits, factors):
    assert mask_sets.factor_coverage(k, limits=limits) == factors


@pytest.mark.parametrize("k", [5, 7, 17])
def test_k_without_factors_is_refused(k):
    with pytest.raises(ValueError, match=rf"k = {k} has no such factors"):
        mask_sets.exact_k_fold(32, 5, mask_size=8, coverage=k)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mask_sets.budgeted_grid(8, 9, masks_per_axis=2), "fits the image"),
        (lambda: mask_sets.budgeted_grid(8, 2), "got neither"),
        (lambda: mask_sets.budgeted_grid(8, 2, masks_per_axis=2, mask_stride=2), "got both"),
        (lambda: mask_sets.tight_grid(8, 4, mask_size=3), "at least the patch"),
        (lambda: mask_sets.tight_grid(8, 4, mask_size=9), "at most the image"),
        (lambda: mask_sets.offset(8, 4, mask_size=4, coverage=1), "larger than the 4x4 patch"),
        (lambda: mask_sets.exact_k_fold(8, 2, mask_size=3, coverage=(3, 1)), "at most 2-fold"),
        (lambda: mask_sets.exact_k_fold(8, 7, mask_size=7, coverage=(2, 1)), "larger mask_size"),
        (
            lambda: mask_sets.exact_k_fold(8, 7, mask_size=7, coverage=(3, 1)),
            "smaller patch or coverage, as no mask of 8 pixels is large enough",
        ),
        (lambda: mask_sets.exact_k_fold(8, 2, mask_size=3, coverage=0), "k >= 1"),
        (lambda: mask_sets.exact_k_fold(8, 2, mask_size=3, coverage=1, spread="x"), "spread"),
        (lambda: mask_sets.replicated(8, 2, mask_size=3, coverage=0), "at least 1"),
    ],
)
def test_bad_input_is_one_clear_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_distinct_masks_inside_the_image_cannot_hide_the_corner_twice():
    inside = [[t, left, t + 3, left + 3] for t in range(6) for left in range(6)]
    with pytest.raises(CoverageError, match="row 0, column 0 is hidden by 1"):
        MaskSet(np.array(inside), 8, 2, promise=2)


@given(st.integers(2, 6), st.data())
@settings(max_examples=25, deadline=None)
def test_tight_grid_is_the_brute_force_minimum(n, data):
    p = data.draw(st.integers(1, n))
    q = data.draw(st.integers(p, n))
    k = data.draw(st.integers(1, 2))
    axis = mask_sets.tight_grid((n, 1), (p, 1), mask_size=(q, 1))
    assert oracle.minimum_k_fold(n, p, q, k) == k * len(axis)
