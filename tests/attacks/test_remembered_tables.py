"""Tables that are asked for twice are computed once."""

from __future__ import annotations

import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks.attacked_defenses import attacked
from certmask_jax.attacks.attacked_images import attack_images
from certmask_jax.attacks.logit_tables import LogitTables
from certmask_jax.attacks.remembered_tables import RememberedTables

IMAGES = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)


class _Counted:
    """Tables of which each tells its image, and how many images they were asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, images):
        self.asked.append(len(images))
        return images.reshape(len(images), 4, 1).astype(np.float32).repeat(3, axis=2)


def _own(images):
    return _Counted()(images)


def test_each_image_is_computed_once_in_whatever_order_it_is_asked_for():
    counted = _Counted()
    tables = RememberedTables(counted)
    for rows in ([0, 1, 2], [2, 0], [3, 1, 3], [4], [0, 1, 2, 3, 4]):
        np.testing.assert_array_equal(tables(IMAGES[rows]), _own(IMAGES[rows]))
    assert counted.asked == [3, 2, 1]  # 3 twice in one call: computed with it


def test_no_images_have_an_empty_table():
    assert RememberedTables(_Counted())(IMAGES[:0]).shape == (0, 4, 3)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_what_was_asked_for_longest_ago_is_forgotten(room):
    counted = _Counted()
    each = 4 * 3 * 4 + 4  # of a table and of its image
    tables = RememberedTables(counted, most_bytes=room * each)
    for row in (0, 1, 2, 3):
        tables(IMAGES[row : row + 1])
    counted.asked.clear()
    kept = list(range(4 - room, 4))
    tables(IMAGES[kept])
    assert not counted.asked
    tables(IMAGES[[3 - room]])
    assert counted.asked == [1]


def test_more_images_than_there_is_room_for_are_all_told():
    tables = RememberedTables(_Counted(), most_bytes=1)
    np.testing.assert_array_equal(tables(IMAGES), _own(IMAGES))


def _linear(params, x):
    return x.reshape(len(x), -1) @ params


def test_a_search_begins_with_the_tables_that_its_goals_were_chosen_by(monkeypatch):
    """No pass of an image without a patch is made twice."""
    random = np.random.default_rng(0)
    params = random.normal(0, 1, (64, 3)).astype(np.float32)
    images = random.integers(0, 256, (6, 8, 8, 1), np.uint8)
    defense = cm.defenses.DoubleMasking(cm.mask_sets.budgeted_grid(8, 2, masks_per_axis=2))
    how = {"preprocessing": cm.Preprocessing()}
    asked = attacked(defense, _linear, params, images.shape[1:], **how)
    labels = asked.answers(images)
    passed = []
    whole = LogitTables.__call__

    def counted(self, some):
        if self is asked._tables:
            passed.extend(image.tobytes() for image in some)
        return whole(self, some)

    monkeypatch.setattr(LogitTables, "__call__", counted)
    search = attacks.PatchSearch(steps=1)
    goals = attacks.promising_goals(
        asked, images, labels, threat=defense.threat, search=search, locations=1
    )
    clean = {image.tobytes() for image in images}
    assert sorted(passed) == sorted(clean)
    attack_images(_linear, params, images, labels, asked, goals, search=search, **how)
    assert len(passed) > len(clean)
    assert sum(image in clean for image in passed) == len(clean)
