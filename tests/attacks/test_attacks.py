"""Attacks: patches where they may be, a closed form that is reached, goals by exhaustion."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks import (
    first_order,
    patch_places,
    patch_search,
    patched_pixels,
    search_objectives,
    search_slots,
    tried_losses,
    tried_places,
)
from certmask_jax.attacks.goals_in_time import GoalsInTime
from certmask_jax.attacks.table_goals import ANY, Goal
from certmask_jax.inference.devices import device_mesh
from certmask_jax.tables.prediction_table import from_labels

SIZE = 8
HOW = cm.Preprocessing()


def _linear(params, x):
    return jnp.einsum("bhwc,khwc->bk", x, params["w"]) + params["b"][None]


@pytest.fixture(scope="module")
def linear():
    random = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(random.normal(size=(3, SIZE, SIZE, 1)), jnp.float32),
        "b": jnp.asarray([0.5, 0.0, -0.5], jnp.float32),
    }
    images = random.integers(0, 256, (12, SIZE, SIZE, 1), np.uint8)
    nothing = np.zeros((12, 1, 4), np.int32)
    logits = np.asarray(cm.masked_logits(_linear, params, images, nothing, preprocessing=HOW))
    return params, images, logits.argmax(axis=1).astype(np.int32), logits


def _strongest(params, images, logits, label, place):
    """The least lead of the label that any patch at a place leaves, over all other classes."""
    weights = np.asarray(params["w"], np.float64)
    [[height, width, row, column]] = place
    inside = (slice(row, row + height), slice(column, column + width))
    leads = []
    for other in {0, 1, 2} - {int(label)}:
        slope = weights[label] - weights[other]
        fixed = logits[label] - logits[other] - (slope[inside] * images[inside] / 255).sum()
        leads.append(fixed + np.minimum(slope[inside], 0).sum())
    return min(leads)


@pytest.mark.parametrize("optimizer", ["sign", "adam"])
def test_a_linear_model_is_broken_exactly_where_a_patch_can(linear, optimizer):
    params, images, labels, logits = linear
    threat = cm.Threat.of(SIZE, (3, 2))
    places = attacks.random_places(threat, len(images), np.random.default_rng(1))
    goals = [
        attacks.undefended_goals(int(label), places=place[None])
        for label, place in zip(labels, places, strict=True)
    ]
    made = attacks.attack_images(
        _linear, params, images, labels, None, goals,
        preprocessing=HOW, search=attacks.PatchSearch(steps=60, optimizer=optimizer), at_once=8,
    )  # fmt: skip
    least = np.asarray(
        [_strongest(params, *one) for one in zip(images, logits, labels, places, strict=True)]
    )
    assert (made.broken == (least < 0)).all()
    assert 0 < made.broken.sum() < len(images)
    for image, patched, place in zip(images, made.patched, places, strict=True):
        [[height, width, row, column]] = place
        changed = np.argwhere((image != patched).any(axis=2))
        assert ((changed >= [row, column]) & (changed < [row + height, column + width])).all()


def test_a_patch_of_the_data_sets_own_pixels_is_searched_for_before_they_are_resized(linear):
    params, _, _, _ = linear
    own = 5  # pixels on a side, which the model sees as 8
    how = cm.Preprocessing(resize_to=(SIZE, SIZE))
    images = np.random.default_rng(3).integers(0, 256, (12, own, own, 1), np.uint8)

    def logits_of(pixels):
        nothing = np.zeros((len(pixels), 1, 4), np.int32)
        return np.asarray(cm.masked_logits(_linear, params, pixels, nothing, preprocessing=how))

    # What each own pixel is worth: by forward passes of images in which it alone is white.
    white = 255 * np.eye(own * own, dtype=np.uint8).reshape(-1, own, own, 1)
    worth = logits_of(white) - logits_of(np.zeros_like(white))
    linear_there = {"w": worth.T.reshape(3, own, own, 1)}
    logits = logits_of(images)
    labels = logits.argmax(axis=1).astype(np.int32)
    places = attacks.random_places(cm.Threat.of(own, (1, 2)), 12, np.random.default_rng(1))
    goals = [
        attacks.undefended_goals(int(label), places=place[None])
        for label, place in zip(labels, places, strict=True)
    ]
    search = attacks.PatchSearch(steps=60)
    made = attacks.attack_images(
        _linear, params, images, labels, None, goals, preprocessing=how, search=search, at_once=8
    )
    given = zip(images, logits, labels, places, strict=True)
    least = np.asarray([_strongest(linear_there, *one) for one in given])
    assert (made.broken == (least < 0)).all()
    assert 0 < made.broken.sum() < 12
    for image, patched, place in zip(images, made.patched, places, strict=True):
        [[height, width, row, column]] = place
        changed = np.argwhere((image != patched).any(axis=2))
        assert ((changed >= [row, column]) & (changed < [row + height, column + width])).all()


def test_the_closed_form_is_reached_to_the_pixel(linear):
    """Without early ends all pixels end at 0 or 255, as the signs of the weights say."""
    params, images, _, logits = linear
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:1])  # fmt: skip
    target = int(np.argsort(logits[0])[-2])
    goals = search_objectives.Goals(
        jnp.asarray(images[:1]), jnp.asarray([[[2, 3, 5, 7]]], jnp.int32),
        jnp.asarray([[target]], jnp.int32), jnp.ones((1, 1), jnp.bool_), jnp.ones((1, 1)),
        jnp.zeros(1, jnp.bool_), jnp.zeros(1, jnp.int32), jnp.asarray([target], jnp.int32),
    )  # fmt: skip
    search = attacks.PatchSearch(steps=40, surplus=1e6)
    objective = search_objectives.LabelsWanted(_linear, HOW, 1, 1e6)
    keys = jax.random.split(jax.random.key(0), 1)
    searches = patch_search.begun(goals.images, keys, search, from_image=jnp.ones(1, jnp.bool_))
    # Against the label that wins anyway, both leads grow; the other classes play no part while it
    # is the best of the others.
    program = patch_search.steps_program(objective, search, 40, mesh)
    free = np.asarray(program(params, jnp.zeros((1, 1, 4), jnp.int32), goals, searches, keys).free)
    weights = np.asarray(params["w"])
    patch = free[0, 2:5, 3:7, 0]
    assert np.isin(patch, [0, 255]).all()
    final = np.asarray(images[0], np.float32)
    final[2:5, 3:7, 0] = patch
    reached = (weights * final / 255).sum(axis=(1, 2, 3)) + np.asarray(params["b"])
    rival = max({0, 1, 2} - {target}, key=lambda k: reached[k])
    slope = (weights[target] - weights[rival])[2:5, 3:7, 0]
    assert (patch == np.where(slope > 0, 255, 0)).all()


def test_gradients_are_those_of_finite_differences(linear):
    params, images, _, _ = linear

    def smooth(p, x):
        return jnp.tanh(_linear(p, x) / 4) * 4

    corners = jnp.asarray([[1, 1, 4, 5]], jnp.int32)
    boxes = jnp.asarray([[[0, 0, 3, 3]]], jnp.int32)

    def lag(free):
        patched = attacks.with_patches(images[0], free, corners)[None]
        logits = cm.masked_logits(smooth, params, patched, boxes, preprocessing=HOW)
        wanted = jnp.asarray([2], jnp.int32)
        return search_objectives.margin_losses(logits, wanted, jnp.asarray(False))[0]

    free = jnp.asarray(np.random.default_rng(2).uniform(20, 230, images[0].shape), jnp.float32)
    slope = np.asarray(jax.grad(lag)(free))
    assert (slope[:3, :3] == 0).all()  # hidden by the mask
    assert (slope[4:] == 0).all()  # outside the patch
    for row, column in [(3, 1), (1, 3), (2, 4)]:
        step = jnp.zeros_like(free).at[row, column, 0].set(4.0)
        numeric = (float(lag(free + step)) - float(lag(free - step))) / 8
        assert slope[row, column, 0] == pytest.approx(numeric, rel=2e-2, abs=1e-6)
        assert slope[row, column, 0] != 0


THREATS = [
    cm.Threat.of(SIZE, 3),
    cm.Threat.of(SIZE, (2, 3), (3, 2)),
    cm.Threat.of(SIZE, 2, patches=2),
    cm.Threat.of(SIZE, 2, region=[(0, 0, 3, 8), (4, 4, 8, 8)]),
]


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_places_are_those_of_the_threat(threat):
    random = np.random.default_rng(0)
    some = [attacks.random_places(threat, 20, random), attacks.places_on_grid(threat, stride=3)]
    if len(threat) == 1:
        some.append(attacks.places_by_gradient(random.random((SIZE, SIZE)), threat, 4))
        every = attacks.places_on_grid(threat, stride=1)
        assert len(every) == sum(threat.allowed(shape).sum() for shape in threat.shapes)
    for places in some:
        assert len(places)
        for place in places:
            patched_pixels.check_placement(place, threat)
    with pytest.raises(ValueError, match="place: expected"):
        patched_pixels.check_placement(np.asarray([[9, 9, 0, 0]] * len(threat)), threat)


def test_the_pixels_with_most_gradient_come_first():
    mass = np.zeros((SIZE, SIZE))
    mass[5:7, 1:3], mass[0, 7] = 1, 3
    places = attacks.places_by_gradient(mass, cm.Threat.of(SIZE, 2), 2)
    assert places[0].tolist() == [[2, 2, 5, 1]]
    assert places[1].tolist() == [[2, 2, 0, 6]]


def _capped(params, x):
    """The second class gains by pixels up to a cap; the first stays."""
    slope, cap = params["slope"][None], params["cap"][None]
    gained = (slope * jnp.minimum(x[..., 0], cap)).sum(axis=(1, 2))
    return jnp.stack([jnp.ones_like(gained), gained], axis=1)


def test_places_are_tried_as_a_slope_says_nothing_of_how_far_it_goes():
    """Steep pixels that are at their cap at once, and others that can go far."""
    slope, cap = np.full((2, SIZE, SIZE), 0.01, np.float32)
    slope[0:2, 0:2], cap[0:2, 0:2] = 3, 0.1
    slope[5:7, 4:6], cap[5:7, 4:6] = 0.3, 1
    params = {"slope": jnp.asarray(slope), "cap": jnp.asarray(cap)}
    images, labels = np.full((3, SIZE, SIZE, 1), 5, np.uint8), np.zeros(3, np.int32)
    asked = attacks.attacked(None, _capped, params, (SIZE, SIZE, 1), preprocessing=HOW)
    how = {"threat": cm.Threat.of(SIZE, 2), "search": attacks.PatchSearch(), "locations": 1}
    for where, place in (("weakest", [2, 2, 5, 4]), ("gradient", [2, 2, 0, 0])):
        for [goal] in attacks.promising_goals(asked, images, labels, where=where, **how):
            assert goal.place.tolist() == [place]
    pairs = first_order.Pairs(
        asked, how["search"], images, labels, np.full(3, ANY, np.int32), labels[:, None]
    )
    ends = pairs.ways().ends
    places = attacks.places_on_grid(how["threat"], stride=1)
    everywhere = np.repeat(places[None], 3, axis=0)
    losses = tried_losses.losses_tried(pairs, ends, everywhere, showing=asked.showing())
    for lost, [[height, width, row, column]] in zip(losses[1], places.tolist(), strict=True):
        patched = images[1, ..., 0] / 255
        patched[row : row + height, column : column + width] = 1
        lead = 1 - (slope * np.minimum(patched, cap)).sum()
        assert lost == pytest.approx(max(lead, -1) + 1, abs=1e-5)


def test_a_masked_image_is_tried_at_the_places_that_it_does_not_hide(linear, monkeypatch):
    """Against NumPy at every place; what hides a place is looked at once, without the patch."""
    params, images, labels, logits = linear
    defense = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(SIZE, 2, masks_per_axis=2))
    asked = attacks.attacked(defense, _linear, params, (SIZE, SIZE, 1), preprocessing=HOW)
    targets = np.where(np.arange(4) < 3, logits[:4].argsort(axis=1)[:, 1], ANY).astype(np.int32)
    wanted = np.full((4, len(asked.boxes)), ANY, np.int32)
    for row, some in enumerate(([0, 3, 4], [1, 2], [5], [0, 7, 9])):
        wanted[row, some] = targets[row] if targets[row] != ANY else labels[row]
    search, ends = attacks.PatchSearch(surplus=0.5), 255 - images[:4]
    pairs = first_order.Pairs(asked, search, images[:4], labels[:4], targets, wanted)
    places = np.repeat(attacks.places_on_grid(defense.threat, stride=2)[None], 4, axis=0)
    passes = []
    real = tried_losses._each_program

    def counting(objective, mesh):
        return lambda *given: (passes.append(given[4]), real(objective, mesh)(*given))[1]

    monkeypatch.setattr(tried_losses, "_each_program", counting)
    mean_losses = tried_losses.losses_tried(pairs, ends, places, showing=asked.showing())
    count = 0
    for row, there in enumerate(places):
        columns = np.flatnonzero(wanted[row] != ANY)
        shown = np.stack([patched_pixels.shows(asked.boxes[columns], place) for place in there])
        count += shown.sum() + (~shown).any(axis=0).sum()
        for number, [[height, width, top, left]] in enumerate(there):
            losses = []
            for column in columns:
                seen = images[row, ..., 0] / 255
                inside = (slice(top, top + height), slice(left, left + width))
                seen[inside] = ends[row, ..., 0][inside] / 255
                for above, before, below, after in asked.boxes[column]:
                    seen[above:below, before:after] = 0
                said = (np.asarray(params["w"])[..., 0] * seen).sum((1, 2)) + params["b"]
                named = said[wanted[row, column]]
                best = np.delete(said, wanted[row, column]).max()
                lag = named - best if targets[row] == ANY else best - named
                losses.append(max(lag, -0.5) + 0.5)
            assert mean_losses[row, number] == pytest.approx(np.mean(losses), abs=1e-5)
    [at_once] = {len(boxes) for boxes in passes}
    assert at_once * len(passes) < places.shape[1] * (wanted != ANY).sum()  # some were left out
    assert len(passes) == -(-count // at_once)


@pytest.mark.parametrize("threat", [t for t in THREATS if len(t) == 1], ids=str)
@pytest.mark.parametrize("most", [4, 9, 30, 1000])
def test_places_everywhere_are_the_finest_grid_that_is_small_enough(threat, most):
    places = patch_places.places_everywhere(threat, most=most)
    assert 0 < len(places) <= most
    assert len({tuple(place.ravel()) for place in places}) == len(places)
    for place in places:
        patched_pixels.check_placement(place, threat)
    allowed = sum(int(threat.allowed(shape).sum()) for shape in threat.shapes)
    if most >= allowed:
        assert len(places) == allowed


def test_many_shapes_are_tried_anywhere_and_not_in_corners_alone():
    """A grid of few places has no room for more than the corners of each, or not for all."""
    randoms = [np.random.default_rng(seed) for seed in range(3)]
    for count in (4, 12, 70):
        threat = cm.Threat.of(150, *[(n + 1, count - n) for n in range(count)])
        assert len(threat.shapes) == count
        places = tried_places.places_to_try(threat, randoms)
        assert len(places) == 3
        assert 32 <= places.shape[1] <= 64
        height, row = places[..., 0], places[..., 2]
        assert ((row > 0) & (row < 150 - height)).mean() > 0.2
        for place in places[0]:
            patched_pixels.check_placement(place, threat)


def test_the_best_places_that_are_not_near_each_other():
    places = attacks.places_on_grid(cm.Threat.of(SIZE, 3), stride=1)
    losses = np.random.default_rng(0).normal(size=len(places))
    chosen = patch_places.best_apart(places, losses, 4)
    left = set(range(len(places)))
    for number in chosen:  # one after the other, by hand
        assert losses[number] == min(losses[sorted(left)])
        row, column = places[number, 0, 2:]
        left -= {n for n in left if (abs(places[n, 0, 2:] - [row, column]) <= 1).all()}
    assert len(chosen) == 4


@pytest.mark.parametrize(("schedule", "moved"), [("constant", 4.0), ("linear", 2.5)])
def test_steps_get_smaller_or_not(linear, schedule, moved):
    """Of four steps, all of one sign: 1 + 3/4 + 1/2 + 1/4 of the first."""
    params, _, labels, _ = linear
    images = np.full((1, SIZE, SIZE, 1), 128, np.uint8)
    search = attacks.PatchSearch(steps=4, step_size=0.02, schedule=schedule, surplus=1e6)
    goals = [attacks.undefended_goals(0, places=np.asarray([[[2, 2, 3, 3]]]))]
    made = attacks.attack_images(
        lambda held, x: _linear(held, x)[:, :2], params, images, labels[:1] * 0, None, goals,
        preprocessing=HOW, search=search,
    )  # fmt: skip
    away = np.abs(made.patched[0, 3:5, 3:5, 0].astype(int) - 128)
    assert (np.abs(away - moved * 0.02 * 255) <= 1).all()


def test_what_shows_a_patch_is_counted_pixel_by_pixel():
    random = np.random.default_rng(3)
    boxes = np.sort(random.integers(0, SIZE + 1, (40, 2, 2, 2)), axis=2).reshape(40, 2, 4)
    boxes = boxes.astype(np.int32)
    place = np.asarray([[3, 2, 4, 1], [1, 1, 0, 0]])
    hidden = np.zeros((40, SIZE, SIZE), bool)
    for mask, box in itertools.product(range(40), range(2)):
        top, left, bottom, right = boxes[mask, box]
        hidden[mask, top:bottom, left:right] = True
    wanted = ~(hidden[:, 4:7, 1:3].all(axis=(1, 2)) & hidden[:, 0, 0])
    assert (patched_pixels.shows(boxes, place) == wanted).all()


def _defenses():
    masks = cm.mask_sets.budgeted_grid(SIZE, 2, masks_per_axis=2)
    return [
        cm.defenses.double_masking(masks),
        cm.defenses.challenger_masking(masks),
        cm.defenses.certmask(cm.mask_sets.exact_k_fold(SIZE, 2, mask_size=4, coverage=(2, 1))),
        cm.defenses.minority_reports(masks, tau=0.5),
        cm.defenses.CrossCert(masks, cm.mask_sets.column_bands(SIZE, 2, band=2, stride=2)),
    ]


@pytest.mark.parametrize("defense", _defenses(), ids=lambda d: d.name)
def test_goals_win_only_where_the_table_adversary_does(defense):
    """And on all-correct rows CertMask, which is said to be certified there, is always won."""
    random = np.random.default_rng(4)
    count = len(defense.masked_images)
    rows = np.where(random.random((40, count)) < 0.85, 1, random.integers(0, 3, (40, count)))
    rows[:5] = 1
    table = from_labels(rows, defense.masked_images, num_classes=3)
    labels = np.ones(40, np.int32)
    robust = defense.worst_case(table, labels)
    places = attacks.weakest_places(defense.masked_images, defense.threat)
    goals_of_rows = [
        attacks.goals_at(
            defense, row, np.ones(count), 1, places=places, targets=[0, 2], num_classes=3
        )
        for row in rows
    ]
    wins = np.asarray([any(goal.wins for goal in goals) for goals in goals_of_rows])
    right = defense.rule(table) == labels
    assert not (wins & robust).any()
    assert (wins | robust | ~right).mean() > 0.9  # the families miss few that can be won
    if defense.name == "certmask":
        assert wins[:5].all()
        assert defense.conditions(table, labels)["k_fold_correct"][:5].all()
    for goals, row in zip(goals_of_rows, rows, strict=True):
        for goal in goals:
            shown = patched_pixels.shows(defense.masked_images.boxes, goal.place)
            assert ((goal.wanted == ANY) == ~shown).all()
            assert (goal.changed == (shown & (goal.wanted != row))).all()
            after = np.where(goal.wanted == ANY, row, goal.wanted)[None]
            answer = defense.rule(from_labels(after, defense.masked_images, num_classes=3))[0]
            assert answer == goal.answer


def _attacked(model, seed=0, numbers=None, which=slice(None), **search):
    params, images, labels, _ = model
    masks = cm.mask_sets.exact_k_fold(SIZE, 3, mask_size=5, coverage=(2, 1))
    defense = cm.defenses.certmask(masks)
    table = cm.predict(_linear, params, images, defense.masked_images, preprocessing=HOW)
    places = attacks.weakest_places(defense.masked_images, defense.threat)[:3]
    goals = [
        attacks.goals_at(
            defense, table.predictions[i], table.margins[i], int(labels[i]), places=places,
            targets=[z for z in range(3) if z != labels[i]], num_classes=3,
        )
        for i in range(len(images))
    ]  # fmt: skip
    made = attacks.attack_images(
        _linear, params, images[which], labels[which], defense, goals[which], preprocessing=HOW,
        search=attacks.PatchSearch(**{"steps": 20, **search}), starts=2, at_once=8, seed=seed,
        numbers=numbers,
    )  # fmt: skip
    return made, defense, table


@pytest.mark.parametrize(
    ("changed", "more", "said"),
    [
        ([True, False, True], {"target": 3}, "2 masked images say the target"),
        ([True, True, True], {"target": 3, "number": 2}, "exactly 2 masked images say the target"),
        ([False], {"target": 3}, "evidence of the target"),
        ([True], {"avoids": True}, "leave the true label"),
    ],
)
def test_what_a_goal_aims_at_is_said_in_words(changed, more, said):
    place, wanted = np.asarray([[1, 1, 0, 0]]), np.full(len(changed), ANY, np.int32)
    goal = Goal(place, wanted, np.asarray(changed), 3, True, 0.0, **more)
    assert goal.objective == said


def test_patched_images_are_answered_as_they_say(linear):
    params, _, labels, _ = linear
    made, defense, table = _attacked(linear)
    after = cm.predict(_linear, params, made.patched, defense.masked_images, preprocessing=HOW)
    assert (defense.rule(after) == made.answers).all()
    assert (made.broken == (made.answers != labels)).all()
    robust = defense.worst_case(table, labels)
    assert not (made.broken & robust).any()
    assert made.broken.any()


def test_what_an_image_gets_depends_on_its_number_alone(linear):
    short = {"steps": 2, "step_size": 0.02}  # after which a patch still is what was drawn
    for search in ({}, short):
        whole = _attacked(linear, **search)[0]
        part = _attacked(linear, numbers=range(8, 12), which=slice(8, 12), **search)[0]
        for name in ("patched", "broken", "answers", "steps"):
            assert (getattr(whole, name)[8:] == getattr(part, name)).all(), name
    other = _attacked(linear, seed=1, **short)[0]
    assert (other.patched[8:] != part.patched).any()


def test_a_table_that_is_too_large_to_be_looked_at_is_attacked_all_the_same(linear):
    params, images, labels, _ = linear
    masks = cm.mask_sets.budgeted_grid(SIZE, 2, masks_per_axis=2)
    defense = cm.defenses.double_masking(masks)
    shape = (SIZE, SIZE, 1)
    asked = attacks.attacked(defense, _linear, params, shape, preprocessing=HOW, most_columns=3)
    assert asked.seen(images[:2]).logits is None
    right = asked.answers(images) == labels
    search = attacks.PatchSearch(steps=20)
    chosen = images[right], labels[right]
    goals = attacks.promising_goals(asked, *chosen, threat=defense.threat, search=search)
    made = attacks.attack_images(
        _linear, params, *chosen, asked, goals, preprocessing=HOW, search=search
    )
    assert (defense.rule(_table(defense, params, made.patched)) == made.answers).all()
    robust = defense.worst_case(_table(defense, params, chosen[0]), chosen[1])
    assert made.broken.any()
    assert not (made.broken & robust).any()


def test_a_rule_that_errs_at_one_number_alone_is_met_on_the_way(linear, monkeypatch):
    """One step over the whole range goes past CertMask's k, and halves of the way lead back."""
    params, images, labels, _ = linear
    masks = cm.mask_sets.exact_k_fold(SIZE, 3, mask_size=5, coverage=(2, 1))
    defense = cm.defenses.certmask(masks)
    asked = attacks.attacked(defense, _linear, params, (SIZE, SIZE, 1), preprocessing=HOW)
    search = attacks.PatchSearch(steps=1, step_size=1.0)
    right = asked.answers(images) == labels
    chosen = images[right], labels[right]
    goals = attacks.promising_goals(
        asked, *chosen, threat=defense.threat, search=search, locations=1
    )
    narrow = [goal for some in goals for goal in some if goal.number]
    assert narrow
    for goal in narrow:
        assert goal.wins
        assert (goal.wanted == goal.target).sum() <= goal.number
    broken = []
    for halvings in (8, 0):
        made = attacks.attack_images(
            _linear, params, *chosen, asked, goals, preprocessing=HOW, search=search,
            halvings=halvings,
        )  # fmt: skip
        assert (defense.rule(_table(defense, params, made.patched)) == made.answers).all()
        broken.append(int(made.broken.sum()))
    assert broken[0] > broken[1]


