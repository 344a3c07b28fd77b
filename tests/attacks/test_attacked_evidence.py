"""Attacks on local evidence and on bands, held against every level that a patch can have."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks import asked_scores, attacked_evidence, rule_scores
from certmask_jax.attacks.table_goals import ANY
from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.band_defense import DerandomizedSmoothing
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits

SIZE, CLASSES, COUNT = 6, 3, 16
HOW = cm.Preprocessing()
ONE_PIXEL, TWO = cm.Threat.of(SIZE, 1), cm.Threat.of(SIZE, 2)


def _cells(params, x):
    """Evidence of each pixel alone."""
    return x * params["slope"][None] + params["bias"][None]


def _whole(params, x):
    """The mean of that, bent, so that bands are not the sum of their pixels."""
    return jnp.sin(_cells(params, x)).mean(axis=(1, 2)) * 6


LOCAL = LocalLogits(_cells, field=1, stride=1)


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    params = {
        "slope": jnp.asarray(random.normal(0, 2, (SIZE, SIZE, CLASSES)), jnp.float32),
        "bias": jnp.asarray(random.normal(0, 1, (SIZE, SIZE, CLASSES)), jnp.float32),
    }
    return params, random.integers(0, 256, (COUNT, SIZE, SIZE, 1), np.uint8)


def _asked(defense, params):
    return attacks.attacked(
        defense, _whole, params, (SIZE, SIZE, 1), local=LOCAL, preprocessing=HOW,
        mesh=device_mesh(jax.devices()[:1]),
    )  # fmt: skip


def _attacked(defense, world, goals=None, **how):
    params, images = world
    asked = _asked(defense, params)
    labels = asked.answers(images)
    right = np.flatnonzero(labels >= 0)
    search = attacks.PatchSearch(steps=30)
    if goals is None:
        goals = attacks.promising_goals(
            asked, images[right], labels[right], threat=defense.threat, search=search, locations=6
        )
    else:
        goals = goals(asked, images[right], labels[right])
    made = attacks.attack_images(
        _whole, params, images[right], labels[right], asked, goals, preprocessing=HOW,
        search=search, mesh=device_mesh(jax.devices()[:1]), at_once=COUNT, **how,
    )  # fmt: skip
    robust = np.asarray(asked.results(images[right], labels[right]).verdicts[:, 0])
    return asked, images[right], labels[right], goals, made, robust


def _at(places, targets):
    nothing = np.full(1, ANY, np.int32)

    def goals(asked, images, labels):
        del asked, images
        return [
            [
                attacks.Goal(place, nothing, nothing != ANY, ANY, True, 0.0, target=z)
                for place in places
                for z in targets
                if z != label
            ]
            for label in labels
        ]

    return goals


def test_clipped_means_are_broken_exactly_where_levels_can(world):
    """Cells of one pixel are independent, so each has its own best level."""
    clip, place = 1.0, np.asarray([[2, 2, 1, 3]])
    params, _ = world
    defense = ClippedBagNet(TWO, field=1, stride=1, clip=clip)
    _, images, labels, _, made, _ = _attacked(
        defense, world, _at([place], range(CLASSES)), starts=3
    )

    def clipped(levels):
        return np.clip(np.asarray(_cells(params, jnp.asarray(levels / 255, jnp.float32))), 0, clip)

    every = clipped(np.broadcast_to(np.arange(256)[:, None, None, None], (256, SIZE, SIZE, 1)))
    inside = np.zeros((SIZE, SIZE, 1), bool)
    inside[1:3, 3:5] = True
    possible = []
    for image, label in zip(images, labels, strict=True):
        fixed = np.where(inside, 0, clipped(image[None])[0]).sum(axis=(0, 1))
        leads = [
            fixed[z] - fixed[label]
            + np.where(inside[..., 0], (every[..., z] - every[..., label]).max(axis=0), 0).sum()
            for z in range(CLASSES) if z != label
        ]  # fmt: skip
        possible.append(max(leads) > 0)
    assert (made.broken == np.asarray(possible)).all()
    assert 0 < sum(possible) < len(possible)


DEFENSES = [
    PatchGuard(ONE_PIXEL, field=1, stride=1, clip=2.0),
    PatchGuardDetection(ONE_PIXEL, field=1, stride=1, tau=0.35),
    BagCert(ONE_PIXEL, field=1, stride=1, threshold=0.5),
    DerandomizedSmoothing(ONE_PIXEL, band=2, threshold=0.4),
    MaskDS(ONE_PIXEL, band=2),
]


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: d.name)
def test_one_pixel_breaks_nothing_that_its_levels_cannot(world, defense):
    """All 256 levels of each pixel are tried, under the rule itself."""
    asked, images, labels, goals, made, robust = _attacked(defense, world)
    assert not (made.broken & robust).any()
    wins = np.asarray([any(goal.wins for goal in some) for some in goals])
    assert not (wins & robust).any()
    broken = asked.answers(made.patched) != labels
    if asked.may_alert:
        broken &= asked.answers(made.patched) >= 0
    assert (broken == made.broken).all()
    can = _breakable(asked, images, labels)
    assert not (made.broken & ~can).any()
    assert not (can & robust).any()
    assert made.broken.sum() >= 0.6 * can.sum()


def _breakable(asked, images, labels):
    breaks = []
    for image, label in zip(images, labels, strict=True):
        tried = []
        for row, column in itertools.product(range(SIZE), range(SIZE)):
            some = np.repeat(image[None], 32, axis=0)  # every eighth level, and both ends
            some[:, row, column, 0] = np.linspace(0, 255, 32).round()
            tried.append(some)
        answers = _of(asked, np.concatenate(tried))
        breaks.append(((answers != label) & ((answers >= 0) | (not asked.may_alert))).any())
    return np.asarray(breaks)


def _of(asked, images):
    """The rule on the evidence, by what is public alone."""
    if isinstance(asked, attacked_evidence.OnBands):
        return asked.seen(images).answers
    evidence = np.asarray(_cells(asked.params, jnp.asarray(images, jnp.float32) / 255))
    zeros = np.zeros(len(images), np.int32)
    return np.asarray(asked.defense.results(jnp.asarray(evidence), jnp.asarray(zeros)).answer)


@pytest.mark.parametrize("defense", [DEFENSES[0], ClippedBagNet(ONE_PIXEL, field=1, stride=1)])
def test_a_search_without_gradients_finds_what_the_levels_of_a_pixel_can(world, defense):
    """Every place of one pixel is tried, so only the levels are searched for."""
    params, images = world
    asked = _asked(defense, params)
    labels = asked.answers(images)
    right = np.flatnonzero(labels >= 0)
    images, labels = images[right], labels[right]
    everywhere = attacks.places_on_grid(ONE_PIXEL, stride=1)
    made = attacks.search_without_gradients(
        asked_scores.NearestLabels(asked), asked.answers, images, labels,
        [everywhere] * len(images), allowed=(cm.ALERT,) if asked.may_alert else (),
        search=attacks.BlackBoxSearch(proposals="random", queries=10),
    )  # fmt: skip
    can = _breakable(asked, images, labels)
    assert not (made.broken & ~can).any()
    assert can.any()
    assert made.broken.sum() >= 0.8 * can.sum()
    again = asked.answers(made.patched)
    assert (made.broken == (again != labels) & ((again >= 0) | (not asked.may_alert))).all()


def test_the_nearest_label_leads_by_what_the_next_one_lags_more(world):
    params, images = world
    evidence = _cells(params, jnp.asarray(images[:5], jnp.float32) / 255)
    for defense in (*DEFENSES[:3], ClippedBagNet(TWO, field=1, stride=1, clip=1.0)):
        lag = functools.partial(rule_scores.wrong_lag, defense)
        one_by_one = np.asarray([[lag(u, jnp.int32(z)) for z in range(CLASSES)] for u in evidence])
        of = asked_scores.NearestLabels(_asked(defense, params))
        said = of.evaluate(images[:5], np.asarray([4, 0]), np.zeros(2, int))
        wanted = np.sort(one_by_one, axis=1)
        assert (said.predictions == one_by_one.argmin(axis=1)[[4, 0]]).all()
        np.testing.assert_allclose(said.margins, (wanted[:, 1] - wanted[:, 0])[[4, 0]], atol=1e-5)


def test_a_score_says_who_is_answered(world):
    """The smooth scores of rules that have no alert are 0 or less for the answer alone."""
    params, images = world
    evidence = _cells(params, jnp.asarray(images, jnp.float32) / 255)
    for defense in (
        PatchGuard(TWO, field=1, stride=1, clip=2.0),
        PatchGuard(TWO, field=1, stride=1, threshold=0.3),
        ClippedBagNet(TWO, field=1, stride=1, clip=1.0),
        BagCert(TWO, field=1, stride=1, threshold=0.5),
    ):
        answers = np.asarray(defense.results(evidence, jnp.zeros(COUNT, jnp.int32)).answer)
        lag = functools.partial(rule_scores.wrong_lag, defense)
        of_all = jax.jit(jax.vmap(jax.vmap(lag, (None, 0)), (0, None)))
        lags = np.asarray(of_all(evidence, jnp.arange(CLASSES, dtype=jnp.int32)))
        assert ((lags <= 1e-5).argmax(axis=1) == answers).all()
        assert ((lags <= 1e-5).sum(axis=1) == 1).all()


def test_a_place_that_no_cell_sees_is_no_goal(world):
    """Of cells two apart, which see one pixel each, none sees the pixel between."""
    params, images = world
    local = LocalLogits(lambda held, x: _cells(held, x)[:, ::2, ::2], field=1, stride=2)
    defense = PatchGuard(ONE_PIXEL, field=1, stride=2, clip=2.0)
    asked = attacks.attacked(
        defense, lambda held, x: local.apply_fn(held, x).mean(axis=(1, 2)), params, (SIZE, SIZE, 1),
        local=local, preprocessing=HOW, mesh=device_mesh(jax.devices()[:1]),
    )  # fmt: skip
    labels, place = asked.answers(images), np.asarray([[[1, 1, 3, 3]]])
    how = {"threat": ONE_PIXEL, "search": attacks.PatchSearch()}
    assert not any(attacks.promising_goals(asked, images, labels, given=place, **how))
    assert all(attacks.promising_goals(asked, images, labels, given=place - [0, 0, 1, 1], **how))


def test_a_defense_on_local_logits_needs_them(world):
    params, _ = world
    with pytest.raises(ValueError, match="local: expected the local logits of the model"):
        attacks.attacked(
            DEFENSES[0], _whole, params, (SIZE, SIZE, 1), local=None, preprocessing=HOW,
            mesh=device_mesh(jax.devices()[:1]),
        )  # fmt: skip
