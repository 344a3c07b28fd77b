"""Masks that leave a band: by painting, and smoothing by plurality against its closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from certmask_jax import defenses
from certmask_jax.masks.bands import column_bands
from certmask_jax.masks.mask_set import CoverageError
from certmask_jax.programs import defense_specs
from certmask_jax.tables.prediction_table import from_labels


@pytest.mark.parametrize(
    ("columns", "width", "stride"), [(6, 2, 1), (7, 3, 2), (5, 1, 1), (8, 5, 3)]
)
def test_each_mask_leaves_a_band_round_the_border(columns, width, stride):
    masks = column_bands((3, columns), (1, 1), width=width, stride=stride)
    for number, boxes in enumerate(masks.boxes):
        seen = np.ones((3, columns), bool)
        for top, left, bottom, right in boxes:
            seen[top:bottom, left:right] = False
        expected = np.zeros(columns, bool)
        expected[(number * stride + np.arange(width)) % columns] = True
        assert (seen == expected).all()
    assert len(masks) == len(range(0, columns, stride))


def test_a_patch_meets_its_columns_and_a_band_less_one_more():
    masks = column_bands((4, 12), (2, 3), width=4)
    assert (masks.coverage() == 12 - (3 + 4 - 1)).all()
    with pytest.raises(CoverageError):
        column_bands((4, 6), (1, 3), width=4)  # 3 + 4 - 1 = 6: every band is met
    for width, stride in ((0, 1), (12, 1), (4, 0), (4, 13), (2.5, 1)):
        with pytest.raises(ValueError, match=r"(width|stride): expected columns from 1 to"):
            column_bands((4, 12), (2, 3), width=width, stride=stride)


def test_plurality_is_smoothing_and_never_proves_less_than_its_certificate():
    """Levine and Feizi, Theorem 1: n_y >= n_z + 2 (p + b - 1), ties aside; ours is exact."""
    columns, patch, width = 7, 1, 2
    masks = column_bands((1, columns), (1, patch), width=width)
    defense = defenses.plurality(masks)
    rows = np.array(list(itertools.product(range(2), repeat=columns)))
    table = from_labels(rows, defense.masked_images, num_classes=2)
    votes = np.stack([(rows == label).sum(axis=1) for label in range(2)])
    reached = patch + width - 1
    proved = defense.worst_case(table, np.zeros(len(rows), int))
    theirs = votes[0] > votes[1] + 2 * reached
    assert (proved | ~theirs).all()
    assert theirs.any()
    gap = defense.conditions(table, np.zeros(len(rows), int))["vote_gap"]
    np.testing.assert_array_equal(gap, theirs)
    robust = np.ones(len(rows), bool)  # by exhaustion: every place, every vote that it reaches
    for place in range(columns):
        met = [band for band in range(columns) if place in (band + np.arange(width)) % columns]
        for said in itertools.product(range(2), repeat=len(met)):
            attacked = rows.copy()
            attacked[:, met] = said
            robust &= (attacked == 0).sum(axis=1) > (attacked == 1).sum(axis=1)
    np.testing.assert_array_equal(proved, robust)


def test_by_name():
    found = defense_specs.build("plurality:bands=4,stride=2", (32, 32), (5, 5))
    assert (len(found.mask_set), found.mask_set.name) == (16, "column_bands")
    assert "column_bands" not in found.options
