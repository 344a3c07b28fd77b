"""Layers that take what they are given: Linen's numbers and errors, and no initial values."""

from __future__ import annotations

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax.models import layers

IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
PAIRS = {
    "Dense": (layers.Dense(4), nn.Dense(4)),
    "Conv": (layers.Conv(4, (3, 3)), nn.Conv(4, (3, 3))),
    "Conv of single pixels": (layers.Conv(4, (1, 1)), nn.Conv(4, (1, 1))),
    "the same without a bias": (
        layers.Conv(4, (1, 1), use_bias=False, padding="VALID"),
        nn.Conv(4, (1, 1), use_bias=False, padding="VALID"),
    ),
    "the same at a stride": (layers.Conv(4, (1, 1), (2, 2)), nn.Conv(4, (1, 1), (2, 2))),
    "BatchNorm": (layers.BatchNorm(True), nn.BatchNorm(True)),
    "LayerNorm": (layers.LayerNorm(), nn.LayerNorm()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_linens_initial_values_and_outputs(name):
    ours, linens = PAIRS[name]
    variables = ours.init(jax.random.key(1), IMAGES)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, variables, linens.init(jax.random.key(1), IMAGES))
    )
    outputs = ours.apply(variables, IMAGES), linens.apply(variables, IMAGES)
    if "single pixels" in name or "without a bias" in name:
        # A product and a convolution, which XLA of jax 0.12 makes no product of: last bits differ.
        np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(*outputs)


class Scaled(layers.Module):
    """A parameter of its own, which counts how often its initial values are made."""

    made = 0

    @nn.compact
    def __call__(self, x):
        def initial(key, shape, dtype):
            type(self).made += 1
            return jnp.full(shape, 2, dtype)

        return x * self.param("scale", initial, (x.shape[-1],), jnp.float32)[None, None, None]


def test_what_is_given_is_taken_without_making_initial_values():
    Scaled.made = 0
    variables = Scaled().init(jax.random.key(0), IMAGES)
    assert Scaled.made == 1
    given = {"params": {"scale": jnp.arange(3, dtype=jnp.float32)}}
    assert jax.tree.structure(given) == jax.tree.structure(variables)
    np.testing.assert_array_equal(Scaled().apply(given, IMAGES), IMAGES * np.arange(3))
    assert Scaled.made == 1


@pytest.mark.parametrize("name", PAIRS)
def test_parameters_of_another_shape_are_linens_error(name):
    ours, _ = PAIRS[name]
    variables = ours.init(jax.random.key(1), IMAGES)
    longer = dict(variables)
    longer["params"] = jax.tree.map(lambda leaf: np.repeat(leaf, 2, axis=-1), variables["params"])
    with pytest.raises(flax.errors.ScopeParamShapeError, match="shape"):
        ours.apply(longer, IMAGES)


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_shapes_alone_are_those_of_the_initial_values(name, dtype):
    ours = PAIRS[name][0].clone(param_dtype=dtype)
    expected = jax.eval_shape(ours.init, jax.random.key(0), IMAGES)
    with layers.shapes_alone():
        shapes = jax.eval_shape(ours.init, jax.random.key(0), IMAGES)
        params = ours.init(jax.random.key(0), IMAGES)["params"]
    assert shapes == expected
    assert not any(leaf.any() for leaf in jax.tree.leaves(params))  # nothing was drawn
    again = ours.init(jax.random.key(0), IMAGES)["params"]
    assert any(leaf.any() for leaf in jax.tree.leaves(again))


def test_a_name_that_is_used_twice_and_one_that_is_missing_are_errors():
    class Twice(layers.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = x + self.param("scale", nn.initializers.ones, (3,), jnp.float32)[None]
            return x

    given = {"params": {"scale": jnp.ones(3)}}
    with pytest.raises((flax.errors.NameInUseError, ValueError), match="scale"):
        Twice().apply(given, jnp.ones((1, 3)))
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="kernel"):
        layers.Dense(4).apply({"params": {"bias": jnp.ones(4)}}, IMAGES)
