"""Maps of one of several patches against exhaustion: at each of its places, wherever the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from defense_cases import CASES, random_set, random_table, robust_of

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import by_first_placement, by_placement
from certmask_jax.defenses.by_placement import FAILS, HOLDS, OPEN
from certmask_jax.masks.combined_sets import for_threat, several_patches
from certmask_jax.masks.threats import Threat

TABLES = 8
MOST_FREE = 6  # masked images that the attacker has, of two classes


def _pixels(defense):
    """What each masked image hides: ``bool[V, h, w]``."""
    hidden = np.zeros((len(defense.masked_images), *defense.threat.image_size), bool)
    for image, boxes in zip(hidden, defense.masked_images.boxes, strict=True):
        for top, left, bottom, right in boxes:
            image[top:bottom, left:right] = True
    return hidden


def _places(threat, shape):
    down, across = (n - s + 1 for n, s in zip(threat.image_size, shape, strict=True))
    return [(row, col) for row in range(down) for col in range(across)]


def _hide(pixels, shape, place):
    (row, col), (height, width) = place, shape
    return pixels[:, row : row + height, col : col + width].all(axis=(1, 2))


def _drawn(case, rng, sort, *, within):
    """A case whose places differ, and verdicts too; ``within`` an image if not only between two."""
    for _ in range(300):
        masks = random_set(rng, sort)
        try:
            defense = case.build(masks)
        except ValueError:
            continue
        shape = defense.threat.shapes[0]
        spots = by_first_placement.first_spots_of(defense, shape)
        differ = {frozenset(choices) for choices in spots.choice.tolist()}
        if len(differ) < 2 or (~spots.hidden).sum(axis=1).max() > MOST_FREE:
            continue
        table, labels = random_table(rng, defense, TABLES, 2)
        is_right = rng.random(table.predictions.shape) < 0.7
        said = np.where(is_right, labels[:, None], 1 - labels[:, None]).astype(np.int16)
        table = dataclasses.replace(table, predictions=said)
        at_first = by_first_placement.verdicts_at_first(defense, table, labels, spots)
        both = {FAILS, HOLDS}
        if any(
            both <= set(one) for one in (at_first[0].tolist() if within else [at_first[0].ravel()])
        ):
            return defense, shape, spots, table, labels, *at_first
    raise AssertionError("no small case was drawn")


@pytest.mark.parametrize(
    ("name", "sort", "within"),
    [
        ("double_masking", "other sizes", False),
        ("challenger_masking", "several patches", True),
        ("minority_reports", "several patches", True),
        ("certmask_detection", "other sizes", False),
    ],
)
def test_each_place_has_the_worst_of_all_places_of_the_other(name, sort, within):
    case = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name + sort)))
    defense, shape, spots, table, labels, states, worst = _drawn(case, rng, sort, within=within)
    pixels, threat = _pixels(defense), defense.threat
    (others,) = [p for i, p in enumerate(threat.patches) if i != threat.patches.index((shape,))]
    for row, col in _places(threat, shape):
        first = _hide(pixels, shape, (row, col))
        joint = [
            first & _hide(pixels, other, q) for other in others for q in _places(threat, other)
        ]
        robust = robust_of(defense, table, labels, np.array(joint).T, choices=case.trusts)
        i = np.searchsorted(spots.first.rows, row, side="right") - 1
        j = np.searchsorted(spots.first.cols, col, side="right") - 1
        spot = int(spots.first.spot[i, j])
        holds = states[:, spot] == HOLDS
        assert not (holds & ~robust).any()
        if by_placement.is_exact(defense, spots):
            np.testing.assert_array_equal(holds, robust)
        # Where it fails, the other patch that is named is a way to win.
        for image in np.flatnonzero(states[:, spot] == FAILS):
            ((height, width, down, across),) = spots.others[worst[image, spot]].tolist()
            one = first & _hide(pixels, (height, width), (down, across))
            alone = robust_of(
                defense, table.rows(np.arange(TABLES) == image), labels[[image]], one[:, None],
                choices=case.trusts,
            )  # fmt: skip
            assert not alone[0] or not by_placement.is_exact(defense, spots)
    everywhere = (states == HOLDS).all(axis=1)
    np.testing.assert_array_equal(everywhere, defense.worst_case(table, labels))
    assert (worst[states == HOLDS] == -1).all()


def test_any_patch_that_has_the_shape_may_be_the_first():
    """2x2 beside 3x1 or beside 1x3, as either patch may be the 2x2; against all placements."""
    threat = Threat((3, 4), (((2, 2), (1, 3)), ((2, 2), (3, 1))))
    masks = for_threat(threat, lambda n, p: mask_sets.budgeted_grid(n, p, masks_per_axis=(2, 2)))
    defense = defenses.double_masking(masks)
    pixels = _pixels(defense)
    spots = by_first_placement.first_spots_of(defense, (2, 2))
    for row, col in _places(threat, (2, 2)):
        first = _hide(pixels, (2, 2), (row, col))
        possible = {
            (first & _hide(pixels, shape, place)).tobytes()
            for shape in ((2, 2), (1, 3), (3, 1))
            for place in _places(threat, shape)
        }
        i = np.searchsorted(spots.first.rows, row, side="right") - 1
        j = np.searchsorted(spots.first.cols, col, side="right") - 1
        looked_at = spots.hidden[spots.choice[spots.first.spot[i, j]]]
        assert {one.tobytes() for one in looked_at} <= possible
        for one in possible:
            assert (~(looked_at & ~np.frombuffer(one, bool)).any(axis=1)).any()


def test_a_choice_as_a_threat_is_hidden_by_what_hides_all_of_it():
    base = mask_sets.budgeted_grid(6, 2, masks_per_axis=2)
    defense = defenses.double_masking(several_patches(base, patches=2))
    spots = by_first_placement.first_spots_of(defense)
    for number, hidden in enumerate(spots.hidden):
        groups = defense.masked_images.location_groups(spots.threat_at(number))
        # One minimal group, though what else lies in the union of both places is placed too.
        assert len(groups) == 1
        np.testing.assert_array_equal(groups[0], hidden)


def test_what_was_not_evaluated_is_open_unless_some_choice_fails():
    base = mask_sets.budgeted_grid(4, 1, masks_per_axis=2)
    defense = defenses.double_masking(several_patches(base, patches=2))
    rng = np.random.default_rng(0)
    table, labels = random_table(rng, defense, 4, 2)
    spots = by_first_placement.first_spots_of(defense)
    each = by_placement.verdicts_at(defense, table, labels, spots)
    each[:2] = HOLDS
    each[0, spots.choice[1, 0]] = OPEN
    each[1, spots.choice[1, 0]] = OPEN
    each[1, spots.choice[1, 2]] = FAILS

    def verdicts(*given):
        return each

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_placement, "verdicts_at", verdicts)
        states, worst = by_first_placement.verdicts_at_first(defense, table, labels, spots)
    touched = (spots.choice == spots.choice[1, 0]).any(axis=1)
    assert states[0].tolist() == [OPEN if one else HOLDS for one in touched]
    assert (worst[0] == -1).all()
    lost = (spots.choice == spots.choice[1, 2]).any(axis=1)
    assert 0 < lost.sum() < len(lost)
    wanted = [FAILS if x else OPEN if y else HOLDS for x, y in zip(lost, touched, strict=True)]
    assert states[1].tolist() == wanted
    assert [bool(one) for one in worst[1] >= 0] == lost.tolist()
    assert worst[1, 1] == 2


def test_threats_without_such_a_map_are_one_clear_line():
    base = mask_sets.budgeted_grid(4, 1, masks_per_axis=2)
    with pytest.raises(ValueError, match="expected several patches at once, got 1x1 patches"):
        by_first_placement.first_spots_of(defenses.double_masking(base))
    two = defenses.double_masking(several_patches(base, patches=2))
    with pytest.raises(ValueError, match=r"shape: expected one of \[\(1, 1\)\], got \(2, 2\)"):
        by_first_placement.first_spots_of(two, (2, 2))
    with pytest.raises(ValueError, match="expected at most 3 places of one patch times groups"):
        by_first_placement.first_spots_of(two, most_pairs=3)
    assert Threat.of(4, 1, patches=2) == two.threat
