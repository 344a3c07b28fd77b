"""Places that no attacker of the threat has are refused before any work."""

from __future__ import annotations

import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks import patched_pixels
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.inference.two_parts import TwoParts, mean_of_kept

SIZE = 8
CORNER = cm.Threat.of(SIZE, 2, region=(0, 0, 2, 2))
OUTSIDE = [[2, 2, 3, 3], [2, 2, 7, 7], [2, 2, -1, 0], [0, 2, 0, 0], [3, 3, 0, 0]]


def _never(params, x):
    raise AssertionError("nothing is asked before places are looked at")


def _logits(params, x):
    return x[:, 0, :2, 0]


def _defense():
    masks = cm.mask_sets.budgeted_grid(SIZE, 2, masks_per_axis=2)
    return cm.defenses.DoubleMasking(masks, against=CORNER)


def _goal(place):
    nothing = np.zeros(1, np.int32)
    return attacks.Goal(np.asarray([place]), nothing, nothing == 0, 0, True, 0.0)


def _attack(defense, place, apply_fn=_never):
    images, labels = np.zeros((1, SIZE, SIZE, 1), np.uint8), np.zeros(1, np.int32)
    attacks.attack_images(apply_fn, {}, images, labels, defense, [[_goal(place)]])


@pytest.mark.parametrize("place", OUTSIDE)
def test_a_place_outside_the_threat_is_one_error(place):
    defense = _defense()
    many = len(defense.masked_images)
    with pytest.raises(ValueError, match=r"^place: expected patches"):
        attacks.goals_at(
            defense, np.zeros(many, int), np.ones(many), 0,
            places=np.asarray([[[2, 2, 0, 0]], [place]]), targets=[1, 2], num_classes=3,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"^place: expected patches"):
        _attack(defense, place)
    with pytest.raises(ValueError, match=r"^place: expected patches"):
        _attack(PatchGuard(CORNER, field=1, stride=1), place)
    asked = attacks.attacked(None, _logits, {}, (SIZE, SIZE, 1))
    with pytest.raises(ValueError, match=r"^place: expected patches"):
        attacks.promising_goals(
            asked, np.zeros((1, SIZE, SIZE, 1), np.uint8), np.zeros(1, np.int32), threat=CORNER,
            search=attacks.PatchSearch(), given=np.asarray([[place]]),
        )  # fmt: skip


@pytest.mark.parametrize("place", [[2, 2, 7, 7], [2, 2, -1, 0], [0, 2, 0, 0], [9, 1, 0, 0]])
def test_a_place_outside_the_image_is_one_error_without_a_defense(place):
    said = "^place: expected patches that lie wholly inside the image of 8x8 pixels"
    with pytest.raises(ValueError, match=said):
        _attack(None, place)
    with pytest.raises(ValueError, match=said):
        attacks.search_without_gradients(
            None, None, np.zeros((1, SIZE, SIZE, 1), np.uint8), np.zeros(1, np.int32),
            [np.asarray([[place]])], search=attacks.BlackBoxSearch(),
        )  # fmt: skip
    if min(place) < 0 or min(place[:2]) < 1:
        with pytest.raises(ValueError, match="lie wholly inside the image, got"):
            attacks.undefended_goals(0, places=np.asarray([[place]]))
    with pytest.raises(ValueError, match=r"place: expected \[K, 4\]"):
        attacks.undefended_goals(0, places=np.asarray([place]))


def test_a_place_in_pixels_reaches_no_cells_that_the_threat_on_cells_has_not():
    """Every place of the image, against the cells of the places that are allowed."""
    parts = TwoParts(lambda p, x: x, mean_of_kept, field=3, stride=2, image_size=9)
    threat = cm.Threat.of(9, 2, region=(0, 0, 4, 5))
    on_cells = parts.on_cells(threat)
    everywhere = attacks.places_on_grid(cm.Threat.of(9, 2), stride=1)
    allowed = {place.tobytes() for place in attacks.places_on_grid(threat, stride=1)}
    reached = set()
    for shape in on_cells.shapes:
        for row, column in np.argwhere(on_cells.allowed(shape)).tolist():
            reached.add((row, column, row + shape[0], column + shape[1]))
    refused = 0
    for place in everywhere:
        [[height, width, row, column]] = patched_pixels.cells_of_parts(place, parts)
        fits = any(
            top <= row and left <= column and row + height <= bottom and column + width <= right
            for top, left, bottom, right in reached
        )
        assert fits or place.tobytes() not in allowed
        if fits:
            patched_pixels.check_places([place], on_cells, parts)
            continue
        refused += 1
        with pytest.raises(ValueError, match="place: expected patches that reach no more cells"):
            patched_pixels.check_places([place], on_cells, parts)
    assert refused
    with pytest.raises(ValueError, match="inside the image of 9x9"):
        patched_pixels.check_places([np.asarray([[2, 2, 8, 0]])], on_cells, parts)
