"""Attacks for one label, and at places that are given: closed forms of a linear model."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks.goal_choice import _best_of_each_place
from certmask_jax.attacks.search_slots import SearchSlots
from certmask_jax.attacks.table_goals import ANY, Goal
from certmask_jax.attacks.wanted_labels import Case

SIZE, COUNT = 8, 16
HOW = cm.Preprocessing()
THREAT = cm.Threat.of(SIZE, (2, 3))


def _linear(params, x):
    return jnp.einsum("bhwc,khwc->bk", x, params["w"]) + params["b"][None]


@pytest.fixture(scope="module")
def linear():
    random = np.random.default_rng(4)
    params = {
        "w": jnp.asarray(random.normal(size=(3, SIZE, SIZE, 1)), jnp.float32),
        "b": jnp.zeros(3, jnp.float32),
    }
    images = random.integers(0, 256, (COUNT, SIZE, SIZE, 1), np.uint8)
    nothing = np.zeros((COUNT, 1, 4), np.int32)
    logits = np.asarray(cm.masked_logits(_linear, params, images, nothing, preprocessing=HOW))
    return params, images, logits.argmax(axis=1).astype(np.int32), logits


@pytest.fixture(scope="module")
def asked(linear):
    return attacks.attacked(None, _linear, linear[0], (SIZE, SIZE, 1), preprocessing=HOW)


def _largest_lead(params, image, logits, place, target):
    """The largest lead over all others that any patch gives the target: a linear program."""
    weights = np.asarray(params["w"], np.float64)
    [[height, width, row, column]] = place
    inside = (slice(row, row + height), slice(column, column + width), 0)
    before = image[inside].ravel() / 255
    others = [k for k in range(3) if k != target]
    slopes = [(weights[(target, *inside)] - weights[(k, *inside)]).ravel() for k in others]
    leads = [float(logits[target] - logits[k]) for k in others]
    # lead + slope . (x - before) >= t for each, x between 0 and 1, t as large as can be
    solution = linprog(
        [*np.zeros(len(before)), -1.0],
        A_ub=[[*-slope, 1.0] for slope in slopes],
        b_ub=[lead - slope @ before for lead, slope in zip(leads, slopes, strict=True)],
        bounds=[(0, 1)] * len(before) + [(None, None)],
    )
    assert solution.success
    return -solution.fun


def test_a_label_is_answered_exactly_where_a_patch_can_have_it_answered(linear):
    params, images, labels, logits = linear
    places = attacks.random_places(THREAT, COUNT, np.random.default_rng(1))
    target = 2
    goals = [
        attacks.undefended_goals(int(label), places=place[None], target=target)
        for label, place in zip(labels, places, strict=True)
    ]
    made = attacks.attack_images(
        _linear, params, images, labels, None, goals, targeted=True,
        preprocessing=HOW, search=attacks.PatchSearch(steps=100), at_once=8,
    )  # fmt: skip
    leads = np.asarray(
        [
            _largest_lead(params, image, row, place, target)
            for image, row, place in zip(images, logits, places, strict=True)
        ]
    )
    tried = labels != target
    clear = tried & (np.abs(leads) > 0.05)  # of whole grey levels, and steps that are not 0
    assert clear.sum() > 6
    assert ((made.answers == target) == (leads > 0))[clear].all()
    assert 0 < (made.answers == target)[clear].sum() < clear.sum()
    assert (made.targets[tried] == target).all()


@pytest.mark.parametrize("detects", [True, False])
def test_an_alert_breaks_nothing_where_a_defense_may_raise_one(detects):
    place = np.asarray([[1, 1, 0, 0]])
    image, goals = np.zeros((1, 2, 2, 1), np.uint8), attacks.undefended_goals(0, places=place[None])
    run = SearchSlots(image, np.zeros(1, int), [0], 1, [goals], 1, 1, 0, allows_alert=detects)
    assert run.fill()
    [(number, slot)] = run.in_use()
    run.took(slot, 10)
    run.settle(number, slot, image[0], cm.ALERT, loss=0, steps=20)
    assert run.broken[0] == run.settled[0] == (not detects)
    assert run.answers[0] == cm.ALERT


def test_another_wrong_label_is_kept_and_does_not_end_the_search():
    image = np.zeros((1, 2, 2, 1), np.uint8)
    place = np.asarray([[1, 1, 0, 0]])
    goal = attacks.undefended_goals(0, places=place[None], target=2)

    def slots(targeted):
        made = SearchSlots(
            image, np.zeros(1, np.int32), [0], 1, [goal * 2], 1, 1, 0,
            allows_alert=False, targeted=targeted,
        )  # fmt: skip
        made.fill()
        return made

    def patched(level):
        return np.full((2, 2, 1), level, np.uint8)

    plain = slots(False)
    [(number, slot)] = plain.in_use()
    plain.settle(number, slot, patched(1), 1, loss=0, steps=10)
    assert plain.settled[0]
    assert plain.broken[0]

    run = slots(True)
    [(number, slot)] = run.in_use()
    run.settle(number, slot, patched(1), 1, loss=0, steps=10)
    assert run.broken[0]
    assert not run.settled[0]
    run.took(slot, 10)
    run.settle(number, slot, patched(2), 0, loss=0, steps=10)  # right again, and at its end
    assert (run.answers[0], run.patched[0].max(), run.broken[0]) == (1, 1, True)
    [(number, slot)] = run.in_use()
    assert slot.number == 1
    run.settle(number, slot, patched(3), 2, loss=0, steps=10)
    assert (run.answers[0], run.patched[0].max()) == (2, 3)
    assert run.settled[0]


@pytest.mark.parametrize(
    ("targeted", "answer", "wins"),
    [
        (True, 2, True), (True, 1, False), (True, 0, False), (True, cm.ALERT, False),
        (False, 2, True), (False, 1, True), (False, 0, False), (False, cm.ALERT, False),
    ],
)  # fmt: skip
def test_what_wins(targeted, answer, wins):
    one = np.ones(1)
    case = Case(0, one > 0, one, target=2, label=0, targeted=targeted)
    assert case.wins(answer, (cm.ALERT,)) == wins


def test_goals_are_for_the_target_alone(linear, asked):
    _, images, labels, _ = linear
    how = {"threat": THREAT, "search": attacks.PatchSearch(steps=5), "locations": 2}
    defense = cm.defenses.DoubleMasking(cm.mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=2))
    under = attacks.attacked(defense, _linear, linear[0], (SIZE, SIZE, 1), preprocessing=HOW)
    for one in (asked, under):
        for where in ("weakest", "gradient", "random"):
            goals = attacks.promising_goals(one, images, labels, target=1, where=where, **how)
            for label, some in zip(labels, goals, strict=True):
                assert bool(some) == (label != 1)
                assert all(goal.target == 1 and not goal.avoids for goal in some)
                assert all(goal.answer == 1 for goal in some if goal.wins and one is under)
        of_that_class = np.full(COUNT, 1, np.int32)
        assert attacks.promising_goals(one, images, of_that_class, target=1, **how) == [[]] * COUNT
    with pytest.raises(ValueError, match="target: expected a class of the model, 0 to 2, got 3"):
        attacks.promising_goals(asked, images, labels, target=3, **how)


def test_of_given_places_each_comes_once_before_any_comes_again(linear, asked):
    _, images, labels, _ = linear
    places = attacks.places_on_grid(THREAT, stride=3)
    how = {"threat": THREAT, "search": attacks.PatchSearch(steps=5), "given": places}
    everywhere = {place.tobytes() for place in places}
    defense = cm.defenses.DoubleMasking(cm.mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=2))
    under = attacks.attacked(defense, _linear, linear[0], (SIZE, SIZE, 1), preprocessing=HOW)
    for one in (asked, under):
        for some in attacks.promising_goals(one, images, labels, locations=len(places), **how):
            assert {goal.place.tobytes() for goal in some} == everywhere
            assert len(some) == len(places)
    for some in attacks.promising_goals(under, images, labels, locations=len(places) + 3, **how):
        assert {goal.place.tobytes() for goal in some[: len(places)]} == everywhere
        assert len(some) == len(places) + 3


def test_the_best_of_each_place_is_its_first():
    def goal(place, target, wins):
        return Goal(
            np.asarray([place]), np.zeros(1, np.int32), np.ones(1, np.bool_), ANY, wins, 0.0,
            target=target,
        )  # fmt: skip

    here, there = [1, 1, 0, 0], [1, 1, 0, 1]
    given = [
        (1.0, goal(here, 1, False)), (0.0, goal(here, 2, True)),
        (2.0, goal(here, 3, True)), (9.0, goal(there, 1, False)),
    ]  # fmt: skip
    best = [(one.place.tolist()[0], one.target) for one in _best_of_each_place(given, 3)]
    assert best == [(here, 2), (there, 1), (here, 3)]


def test_of_more_given_places_than_are_searched_the_model_is_attacked_at_the_best(linear):
    """Of two classes what a patch of the gradient's pixels does is what the best patch does."""
    params, images, _, _ = linear
    two = {"w": params["w"][:2], "b": params["b"][:2]}
    nothing = np.zeros((COUNT, 1, 4), np.int32)
    logits = np.asarray(cm.masked_logits(_linear, two, images, nothing, preprocessing=HOW))
    labels = logits.argmax(axis=1).astype(np.int32)
    places = attacks.places_on_grid(THREAT, stride=2)
    search = attacks.PatchSearch(steps=5, surplus=1.0)
    goals = attacks.promising_goals(
        attacks.attacked(None, _linear, two, (SIZE, SIZE, 1), preprocessing=HOW),
        images, labels, threat=THREAT, search=search, locations=1, given=places,
    )  # fmt: skip
    at_best = 0
    weights = np.asarray(two["w"], np.float64)[..., 0]
    leads = logits[np.arange(COUNT), labels] - logits[np.arange(COUNT), 1 - labels]
    for image, label, lead, [goal] in zip(images[..., 0] / 255, labels, leads, goals, strict=True):
        slope = weights[label] - weights[1 - label]
        gain = np.where(slope > 0, slope * image, slope * (image - 1))
        gains = [
            gain[row : row + height, column : column + width].sum()
            for [[height, width, row, column]] in places.tolist()
        ]
        taken = gains[places.tolist().index(goal.place.tolist())]
        enough = lead + search.surplus  # beyond which nothing is lost any more
        assert taken >= min(max(gains), enough) - 1e-5
        at_best += max(gains) < enough
    assert at_best > 3


