"""Interval bounds: against every image of a grid, exact sums by hand, and floats that tease."""

from __future__ import annotations

import itertools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax import models
from certmask_jax.inference.bound_propagation import (
    interval_bounds,
    least_differences,
    logit_bounds,
)
from certmask_jax.inference.interval_rules import Interval, outward, sum_loss


class Convolutions(nn.Module):
    """What a plain net may be made of, with pooling of both kinds and a norm."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.relu6(nn.Conv(6, (3, 3), (1, 1), feature_group_count=2)(x))
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID") / 4.0
        x = x.mean(axis=(1, 2))
        return nn.Dense(4)(jnp.tanh(nn.Dense(8)(x)))


class LastDense(nn.Module):
    """A dense layer after a mean, and what may stand after it."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (2, 2))(x)).mean(axis=(1, 2))
        return (nn.Dense(3)(x) - 0.25).reshape(-1, 3) / 2


NETS = {"convolutions": Convolutions(), "last dense": LastDense()}


def _made(net, seed=0, size=(6, 6, 2), batch=3):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(batch, *size)), jnp.float32)
    params = NETS[net].init(jax.random.key(seed), images)
    return NETS[net].apply, params, images, rng


def _leads(logits):
    own = np.eye(logits.shape[1], dtype=bool)
    rivals = np.where(own[None], -np.inf, logits[:, None, :]).max(axis=2)
    return logits - rivals


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("radius", [0, 1e-4, 0.1, 1.0])
def test_whatever_is_in_the_box_is_within_the_bounds(net, radius):
    apply_fn, params, images, rng = _made(net)
    lower, upper = images - radius, images + radius
    bounds = interval_bounds(apply_fn, params, lower, upper)
    together = logit_bounds(apply_fn, params, lower, upper)
    apply_fn = jax.jit(apply_fn)
    for _ in range(200):
        share = rng.choice([0.0, 1.0, rng.random()], size=images.shape).astype(np.float32)
        logits = np.asarray(apply_fn(params, lower + share * (upper - lower)))
        assert (bounds.lower <= logits).all()
        assert (logits <= bounds.upper).all()
        assert (together.leads <= _leads(logits)).all()


def test_a_mutant_without_the_sizes_of_weights_is_caught():
    """The check itself can fail: bounds of the ends alone leave something out."""
    apply_fn, params, images, rng = _made("last dense")
    ends = [apply_fn(params, images + end) for end in (-0.5, 0.5)]
    lower, upper = np.minimum(*ends), np.maximum(*ends)
    outside = 0
    for _ in range(50):
        pixels = images + jnp.asarray(rng.choice([-0.5, 0.5], images.shape), jnp.float32)
        logits = apply_fn(params, pixels)
        outside += int(((logits < lower) | (logits > upper)).sum())
    assert outside > 0


def test_bounds_of_one_layer_are_those_of_all_corners():
    """Of a dense layer they are exact, up to what rounding takes; so are those of differences."""
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=3), jnp.float32)

    def dense(params, x):
        return x @ params[0] + params[1][None]

    lower = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    upper = lower + jnp.asarray(rng.random((2, 5)), jnp.float32)
    bounds = interval_bounds(dense, (weights, bias), lower, upper)
    least = least_differences(dense, (weights, bias), lower, upper)
    corners = [
        np.asarray(jnp.where(jnp.asarray(corner)[None], upper, lower) @ weights + bias[None])
        for corner in itertools.product((False, True), repeat=5)
    ]
    np.testing.assert_allclose(bounds.lower, np.min(corners, axis=0), atol=2e-5)
    np.testing.assert_allclose(bounds.upper, np.max(corners, axis=0), atol=2e-5)
    differences = [each[:, :, None] - each[:, None, :] for each in corners]
    np.testing.assert_allclose(least, np.min(differences, axis=0), atol=2e-4)
    assert (np.asarray(bounds.lower) <= np.min(corners, axis=0)).all()


def test_two_logits_together_are_closer_than_each_by_itself():
    apply_fn, params, images, _ = _made("convolutions")
    lower, upper = images - 0.1, images + 0.1
    bounds = interval_bounds(apply_fn, params, lower, upper)
    apart = np.asarray(bounds.lower)[:, :, None] - np.asarray(bounds.upper)[:, None, :]
    together = np.asarray(least_differences(apply_fn, params, lower, upper))
    other = ~np.eye(4, dtype=bool)
    assert (together >= apart - 1e-3)[:, other].all()
    assert (together > apart + 1e-2)[:, other].mean() > 0.5


