"""Models without a gradient are refused before a search, and those with a little are not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks import attacked_images, followed_slopes
from certmask_jax.defenses.band_defense import DerandomizedSmoothing
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.looked_at import LookedAt
from certmask_jax.inference.two_parts import TwoParts, mean_of_kept

SIZE, CLASSES = 6, 3
HOW = cm.Preprocessing()
SEARCH = attacks.PatchSearch(steps=1)
THREAT = cm.Threat.of(SIZE, 1)


def _cells(params, x):
    return x * params[None]


def _linear(params, x):
    return _cells(params, x).mean(axis=(1, 2))


def _rounded(params, x):
    return _linear(params, jnp.round(x * 4) / 4)


def _nan(params, x):
    return _linear(params, x + jnp.sqrt(0 * x))


def _loops(params, x):
    return jax.lax.while_loop(lambda y: y.sum() > 1e9, lambda y: y, _linear(params, x))


def _calls_back(params, x):
    logits = _linear(params, x)
    shape = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    return jax.pure_callback(np.asarray, shape, logits)


WITHOUT = [
    (_rounded, "a slope of 0 at every pixel of each image that was looked at .8."),
    (_nan, "slopes that are not finite, or 0, at every pixel"),
    (_loops, "none, as JAX cannot differentiate it .*while_loop"),
    (_calls_back, "none, as JAX cannot differentiate it .*allbacks do not support"),
]


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    params = jnp.asarray(random.normal(size=(SIZE, SIZE, CLASSES)), jnp.float32)
    return params, random.integers(0, 256, (9, SIZE, SIZE, 1), np.uint8), np.zeros(9, np.int32)


@pytest.fixture
def _no_work(monkeypatch):
    """Nothing is searched for."""
    monkeypatch.setattr(attacked_images, "SearchSlots", None)


def _attack(apply_fn, world, images=slice(None)):
    params, pixels, labels = world
    goals = [attacks.undefended_goals(0, places=np.asarray([[[1, 1, 2, 2]]]))] * len(labels)
    return attacks.attack_images(
        apply_fn, params, pixels[images], labels[images], None, goals[images],
        preprocessing=HOW, search=SEARCH,
    )  # fmt: skip


@pytest.mark.parametrize(("apply_fn", "said"), WITHOUT, ids=lambda one: str(one)[:12])
@pytest.mark.usefixtures("_no_work")
def test_a_model_without_a_gradient_is_refused_before_any_work(world, apply_fn, said):
    whole = f"^model: expected a model with a gradient that a search can follow, got {said}"
    with pytest.raises(ValueError, match=whole) as error:
        _attack(apply_fn, world)
    assert str(error.value).endswith("does without: search_without_gradients")
    params, images, labels = world
    asked = attacks.attacked(None, apply_fn, params, (SIZE, SIZE, 1), preprocessing=HOW)
    with pytest.raises(ValueError, match=whole):
        attacks.promising_goals(asked, images, labels, threat=THREAT, search=SEARCH)
    with pytest.raises(ValueError, match=whole):
        attacks.universal_patch(
            apply_fn, params, images, labels, threat=THREAT, preprocessing=HOW, search=SEARCH
        )


def test_what_is_differentiated_is_what_the_search_of_a_defense_follows(world):
    """Local logits, bands, and stems: each has a gradient or not for itself."""
    params, images, labels = world
    local = LocalLogits(lambda p, x: _cells(p, jnp.round(x)), field=1, stride=1)
    patchguard = PatchGuard(THREAT, field=1, stride=1)
    bands = DerandomizedSmoothing(THREAT, band=2, threshold=0.4)
    stem = TwoParts(
        lambda p, x: _cells(p, jnp.round(x)), mean_of_kept, field=1, stride=1, image_size=SIZE
    )
    table = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(SIZE, 1, masks_per_axis=2))
    for apply_fn, defense in (
        (_linear, patchguard), (_rounded, bands), (stem, None), (_rounded, table),
    ):  # fmt: skip
        asked = attacks.attacked(
            defense, apply_fn, params, (SIZE, SIZE, 1), local=local, preprocessing=HOW
        )
        with pytest.raises(ValueError, match="got a slope of 0"):
            attacks.promising_goals(asked, images, labels, threat=THREAT, search=SEARCH)


def test_images_that_are_saturated_refuse_no_model(world):
    params, images, labels = world

    def saturated(held, x):
        return _linear(held, jnp.maximum(x - 0.5, 0))

    dark = images // 4
    dark[4] = images[4]
    made = _attack(saturated, (params, dark, labels))
    assert made.settled.all()
    with pytest.raises(ValueError, match="got a slope of 0"):  # another model, as it is another x
        _attack(lambda held, x: saturated(held, x), (params, images // 4, labels))


def test_a_model_is_looked_at_once_for_each_shape(world, monkeypatch):
    looked, real = [], followed_slopes._slopes_program
    monkeypatch.setattr(
        followed_slopes, "_slopes_program", lambda *given: looked.append(1) or real(*given)
    )

    def own(held, x):
        return _linear(held, x)

    params, images, _ = world
    for pixels in (images, images[:1], images[:0]):
        followed_slopes.check_slopes(followed_slopes.Followed(own, HOW), params, pixels)
    assert len(looked) == 1
    followed_slopes.check_slopes(
        followed_slopes.Followed(own, HOW), params, images, seen=LookedAt()
    )
    assert len(looked) == 2


def test_a_search_without_gradients_takes_such_a_model(world):
    params, images, _ = world
    labels = np.asarray(_rounded(params, jnp.asarray(images / 255, jnp.float32)))
    labels = labels.argmax(axis=1).astype(np.int32)
    defense = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(SIZE, 1, masks_per_axis=2))
    asked = attacks.attacked(defense, _rounded, params, (SIZE, SIZE, 1), preprocessing=HOW)
    made = attacks.search_without_gradients(
        asked._engine, asked.answers, images, labels, [np.asarray([[[1, 1, 0, 0]]])] * 9,
        search=attacks.BlackBoxSearch(queries=2),
    )  # fmt: skip
    assert made.settled.all()