def test_defenses_share_the_program_of_a_step(linear, monkeypatch):
    """One of single masks and one of pairs, of as many masked images a step, for any steps."""
    traced, real = [], patch_search._moved
    monkeypatch.setattr(patch_search, "_moved", lambda *given: (traced.append(1), real(*given))[1])
    params, images, labels, _ = linear
    masks = cm.mask_sets.exact_k_fold(SIZE, 3, mask_size=5, coverage=(2, 1))
    pairs = cm.mask_sets.budgeted_grid(SIZE, 3, masks_per_axis=2)
    surplus = 0.25  # of this test alone
    mesh = device_mesh(jax.devices()[:1])
    for steps, defense in (
        (20, cm.defenses.certmask(masks)),
        (9, cm.defenses.double_masking(pairs)),
    ):
        search = attacks.PatchSearch(steps=steps, masks_a_step=5, surplus=surplus)
        asked = attacks.attacked(
            defense, _linear, params, (SIZE, SIZE, 1), preprocessing=HOW, mesh=mesh
        )
        goals = attacks.promising_goals(
            asked, images[:4], labels[:4], threat=defense.threat, search=search, locations=1
        )
        attacks.attack_images(
            _linear, params, images[:4], labels[:4], asked, goals, preprocessing=HOW,
            search=search, mesh=mesh,
        )  # fmt: skip
        assert len(traced) == 1