def test_sums_in_any_order_and_large_numbers_stay_within():
    """1e8 makes a float forget the rest: bounds have to know that it may."""
    x = jnp.asarray([[1e8, 1.0, -1e8, 1e-8, 3.0, -2.0]], jnp.float32)

    def summed(params, x):
        return x @ params

    ones = jnp.ones((6, 2), jnp.float32)
    bounds = interval_bounds(summed, ones, x, x)
    exact = sum(Fraction(float(one)) for one in np.asarray(x)[0])
    assert Fraction(float(bounds.lower[0, 0])) <= exact <= Fraction(float(bounds.upper[0, 0]))
    for order in itertools.permutations(np.asarray(x)[0].tolist()):
        total = np.float32(0)
        for one in order:
            total = np.float32(total + np.float32(one))
        assert bounds.lower[0, 0] <= total <= bounds.upper[0, 0]


def test_rounding_is_outward_and_small():
    bounds = outward(Interval(jnp.float32(1.0), jnp.float32(2.0)))
    assert 1 - 1e-6 < bounds.lower < 1
    assert 2 < bounds.upper < 2 + 2e-6
    zero = outward(Interval(jnp.float32(0.0), jnp.float32(0.0)))
    assert zero.lower < 0 < zero.upper
    assert 0 < sum_loss(1000) < 1e-3
    assert sum_loss(1 << 26) == np.inf  # too many to say anything


def test_a_function_without_bounds_is_named():
    images = jnp.zeros((1, 8, 8, 1), jnp.float32)
    model = models.create("vit_digits")
    with pytest.raises(ValueError, match="interval bounds: expected a model of convolutions"):
        logit_bounds(model.apply_fn, model.init(jax.random.key(0)), images, images + 1)

    def leaky(params, x):
        return jnp.where(x > 0, x, 0.1 * x).reshape(len(x), -1)

    with pytest.raises(ValueError, match="got one with gt, of which no bounds are known"):
        interval_bounds(leaky, (), images - 1, images + 1)

    def halves(params, x):
        return x.astype(jnp.bfloat16).reshape(len(x), -1)

    with pytest.raises(ValueError, match="convert_element_type"):
        interval_bounds(halves, (), images - 1, images + 1)


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (lambda x: x * x, [(-1.0, 2.0), (1.0, 2.0), (-3.0, -2.0)]),
        (jnp.square, [(-1.0, 2.0), (1.0, 2.0), (-3.0, -2.0)]),
        (lambda x: -x, [(-1.0, 2.0)]),
        (lambda x: 3 - x, [(-1.0, 2.0)]),
        (lambda x: x / -4, [(-1.0, 2.0)]),
        (lambda x: jnp.minimum(x, 0.5), [(-1.0, 2.0)]),
        (lambda x: jnp.clip(x, -0.5, 0.5), [(-1.0, 2.0)]),
        (jnp.tanh, [(-1.0, 2.0), (30.0, 90.0)]),
        (jax.nn.sigmoid, [(-1.0, 2.0), (-90.0, 90.0)]),
        (jax.nn.softplus, []),
        (jnp.exp, [(-1.0, 2.0), (-90.0, -80.0)]),
        (jax.lax.erf, [(-1.0, 2.0)]),
    ],
)
def test_each_operation_against_every_number_of_a_grid(function, at):
    for low, high in at:
        lower, upper = jnp.float32([low]), jnp.float32([high])
        bounds = interval_bounds(lambda params, x: function(x), (), lower, upper)
        grid = np.asarray(function(jnp.linspace(low, high, 1001, dtype=jnp.float32)))
        assert bounds.lower[0] <= grid.min()
        assert grid.max() <= bounds.upper[0]


def test_it_has_gradients_and_may_be_compiled():
    apply_fn, params, images, _ = _made("last dense")

    def worst(params):
        return -logit_bounds(apply_fn, params, images - 0.1, images + 0.1).leads.sum()

    slope = jax.jit(jax.grad(worst))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))
