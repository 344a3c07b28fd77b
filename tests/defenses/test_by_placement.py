"""Maps of places against exhaustion: at each place alone, whatever a patch there can do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from defense_cases import CASES, pair_cover_set, random_set, random_table, robust_of

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import Defense, by_placement, places_at_once
from certmask_jax.defenses.by_placement import FAILS, HOLDS, OPEN
from certmask_jax.masks.bands import column_bands
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.outputs import UNKNOWN
from certmask_jax.tables.prediction_table import from_labels

TABLES = 32
MOST_FREE = 8  # masked images that the attacker has, of two classes


def _hides(defense, spots):
    """Which masked images hide the patch at each location, on pixels: ``bool[V, rows, cols]``."""
    height, width = defense.threat.image_size
    down, across = spots.shape
    pixels = np.zeros((len(defense.masked_images), height, width), bool)
    for image, boxes in zip(pixels, defense.masked_images.boxes, strict=True):
        for top, left, bottom, right in boxes:
            image[top:bottom, left:right] = True
    return np.stack(
        [
            [
                pixels[:, row : row + down, col : col + across].all(axis=(1, 2))
                for col in range(width - across + 1)
            ]
            for row in range(height - down + 1)
        ]
    ).transpose(2, 0, 1)


def _spot_at(spots, row, col):
    i = np.searchsorted(spots.rows, row, side="right") - 1
    j = np.searchsorted(spots.cols, col, side="right") - 1
    return int(spots.spot[i, j])


def _drawn(case, rng, *, within=False):
    """A defense on a random cover, whose tables can be exhausted at every place, and its spots."""
    for _ in range(200):
        masks = pair_cover_set(rng) if case.particular else random_set(rng, "one patch")
        height, width = masks.image_size
        shape = masks.threat.shapes[0]
        region = (0, 0, height, max(shape[1], width - 1))
        against = Threat.of(masks.image_size, shape, region=region) if within else None
        try:
            defense = case.build(masks, against=against)
        except ValueError:
            continue
        spots = by_placement.spots_of(defense)
        if len(spots.hidden) > 1 and (~spots.hidden).sum(axis=1).max() <= MOST_FREE:
            return defense, spots
    raise AssertionError("no small case was drawn")


@pytest.mark.parametrize(
    "name",
    ["double_masking", "challenger_masking", "minority_reports", "certmask", "plurality",
     "certmask_detection tolerant", "pair_cover", "mrcert"],
)  # fmt: skip
def test_each_place_has_the_verdict_of_everything_that_a_patch_there_can_do(name):
    case = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    within = name in ("double_masking", "certmask", "plurality")
    defense, spots = _drawn(case, rng, within=within)
    hides, allowed = _hides(defense, spots), defense.threat.allowed(spots.shape)
    table, labels = random_table(rng, defense, TABLES, 2)
    verdicts = by_placement.verdicts_at(defense, table, labels, spots)
    for row, col in np.ndindex(*allowed.shape):
        spot = _spot_at(spots, row, col)
        assert (spot >= 0) == allowed[row, col]
        if spot >= 0:
            np.testing.assert_array_equal(spots.hidden[spot], hides[:, row, col])
    assert spots.sizes.sum() == allowed.sum()
    for spot, hidden in enumerate(spots.hidden):
        robust = robust_of(defense, table, labels, hidden[:, None], choices=case.trusts)
        holds = verdicts[:, spot] == HOLDS
        assert not (holds & ~robust).any()
        if by_placement.is_exact(defense, spots):
            np.testing.assert_array_equal(holds, robust)
    assert (verdicts != OPEN).all()
    everywhere = (verdicts == HOLDS).all(axis=1)
    np.testing.assert_array_equal(everywhere, defense.worst_case(table, labels))
    assert (verdicts == FAILS).any()
    assert (verdicts == HOLDS).any() or name == "certmask"


@pytest.mark.parametrize("name", ["double_masking", "challenger_masking", "pair_cover"])
def test_what_was_not_evaluated_turns_no_verdict(name):
    case = CASES[name]
    rng = np.random.default_rng(1 + sum(map(ord, name)))
    if case.particular:
        defense, spots = _drawn(case, rng)
    else:  # nine masks, of which fewer than half hide a patch anywhere, as in the papers
        defense = case.build(mask_sets.budgeted_grid(6, 1, masks_per_axis=3))
        spots = by_placement.spots_of(defense)
    table, labels = random_table(rng, defense, TABLES, 2)
    # What a run leaves out: nothing of the first round, then anything.
    known = rng.random(table.predictions.shape) < (0.9 if case.particular else 0.6)
    known |= np.isin(np.arange(known.shape[1]), _first_round(defense))
    part = dataclasses.replace(
        table,
        predictions=np.where(known, table.predictions, UNKNOWN).astype(np.int16),
        margins=np.where(known, table.margins, np.inf).astype(np.float16),
    )
    verdicts = by_placement.verdicts_at(defense, part, labels, spots)
    assert OPEN in verdicts
    assert HOLDS in verdicts or FAILS in verdicts
    for _ in range(5):
        anything = rng.integers(0, 2, table.predictions.shape)
        filled = dataclasses.replace(
            table, predictions=np.where(known, table.predictions, anything).astype(np.int16)
        )
        whole = by_placement.verdicts_at(defense, filled, labels, spots)
        told = verdicts != OPEN
        np.testing.assert_array_equal(whole[told], verdicts[told])


def _first_round(defense: Defense) -> np.ndarray:
    pair = getattr(defense, "rounds", None)
    return np.zeros(0, int) if pair is None else pair.single


def test_by_hand_where_one_mask_is_wrong():
    """Four masks of 2x2 on 4x4, patches of 1x1: mask 2 of four says another class."""
    masks = mask_sets.budgeted_grid(4, 1, masks_per_axis=2)
    defense = defenses.double_masking(masks)
    pair = defense.rounds.pair
    labels = np.zeros((1, len(defense.masked_images)), int)
    labels[0, pair[1, 1]] = 1  # alone; with any other mask it says the true label
    table = from_labels(labels, defense.masked_images, num_classes=2)
    spots = by_placement.spots_of(defense)
    verdicts = by_placement.verdicts_at(defense, table, [0], spots)
    assert (spots.rows.tolist(), spots.cols.tolist()) == ([0, 2], [0, 2])
    assert verdicts[0][spots.spot].tolist() == [[HOLDS, FAILS], [HOLDS, HOLDS]]
    assert spots.sizes.tolist() == [4, 4, 4, 4]
    margins = by_placement.smallest_margins(table, spots)
    assert margins.shape == (1, 4)
    assert (margins == 1).all()


def test_one_good_mask_of_several_that_hide_a_patch_is_enough():
    """On 1x6: A hides columns 0 to 2, B 1 to 3, C 3 to 5. B alone is wrong, with A and C right."""
    boxes = np.array([[[0, 0, 1, 3]], [[0, 1, 1, 4]], [[0, 3, 1, 6]]])
    defense = defenses.challenger_masking(MaskSet(boxes, (1, 6), (1, 1)))
    labels = np.zeros((2, len(defense.masked_images)), int)
    single, pair = places_at_once.rows_of(defense)
    labels[0, single[1]] = 1
    labels[1, [single[1], pair[0, 2]]] = 1  # and A with C: only B is left at 1 and 2, and wrong
    table = from_labels(labels, defense.masked_images, num_classes=2)
    spots = by_placement.spots_of(defense)
    verdicts = by_placement.verdicts_at(defense, table, [0, 0], spots)
    assert spots.cols.tolist() == [0, 1, 3, 4]
    assert verdicts[:, spots.spot[0]].tolist() == [[HOLDS] * 4, [FAILS] * 4]
    assert not by_placement.is_exact(defense, spots)


def test_where_most_masks_hide_a_patch_no_good_row_is_needed():
    """On 1x5 three masks hide column 2, and two of them columns 1 and 3; no row is good.

    Masks 1 and 2 say true and together false, mask 3 false and with mask 1 true. At column 1 the
    two are the majority, and mask 3 stands against neither, as its labels with them are out of the
    attacker's hands.
    """
    boxes = np.array([[[0, left, 1, left + 3]] for left in range(3)])
    defense = defenses.double_masking(MaskSet(boxes, (1, 5), (1, 1)))
    labels = np.zeros((1, len(defense.masked_images)), int)
    single, pair = places_at_once.rows_of(defense)
    labels[0, [pair[0, 1], single[2]]] = 1
    table = from_labels(labels, defense.masked_images, num_classes=2)
    spots = by_placement.spots_of(defense)
    verdicts = by_placement.verdicts_at(defense, table, [0], spots)
    assert verdicts[0, spots.spot[0]].tolist() == [FAILS, HOLDS, HOLDS, FAILS, FAILS]
    hides = _hides(defense, spots)
    for col in range(5):
        robust = robust_of(defense, table, np.array([0]), hides[:, 0, col][:, None])
        assert robust[0] == (col in (1, 2))


def test_threats_without_a_map_are_one_clear_line():
    base = mask_sets.budgeted_grid(4, 1, masks_per_axis=2)
    two = defenses.mrcert(base, patches=2)
    with pytest.raises(ValueError, match=r"mrcert: expected one patch at a time, .* got 2 patches"):
        by_placement.spots_of(two)
    defense = defenses.double_masking(base)
    with pytest.raises(ValueError, match=r"shape: expected one of \[\(1, 1\)\], got \(2, 2\)"):
        by_placement.spots_of(defense, (2, 2))


def test_a_region_leaves_places_out():
    masks = mask_sets.budgeted_grid(4, 1, masks_per_axis=2)
    threat = Threat.of(4, 1, region=(0, 0, 4, 2))
    spots = by_placement.spots_of(defenses.double_masking(masks, against=threat))
    assert spots.sizes.sum() == 8
    assert (spots.spot[:, spots.cols >= 2] == -1).all()


def test_crosscert_at_all_places_at_once_is_as_asked_one_by_one():
    masks = mask_sets.budgeted_grid(4, 1, masks_per_axis=2)
    bands = column_bands(4, 1, band=2)
    defense = defenses.CrossCert(masks, bands)
    rng = np.random.default_rng(3)
    table, labels = random_table(rng, defense, 24, 3)
    spots = by_placement.spots_of(defense)
    verdicts = by_placement.verdicts_at(defense, table, labels, spots)
    assert set(np.unique(verdicts)) == {HOLDS, FAILS}
    for spot in range(len(spots.hidden)):
        alone = dataclasses.replace(defense, against=spots.threat_at(spot))
        np.testing.assert_array_equal(verdicts[:, spot] == HOLDS, alone.worst_case(table, labels))
    everywhere = (verdicts == HOLDS).all(axis=1)
    np.testing.assert_array_equal(everywhere, defense.worst_case(table, labels))