def test_places_that_are_given_are_looked_at_and_no_others(linear):
    params, images, labels, _ = linear
    given = np.asarray([[[3, 3, 1, 2]], [[3, 3, 4, 0]]])
    masked = cm.defenses.certmask(cm.mask_sets.exact_k_fold(SIZE, 3, mask_size=5, coverage=(2, 1)))
    for defense in (masked, None):
        asked = attacks.attacked(defense, _linear, params, (SIZE, SIZE, 1), preprocessing=HOW)
        goals = attacks.promising_goals(
            asked, images[:3], labels[:3], threat=masked.threat, given=given,
            search=attacks.PatchSearch(steps=1, step_size=1.0),
        )  # fmt: skip
        assert all(goals)
        for goal in (goal for some in goals for goal in some):
            assert (goal.place == given).all(axis=(1, 2)).any()


def test_nothing_is_aimed_at_where_every_mask_hides_the_patch(linear):
    params, images, labels, _ = linear
    defense = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(SIZE, 2, masks_per_axis=2))
    asked = attacks.attacked(defense, _linear, params, (SIZE, SIZE, 1), preprocessing=HOW)
    middle = np.asarray([[[2, 2, 3, 3]]])
    assert not patched_pixels.shows(asked.boxes, middle[0]).any()
    how = {"threat": defense.threat, "search": attacks.PatchSearch(steps=1)}
    assert attacks.promising_goals(asked, images[:2], labels[:2], given=middle, **how) == [[], []]
    for goals in attacks.promising_goals(asked, images[:2], labels[:2], locations=9, **how):
        assert goals
        assert all(patched_pixels.shows(asked.boxes, goal.place).any() for goal in goals)


