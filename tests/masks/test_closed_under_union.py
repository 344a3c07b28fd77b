"""Unions of masks of sets that are closed under union, against painting every pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.union_lattice import all_unions

SIZE = (3, 4)


def _mask(*boxes):
    return [*boxes, *[(0, 0, 0, 0)] * (2 - len(boxes))]


WHOLE = _mask((0, 0, *SIZE))
A, B = (0, 0, 3, 2), (0, 2, 3, 4)
SETS = {
    "A, B, A+B": [_mask(A), _mask(B), _mask(A, B)],
    "A+B first": [_mask(A, B), _mask(A), _mask(B)],
    "a chain": [_mask((0, 0, 1, 1)), _mask((0, 0, 2, 2)), WHOLE],
    "with duplicates": [_mask(A), _mask(A), _mask(B), WHOLE, _mask(A, B)],
    "with an empty mask": [_mask(), _mask(A), _mask(B), WHOLE],
    "crossing": [_mask((0, 0, 3, 3)), _mask((0, 1, 3, 4)), WHOLE, _mask((0, 0, 2, 4))],
    "one": [WHOLE],
}


def _painted(boxes):
    pixels = np.zeros(SIZE, bool)
    for top, left, bottom, right in boxes:
        pixels[top:bottom, left:right] = True
    return pixels


def _check(boxes, orders=(1, 2, 3, 4)):
    masks = MaskSet(np.array(boxes), SIZE, 1)
    painted = [_painted(mask) for mask in masks.boxes]
    for order in orders:
        images, index = distinct_unions.unions(masks, order)
        hidden = [_painted(mask) for mask in images.boxes]
        tuples = list(itertools.product(range(len(masks)), repeat=order))
        wanted = {np.any([painted[i] for i in some], axis=0).tobytes() for some in tuples}
        assert {one.tobytes() for one in hidden} == wanted
        assert len(images) == len(wanted)  # each once
        for some in tuples:
            expected = np.any([painted[i] for i in some], axis=0)
            np.testing.assert_array_equal(hidden[index[some]], expected)


@pytest.mark.parametrize("name", SETS)
def test_every_union_and_its_place(name):
    _check(SETS[name])


def test_random_sets_and_their_closures():
    rng = np.random.default_rng(0)
    for _ in range(60):
        count = int(rng.integers(2, 5))
        corners = [np.sort(rng.integers(0, n + 1, (2, count)), axis=0) for n in SIZE]
        boxes = [
            _mask((int(t), int(left), int(b), int(r)))
            for t, b, left, r in zip(*corners[0], *corners[1], strict=True)
        ]
        _check([*boxes, WHOLE], orders=(1, 2, 3))


@pytest.mark.parametrize("name", SETS)
def test_more_patches_have_all_unions_of_fewer(name):
    masks = MaskSet(np.array(SETS[name]), SIZE, 1)
    before: set[bytes] = set()
    for patches in (1, 2, 3, 4):
        combined = cm.combined_sets.several_patches(masks, patches=patches)
        hidden = {_painted(mask).tobytes() for mask in combined.boxes}
        assert before <= hidden
        assert hidden == {
            _painted(mask).tobytes() for mask in distinct_unions.unions(masks, patches)[0].boxes
        }
        before = hidden


def test_equal_sets_that_are_not_the_same_object_and_others_of_one_length():
    one = MaskSet(np.array(SETS["A, B, A+B"]), SIZE, 1)
    again = MaskSet(np.array(SETS["A+B first"]), SIZE, 1)
    other = MaskSet(np.array(SETS["a chain"]), SIZE, 1)
    for sets in itertools.product((one, again, other), repeat=3):
        images, index = distinct_unions.unions_of(sets)
        for some in itertools.product(range(3), repeat=3):
            boxes = [s.boxes[i] for s, i in zip(sets, some, strict=True)]
            expected = _painted(np.concatenate(boxes))
            np.testing.assert_array_equal(_painted(images.boxes[index[some]]), expected)


@pytest.mark.parametrize("name", SETS)
def test_all_unions_up_to_four_say_the_same(name):
    masks = MaskSet(np.array(SETS[name]), SIZE, 1)
    hidden = {_painted(mask).tobytes() for mask in all_unions(masks, 4).images.boxes}
    four = {_painted(mask).tobytes() for mask in distinct_unions.unions(masks, 4)[0].boxes}
    assert hidden == four | {np.zeros(SIZE, bool).tobytes()} | {
        _painted(mask).tobytes()
        for order in (1, 2, 3)
        for mask in distinct_unions.unions(masks, order)[0].boxes
    }
