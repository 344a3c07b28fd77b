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


def _flat(x):
    return x.reshape(x.shape[0], -1)


def _agrees_with_its_images(function, params, lower, upper, seed=0):
    """Leads are never above those of images in the box; the ends of each number among them."""
    leads = np.asarray(logit_bounds(function, params, lower, upper).leads)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        share = rng.choice([0.0, 1.0], size=lower.shape).astype(np.float32)
        logits = np.asarray(function(params, lower + share * (upper - lower)))
        assert (leads <= _leads(logits)).all()


def _box(seed=0, batch=4, size=(3, 2, 1)):
    rng = np.random.default_rng(seed)
    lower = jnp.asarray(rng.normal(size=(batch, *size)), jnp.float32)
    upper = lower + jnp.asarray(rng.random((batch, *size)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    return (weights, jnp.asarray(rng.normal(size=3), jnp.float32)), lower, upper


def test_what_stops_gradients_stops_no_bounds():
    params, lower, upper = _box()

    def after(params, x):
        return jax.lax.stop_gradient(_flat(x) @ params[0] + params[1][None])

    def before(params, x):
        return jax.lax.stop_gradient(_flat(x)) @ params[0] + params[1][None]

    for function in (after, before):
        _agrees_with_its_images(function, params, lower, upper)


def test_the_output_that_is_returned_is_bounded():
    """A model that is jitted as a whole, and gives more than its logits inside."""
    params, lower, upper = _box()

    @jax.jit
    def inner(params, x):
        other = _flat(x) @ params[0] + params[1][None]
        return {"aux": other, "logits": _flat(x) @ params[0] - 5 * params[1][None]}

    _agrees_with_its_images(lambda p, x: inner(p, x)["logits"], params, lower, upper)
    one = interval_bounds(lambda p, x: (inner(p, x), _flat(x))[1], params, lower, upper)
    assert (one.lower <= _flat(lower)).all()
    assert one.lower.shape == _flat(lower).shape
    with pytest.raises(ValueError, match="expected a model that gives one array, got 2"):
        logit_bounds(inner, params, lower, upper)


def test_constants_that_cancel_leave_their_rounding():
    weights = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 1.01, 0.0]], jnp.float32)
    large = jnp.asarray([[1e6, 0.0, 0.0]], jnp.float32)

    def cancelling(params, x):
        return (x @ params + large) - large

    x = jnp.asarray([[1.0, 0.995]], jnp.float32)
    exact = logit_bounds(lambda params, x: x @ params, weights, x, x)
    assert exact.leads[0, 1] > 0  # 1.00495 beside 1
    bounds = logit_bounds(cancelling, weights, x, x)
    assert (bounds.leads <= 0).all()  # a device may lose 0.03 of the first


def test_each_image_is_bounded_by_itself():
    """A model that has its images on another axis, as many as it has features."""
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((6, 4), (4, 3)))

    def turned(params, x):
        return (second.T @ jax.nn.relu(first.T @ _flat(x).T)).T

    _, lower, upper = _box(batch=4)
    _agrees_with_its_images(turned, (), lower, upper)


def test_numbers_that_overflow_certify_nothing():
    def clipped(params, x):
        lost = jnp.clip(jnp.exp(x[:, :1]) - jnp.exp(x[:, 1:]), -1, 1) + 5
        return jnp.concatenate([lost, jnp.zeros_like(lost)], axis=1)

    low, high = jnp.zeros((1, 2)), jnp.full((1, 2), 100.0)
    assert (logit_bounds(clipped, (), low, high).leads == -np.inf).all()
    assert logit_bounds(clipped, (), low, high / 100).leads[0, 0] > 0

    def summed(params, x):
        return jnp.clip(x @ jnp.full((2, 2), 3e38), -1, 1) + jnp.asarray([[5.0, 0.0]])

    assert (logit_bounds(summed, (), low, high).leads == -np.inf).all()


def test_small_products_may_all_be_lost():
    """4,096 of them, which one device flushes to 0 and another adds up."""
    count = 4096
    x = jnp.full((1, count), 1e-20, jnp.float32)
    weights = jnp.full((count, 2), 1.1e-18, jnp.float32)
    bounds = interval_bounds(lambda params, x: x @ params, weights, x, x)
    assert bounds.lower[0, 0] <= 0
    assert bounds.upper[0, 0] >= count * 1.1e-38


def test_a_product_of_less_precision_is_refused():
    def quick(params, x):
        return jnp.dot(_flat(x), params[0], precision="default")

    params, lower, upper = _box()
    with pytest.raises(ValueError, match="products of the highest precision"):
        logit_bounds(quick, params, lower, upper)
    with jax.default_matmul_precision("bfloat16"):  # of what is around it nothing is taken
        logit_bounds(lambda p, x: _flat(x) @ p[0], params, lower, upper)


def test_logits_of_some_outputs_are_bounded_together():
    """What ``--only-classes`` makes of a model."""
    params, lower, upper = _box()
    chosen = np.array([2, 0])
    whole = least_differences(lambda p, x: _flat(x) @ p[0], params, lower, upper)
    some = least_differences(lambda p, x: (_flat(x) @ p[0])[..., chosen], params, lower, upper)
    np.testing.assert_allclose(some[:, 0, 1], whole[:, 2, 0], atol=1e-4)


def test_logits_of_another_shape_are_refused():
    params, lower, upper = _box()
    for function in (lambda p, x: x, lambda p, x: _flat(x).sum(axis=1)):
        with pytest.raises(ValueError, match="expected a model that gives logits"):
            logit_bounds(function, params, lower, upper)