def _table(defense, params, images):
    return cm.predict(_linear, params, images, defense.masked_images, preprocessing=HOW)


def test_a_slot_that_is_free_is_filled_with_another_goal_or_image(linear):
    _, images, labels, _ = linear
    places = np.asarray([[[1, 1, 0, 0]], [[1, 1, 2, 2]]])
    goals = [attacks.undefended_goals(int(y), places=places) for y in labels]
    run = search_slots.SearchSlots(images, labels, range(12), 1, goals, 1, 2, 0, allows_alert=False)
    assert run.fill()
    (first, one), (second, other) = run.in_use()
    assert (one.image, other.image) == (0, 1)
    run.took(one, 10)
    run.took(other, 10)
    run.settle(first, one, images[0], int(labels[0]) + 1, loss=0, steps=10)  # broken
    run.settle(second, other, images[1], int(labels[1]), loss=0, steps=10)  # at its end
    assert run.fill()
    assert [(slot.image, slot.number) for _, slot in run.in_use()] == [(2, 0), (1, 1)]
    assert run.broken.tolist() == [True] + [False] * 11
    _, _, fresh, _ = run.arrays()
    assert np.asarray(fresh).all()


def test_one_that_is_stopped_says_which_images_are_left(linear):
    params, images, labels, _ = linear
    threat = cm.Threat.of(SIZE, (3, 2))
    places = attacks.random_places(threat, 12, np.random.default_rng(1))
    goals = [
        attacks.undefended_goals(int(y), places=place[None])
        for y, place in zip(labels, places, strict=True)
    ]
    how = {"preprocessing": HOW, "search": attacks.PatchSearch(steps=60), "at_once": 8}
    whole = attacks.attack_images(_linear, params, images, labels, None, goals, **how)
    part = attacks.attack_images(
        _linear, params, images, labels, None, goals, stop=lambda: True, **how
    )
    assert whole.settled.all()
    assert 0 < part.settled.sum() < 12
    assert (part.broken == (part.settled & whole.broken)).all()
    assert (part.patched[part.settled] == whole.patched[part.settled]).all()


