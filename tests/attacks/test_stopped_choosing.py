"""The time may be over while goals are chosen, which can take as long as to search."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks.goals_in_time import GoalsInTime, StoppedChoosing

SIZE, COUNT = 6, 5
THREAT = cm.Threat.of(SIZE, 2)
DEFENSE = cm.defenses.DoubleMasking(cm.mask_sets.budgeted_grid(SIZE, 2, masks_per_axis=2))
RANDOM = np.random.default_rng(3)
PARAMS = jnp.asarray(RANDOM.normal(size=(3, SIZE, SIZE, 1)), jnp.float32)
IMAGES = RANDOM.integers(0, 256, (COUNT, SIZE, SIZE, 1), np.uint8)
HOW = {"threat": THREAT, "search": attacks.PatchSearch(steps=10), "locations": 1}


def _linear(params, x):
    return jnp.einsum("bhwc,khwc->bk", x, params)


def _asked(defense):
    return attacks.attacked(
        defense, _linear, PARAMS, (SIZE, SIZE, 1), preprocessing=cm.Preprocessing()
    )


def _same(one, other):
    return all(
        (a.place == b.place).all() and (a.wanted == b.wanted).all()
        for some, others in zip(one, other, strict=True)
        for a, b in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("defense", [None, DEFENSE], ids=["undefended", "double masking"])
def test_it_is_asked_all_the_while_whether_to_stop(defense):
    asked = _asked(defense)
    labels = asked.plain(IMAGES).argmax(axis=1).astype(np.int32)
    plain = attacks.promising_goals(asked, IMAGES, labels, **HOW)
    questions = []

    def never():
        questions.append(None)
        return False

    assert _same(attacks.promising_goals(asked, IMAGES, labels, stop=never, **HOW), plain)
    assert len(questions) > 1
    for number in range(len(questions)):
        left = iter([False] * number)
        with pytest.raises(StoppedChoosing):
            attacks.promising_goals(
                asked, IMAGES, labels, stop=lambda left=left: next(left, True), **HOW
            )


def test_what_is_searched_for_already_is_kept_and_the_rest_is_left():
    asked = _asked(None)
    labels = asked.plain(IMAGES).argmax(axis=1).astype(np.int32)
    goals = attacks.promising_goals(asked, IMAGES, labels, **HOW)

    def choose(numbers):
        if numbers.start >= 3:
            raise StoppedChoosing
        return goals[numbers.start : numbers.stop]

    how = {"preprocessing": cm.Preprocessing(), "search": HOW["search"], "at_once": 1}
    in_time = GoalsInTime(COUNT, choose, patches=1, at_once=1)
    made = attacks.attack_images(_linear, PARAMS, IMAGES, labels, None, in_time, **how)
    whole = attacks.attack_images(_linear, PARAMS, IMAGES, labels, None, goals, **how)
    settled = np.flatnonzero(made.settled)
    assert 0 < len(settled) <= 3
    np.testing.assert_array_equal(made.patched[settled], whole.patched[settled])
    np.testing.assert_array_equal(made.broken[settled], whole.broken[settled])
    assert whole.settled.all()


def test_the_table_of_an_image_is_looked_at_when_it_is_searched_for(monkeypatch):
    asked = _asked(DEFENSE)
    labels = asked.plain(IMAGES).argmax(axis=1).astype(np.int32)
    goals = attacks.promising_goals(asked, IMAGES, labels, **HOW)
    looked_at, real = [], asked.tables

    def noted(images):
        looked_at.append(len(images))
        return real(images)

    monkeypatch.setattr(asked, "tables", noted)
    attacks.attack_images(
        _linear, PARAMS, IMAGES, labels, asked, goals,
        preprocessing=cm.Preprocessing(), search=HOW["search"], at_once=2,
    )  # fmt: skip
    with_goals = sum(bool(some) for some in goals)
    assert sum(looked_at) == with_goals
    assert max(looked_at) <= 2
