"""Masks that leave a band: by painting, and smoothing by plurality against its closed form."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from certmask_jax import defenses, mask_sets
from certmask_jax import masks as masks_room
from certmask_jax.defenses.band_defense import DerandomizedSmoothing
from certmask_jax.masks.bands import (
    affected_parts,
    blocks,
    column_bands,
    row_and_column_bands,
    row_bands,
)
from certmask_jax.masks.mask_set import CoverageError
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs
from certmask_jax.tables.prediction_table import from_labels


def test_builders_are_found_in_the_room_and_in_the_list_of_all():
    for name in masks_room.__all__:
        assert getattr(masks_room, name) is getattr(mask_sets, name)


@pytest.mark.parametrize(
    ("columns", "width", "stride"), [(6, 2, 1), (7, 3, 2), (5, 1, 1), (8, 5, 3)]
)
def test_each_mask_leaves_a_band_round_the_border(columns, width, stride):
    masks = column_bands((3, columns), (1, 1), band=width, stride=stride)
    for number, boxes in enumerate(masks.boxes):
        seen = np.ones((3, columns), bool)
        for top, left, bottom, right in boxes:
            seen[top:bottom, left:right] = False
        expected = np.zeros(columns, bool)
        expected[(number * stride + np.arange(width)) % columns] = True
        assert (seen == expected).all()
    assert len(masks) == len(range(0, columns, stride))


def test_a_patch_meets_its_columns_and_a_band_less_one_more():
    masks = column_bands((4, 12), (2, 3), band=4)
    assert (masks.coverage() == 12 - (3 + 4 - 1)).all()
    with pytest.raises(CoverageError, match=r"use narrower bands, or more of them"):
        column_bands((4, 6), (1, 3), band=4)  # 3 + 4 - 1 = 6: every band is met
    for width, stride in ((0, 1), (12, 1), (4, 0), (4, 13), (2.5, 1)):
        with pytest.raises(ValueError, match=r"(band|stride): expected columns from 1 to"):
            column_bands((4, 12), (2, 3), band=width, stride=stride)


def test_plurality_is_smoothing_and_never_proves_less_than_its_certificate():
    """Levine and Feizi, Theorem 1: n_y >= n_z + 2 (p + b - 1), ties aside; ours is exact."""
    columns, patch, width = 7, 1, 2
    masks = column_bands((1, columns), (1, patch), band=width)
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
    defense = defense_specs.build("plurality:bands=4,stride=2", (32, 32), (5, 5))
    assert (len(defense.mask_set), defense.mask_set.name) == (16, "column_bands")
    assert "column_bands" not in defense.options


@pytest.mark.parametrize(
    "threat",
    [
        Threat.of((8, 12), 1, patches=2),
        Threat.of((8, 12), 2, region=(0, 0, 8, 5)),
        Threat.of((8, 12), (1, 3), (2, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["vot", "plurality"])
def test_by_name_bands_are_the_same_against_every_threat(name, threat):
    """A model sees one band of the image, and never two, nor what no patch reaches beside one."""
    masks = defense_specs.build(f"{name}:bands=2,stride=2", (8, 12), threat).mask_set
    np.testing.assert_array_equal(masks.boxes, column_bands((8, 12), 1, band=2, stride=2).boxes)
    assert masks.threat == threat
    paints = [np.zeros((8, 12), bool) for _ in range(6)]
    for start, seen in enumerate(paints):
        seen[:, 2 * start : 2 * start + 2] = True
    np.testing.assert_array_equal(_seen(masks), paints)


def test_bands_that_meet_beside_the_region_hide_what_is_in_it():
    """Of four columns both bands show the first, where no patch may be."""
    threat = Threat.of((7, 4), 2, region=(4, 1, 6, 4))
    masks = column_bands((7, 4), threat, band=2, stride=3)
    assert masks.threat == threat
    assert sorted(masks.affected().tolist()) == [[False, True], [True, False]]
    defense = DerandomizedSmoothing(threat, band=2, stride=3)
    assert defense.masks == masks
    with pytest.raises(CoverageError):
        column_bands((7, 4), 1, band=2, stride=3)
    with pytest.raises(ValueError, match="on the image of 8x4 pixels"):
        column_bands((8, 4), threat, band=2, stride=3)


def _seen(masks):
    seen = np.ones((len(masks), *masks.image_size), bool)
    for pixels, boxes in zip(seen, masks.boxes, strict=True):
        for top, left, bottom, right in boxes:
            pixels[top:bottom, left:right] = False
    return seen


def test_blocks_and_bands_of_both_axes_are_what_they_say():
    columns = _seen(column_bands((5, 6), (1, 1), band=2, stride=2))
    rows = _seen(row_bands((5, 6), (1, 1), band=3))
    both = _seen(row_and_column_bands((5, 6), (1, 1), band=(3, 2), stride=(1, 2)))
    np.testing.assert_array_equal(both, np.concatenate([rows, columns]))
    squares = _seen(blocks((5, 6), (1, 1), band=(3, 2), stride=(1, 2)))
    np.testing.assert_array_equal(squares, (rows[:, None] & columns[None]).reshape(-1, 5, 6))
    turned = _seen(column_bands((6, 5), (1, 1), band=3))
    np.testing.assert_array_equal(rows, turned.transpose(0, 2, 1))


def test_without_wrapping_bands_end_at_the_border():
    masks = column_bands((1, 10), (1, 1), band=3, stride=3, wrap=False)
    firsts = [int(np.flatnonzero(seen)[0]) for seen in _seen(masks)[:, 0]]
    assert firsts == [0, 3, 6, 7]
    assert (_seen(masks).sum(axis=(1, 2)) == 3).all()
    assert len(column_bands((1, 9), (1, 1), band=3, stride=3, wrap=False)) == 3


@pytest.mark.parametrize("build", [column_bands, row_bands, row_and_column_bands, blocks])
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("stride", [1, 3])
def test_affected_bands_are_those_that_show_a_pixel_of_the_patch(build, wrap, stride):
    masks = build((7, 8), (1, 2), band=2, stride=stride, wrap=wrap)
    seen = _seen(masks)
    met = {
        tuple(seen[:, row : row + 1, column : column + 2].any(axis=(1, 2)))
        for row in range(7)
        for column in range(7)
    }
    largest = {m for m in met if not any(m != n and np.all(np.array(n) >= m) for n in met)}
    assert {tuple(group) for group in masks.affected()} == largest
    parts = affected_parts(masks)
    assert len(parts) == 1 + (build is row_and_column_bands)
    if len(parts) == 2:
        product = {(*rows, *columns) for rows in parts[0] for columns in parts[1]}
        assert product == largest


def test_parts_only_where_a_place_is_free_on_both_axes():
    masks = row_and_column_bands((7, 8), (1, 2), band=2)
    shapes = dataclasses.replace(masks, threat=Threat.of((7, 8), (1, 2), (2, 1)))
    assert len(affected_parts(shapes)) == 1
    corners = Threat.of((7, 8), (1, 2), region=((0, 0, 1, 2), (6, 6, 7, 8)))
    (part,) = affected_parts(dataclasses.replace(masks, threat=corners))
    assert len(part) == 2
    box = Threat.of((7, 8), (1, 2), region=(0, 0, 2, 3))
    assert [len(p) for p in affected_parts(dataclasses.replace(masks, threat=box))] == [2, 2]
