"""Training for interval bounds: what its loss is of, what it refuses, and that it teaches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import first_params, small_local, small_split_vit

from certmask_jax import data, models
from certmask_jax.inference.devices import device_mesh
from certmask_jax.training import step
from certmask_jax.training.bounded_patches import worst_logits
from certmask_jax.training.input_pipeline import InMemory
from certmask_jax.training.recipes import Recipe

RECIPE = Recipe(epochs=1, batch_size=32, cutout="none", bounds_patch=1, bounds_places=3)
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def net():
    return models.create("plain_digits")


def _pixels(model, count):
    images, labels = data.digits_arrays("train")
    config = model.data_config
    pixels = (images[:count] / 255 - config.mean[0]) / config.std[0]
    return jnp.asarray(pixels, jnp.float32), jnp.asarray(labels[:count], jnp.int32)


def _lags(model, params, pixels, labels):
    """By how much each class is before the true one, ``[B, K]``."""
    logits = np.asarray(model.module.apply(params, pixels))
    return logits - logits[np.arange(len(labels)), np.asarray(labels)][:, None]


def test_without_width_it_is_what_the_model_says(net):
    params = first_params(net)
    pixels, labels = _pixels(net, 6)
    worst = worst_logits(net, params, pixels, labels, KEY, patch=2, places=2, width=0.0)
    np.testing.assert_allclose(worst, _lags(net, params, pixels, labels), atol=2e-2)
    assert (worst[jnp.arange(6), labels] == 0).all()


def test_no_image_with_a_patch_at_its_place_is_worse(net):
    """A patch as large as the image has one place, so whatever is drawn here it covers."""
    params = first_params(net)
    pixels, labels = _pixels(net, 4)
    config = net.data_config
    ends = [(level - config.mean[0]) / config.std[0] for level in (0, 1)]
    rng = np.random.default_rng(0)
    for width in (0.1, 1.0):
        worst = worst_logits(net, params, pixels, labels, KEY, patch=8, places=1, width=width)
        worst_seen = np.full(worst.shape, -np.inf)
        for _ in range(60):
            noise = rng.choice(ends, pixels.shape).astype(np.float32)
            other = pixels + np.float32(width) * (noise - pixels)
            worst_seen = np.maximum(worst_seen, _lags(net, params, other, labels))
        assert (worst_seen <= np.asarray(worst)).all()


def test_more_places_are_no_better(net):
    """Each image has places of its own, and the worst of them counts."""
    params = first_params(net)
    pixels, labels = _pixels(net, 8)
    pixels = jnp.tile(pixels[:1], (8, 1, 1, 1))
    labels = jnp.tile(labels[:1], 8)
    one = worst_logits(net, params, pixels, labels, KEY, patch=1, places=1)
    assert len(np.unique(np.asarray(one).round(4), axis=0)) > 4  # places differ
    many = worst_logits(net, params, pixels, labels, KEY, patch=1, places=64)
    assert (np.asarray(many).max(axis=0) >= np.asarray(one).max(axis=0) - 1e-3).all()


def test_steps_bring_the_bounds_down(net):
    mesh = device_mesh(iter(jax.devices()[:1]))
    recipe = dataclasses.replace(
        RECIPE, optimizer="adamw", learning_rate=2e-3, bounds_ramp=0.01, epochs=4
    )
    images, labels = data.digits_arrays("train")
    pixels = InMemory(images[:256], labels[:256])
    made = step.trainer(net, recipe, num_images=256, mesh=mesh)
    state = made.start(first_params(net))

    def loss(params):
        some, true = _pixels(net, 64)
        worst = worst_logits(net, params, some, true, KEY, patch=1, places=4)
        picked = jnp.take_along_axis(worst, true[:, None], axis=1)[:, 0]
        return float((jax.nn.logsumexp(worst, axis=1) - picked).mean())

    before = loss(jax.device_get(state.variables))
    rng = np.random.default_rng(0)
    for number in range(30):
        batch = pixels.gather(rng.integers(0, 256, 32))
        state, measures = made.step(state, made.put(batch, np.array([0, number], np.uint32)))
    assert np.isfinite(float(measures.loss))
    assert loss(jax.device_get(state.variables)) < before - 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bounds_patch": 9}, "bounds_patch: expected at most 8 pixels; got 9"),
        ({"train": "last_block"}, "train: expected all, where bounds are trained"),
        ({"compute": "bfloat16"}, "compute: expected float32, where bounds are trained"),
    ],
)
def test_what_bounds_are_not_trained_with_is_refused(net, changed, message):
    recipe = dataclasses.replace(RECIPE, **changed)
    model = net if "train" not in changed else models.create("vit_digits")
    with pytest.raises(ValueError, match=message):
        step.trainer(model, recipe, num_images=64)


def test_models_that_have_no_bounds_are_refused():
    with pytest.raises(ValueError, match="feature_window: expected 0, where bounds"):
        step.trainer(small_local(), dataclasses.replace(RECIPE, feature_window=2), num_images=64)
    parts = models.in_two_parts(small_split_vit(), windows=(4, 1), depth=1)
    with pytest.raises(ValueError, match="bounds_patch: expected a model of whole images"):
        step.trainer(parts, RECIPE, num_images=64)


def test_a_recipe_says_what_its_values_may_be():
    for changed, message in (
        ({"bounds_patch": -1}, "bounds_patch: expected at least 0"),
        ({"bounds_places": 0}, "bounds_places: expected at least 1"),
        ({"bounds_ramp": 1.0}, "bounds_ramp: expected 0 <= bounds_ramp < 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**changed)