def test_goals_are_chosen_when_a_search_comes_to_them(linear):
    params, images, labels, _ = linear
    places = attacks.random_places(cm.Threat.of(SIZE, (3, 2)), 12, np.random.default_rng(1))
    goals = [
        attacks.undefended_goals(int(y), places=place[None])
        for y, place in zip(labels, places, strict=True)
    ]
    goals[4] = []
    chosen, settled_when = [], []

    def choose(some):
        chosen.append(list(some))
        return [goals[n] for n in some]

    def when_settled(made, rows):
        settled_when.append((len(chosen), rows))

    in_time = GoalsInTime(12, choose, patches=1, at_once=5)
    how = {"preprocessing": HOW, "search": attacks.PatchSearch(steps=20), "at_once": 2}
    whole = attacks.attack_images(_linear, params, images, labels, None, goals, **how)
    made = attacks.attack_images(
        _linear, params, images, labels, None, in_time, when_settled=when_settled, **how
    )
    for one, other in zip(whole, made, strict=True):
        assert (one == other).all()
    assert chosen == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]  # each image once
    assert settled_when[0][0] == 1  # those of the others were not chosen yet
    assert [count for count, _ in settled_when] == sorted(count for count, _ in settled_when)


def test_goals_that_are_chosen_in_time_are_looked_at_too(linear):
    params, images, labels, _ = linear
    outside = attacks.undefended_goals(0, places=np.array([[[3, 2, 7, 7]]]))
    in_time = GoalsInTime(12, lambda some: [outside] * len(some), patches=1, at_once=4)
    assert len(in_time) == 12
    assert in_time[11] is outside
    with pytest.raises(IndexError):
        in_time[12]
    with pytest.raises(ValueError, match="expected"):
        attacks.attack_images(_linear, params, images, labels, None, in_time)
    for name in ("patches", "at_once"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            GoalsInTime(1, lambda _: [[]], **{"patches": 1, "at_once": 1, name: 0})


def test_bad_input_is_one_clear_error(linear):
    params, images, labels, _ = linear
    with pytest.raises(ValueError, match="goals: expected those of 12 images, got 1"):
        attacks.attack_images(_linear, params, images, labels, None, [[]])
    with pytest.raises(ValueError, match="images: expected shape"):
        attacks.attack_images(_linear, params, images[0], labels, None, [[]])
    for bad in (
        {"steps": 0},
        {"step_size": 0.0},
        {"optimizer": "lbfgs"},
        {"schedule": "cosine"},
        {"momentum": 1.0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
            attacks.PatchSearch(**bad)
    with pytest.raises(ValueError, match="stride: expected at least 1"):
        attacks.places_on_grid(THREATS[0], stride=0)
    with pytest.raises(ValueError, match="threat: expected one patch"):
        attacks.places_by_gradient(np.zeros((SIZE, SIZE)), THREATS[2], 1)


def test_half_of_what_a_step_looks_at_is_to_change():
    wanted = jnp.asarray([-1, 0, 1, 1, 1, 1, 1, 1, -1, 0], jnp.int32)
    changed = jnp.asarray([False, True] + [False] * 7 + [True])
    weight = jnp.ones(10).at[5].set(1e6)

    def drawn(seed, count, wanted=wanted, changed=changed):
        key = jax.random.key(seed)
        columns, counts = search_objectives.drawn(key, wanted, changed, weight, count=count)
        assert len(set(columns.tolist())) == count
        return columns, np.asarray(counts)

    others = set()
    for seed in range(8):
        columns, counts = drawn(seed, 4)
        assert set(columns[:2].tolist()) == {1, 9}
        assert counts.all()
        assert 5 in columns.tolist()  # which lacks most
        others |= set(columns[2:].tolist())
        columns, counts = drawn(seed, 6)
        assert np.asarray(changed)[columns].sum() == 2
        assert counts.all()
        few = jnp.where(changed, wanted, -1)  # nothing is to stay
        columns, counts = drawn(seed, 2, wanted=few)
        assert set(columns.tolist()) == {1, 9}
        columns, counts = drawn(seed, 4, wanted=few)
        assert counts.sum() == 2
    assert len(others) > 2


def test_steps_in_one_program_are_those_of_many(linear):
    """What accelerators run, a loop inside the program, is what CPUs do step by step."""
    params, images, labels, _ = linear
    mesh = device_mesh(jax.devices()[:1])
    goals = search_objectives.Goals(
        jnp.asarray(images[:3]), jnp.tile(jnp.asarray([[[1, 1, 4, 4]]], jnp.int32), (3, 1, 1)),
        jnp.asarray(labels[:3, None] + jnp.zeros((1, 6), jnp.int32)), jnp.ones((3, 6), jnp.bool_),
        jnp.ones((3, 6)), jnp.ones(3, jnp.bool_), jnp.asarray(labels[:3]),
        jnp.zeros(3, jnp.int32),
    )  # fmt: skip
    boxes = jnp.asarray([[[0, 0, n, n]] for n in range(6)], jnp.int32)
    search = attacks.PatchSearch(steps=4, momentum=0.5)
    objective = search_objectives.LabelsWanted(_linear, HOW, 2, 1.0)
    keys = jax.random.split(jax.random.key(3), 3)
    begun = patch_search.begun(goals.images, keys, search, from_image=jnp.ones(3, jnp.bool_))
    many = patch_search.steps_program(objective, search, 4, mesh)
    whole = functools.partial(
        patch_search._program(objective, search, 4, mesh), jnp.int32(search.steps)
    )
    one, other = (program(params, boxes, goals, begun, keys).free for program in (many, whole))
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert (np.asarray(one) != images[:3]).any()