def test_a_stride_that_meets_no_place_is_refused():
    threat = cm.Threat.of(SIZE, (2, 3), region=(1, 1, 4, 5))
    assert len(attacks.places_on_grid(threat, stride=1)) == 4
    with pytest.raises(ValueError, match=r"stride: expected one at which .* allows a patch, got 5"):
        attacks.places_on_grid(threat, stride=5)


def test_of_patches_that_break_nothing_the_nearest_is_kept():
    """Of equals the last; what is no number is furthest; and what breaks it is kept at once."""
    image, places = np.zeros((1, 2, 2, 1), np.uint8), np.asarray([[[1, 1, 0, 0]], [[1, 1, 1, 1]]])
    goals = attacks.undefended_goals(0, places=places)
    run = SearchSlots(image, np.zeros(1, np.int32), [0], 1, [goals], 1, 1, 0, allows_alert=False)
    run.fill()
    kept = []
    told = enumerate([(np.nan, 0), (3.0, 0), (1.0, 0), (2.0, 0), (1.0, 0), (np.nan, 0), (9.0, 1)])
    for level, (loss, answer) in told:
        [(number, slot)] = run.in_use()
        run.took(slot, 5)
        pixels = np.full((2, 2, 1), level + 1, np.uint8)
        run.settle(number, slot, pixels, answer, loss=loss, steps=20)
        kept.append((run.patched[0].max(), run.places[0, 0, 2]))
    assert kept == [(1, 0), (2, 0), (3, 0), (3, 0), (5, 1), (5, 1), (7, 1)]
    assert run.broken[0]
