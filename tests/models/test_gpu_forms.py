"""Forms for GPUs are the functions that they stand for, with the same parameters."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax import models
from certmask_jax.models import gpu_forms, split_vit
from certmask_jax.models.vit import VisionTransformer

RANDOM = np.random.default_rng(0)


def _normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def _of_normal(params):
    """Parameters of the same shapes in which nothing is 0, biases neither."""
    return jax.tree.map(lambda leaf: _normal(*leaf.shape), params)


@pytest.mark.parametrize("size", [(8, 8), (12, 4)])
def test_patches_by_a_product_are_the_convolution(size):
    images, plain = _normal(2, *size, 3), nn.Conv(7, (4, 4), (4, 4), padding="VALID")
    form = gpu_forms.PatchProducts(7, 4)
    params = _of_normal(plain.init(jax.random.key(0), images))
    key = jax.random.key(0)
    shapes = [jax.tree.map(np.shape, jax.eval_shape(m.init, key, images)) for m in (plain, form)]
    assert shapes[0] == shapes[1]
    np.testing.assert_allclose(
        form.apply(params, images), plain.apply(params, images), rtol=1e-4, atol=1e-4
    )


def test_gelu_is_the_exact_one():
    values = np.linspace(-9, 9, 20001).astype(np.float32)
    exact = [x * 0.5 * math.erfc(-x / math.sqrt(2)) for x in values.astype(float)]
    ours = np.asarray(gpu_forms.exact_gelu(jnp.asarray(values)), np.float64)
    assert np.abs(ours - exact).max() < 2e-6
    narrow = gpu_forms.exact_gelu(jnp.asarray(values, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "options",
    [{}, {"pooling": "mean"}, {"gelu": "tanh"}, {"layer_scale": 0.5, "registers": 2}],
    ids=str,
)
def test_a_vit_is_the_same_function_of_the_same_parameters(options):
    if "registers" in options:
        options = {**options, "class_position": False}
    plain = VisionTransformer(5, 4, 12, 2, 3, **options)
    form = plain.clone(for_gpu=True)
    images = _normal(3, 8, 8, 3)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * _normal(*leaf.shape),
        jax.jit(plain.init)(jax.random.key(1), images),
    )
    assert jax.tree.map(
        np.shape, jax.eval_shape(form.init, jax.random.key(1), images)
    ) == jax.tree.map(np.shape, params)
    with jax.numpy_rank_promotion("allow"):
        logits = [np.asarray(jax.jit(m.apply)(params, images)) for m in (plain, form)]
    assert np.abs(logits[0] - logits[1]).max() < 2e-4 * np.abs(logits[0]).max()


def test_cudnn_brings_them_and_a_run_says_so():
    plain = models.create("vit_tiny_patch16_224")
    fast = models.create("vit_tiny_patch16_224", attention="cudnn", dtype="bfloat16")
    assert not plain.module.has_gpu_forms
    assert fast.module.has_gpu_forms
    assert "parts_of_blocks" not in plain.facts
    assert "parts_of_blocks" in fast.facts
    assert not VisionTransformer(5, 4, 12, 1, 3, attention="cudnn", for_gpu=False).has_gpu_forms


@pytest.mark.parametrize("depth", [0, 2])
def test_a_vit_in_two_parts_has_them_too(depth):
    images = _normal(2, 8, 8, 3)
    plain = VisionTransformer(5, 4, 12, 2, 3)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * _normal(*leaf.shape),
        jax.jit(plain.init)(jax.random.key(1), images),
    )
    hidden = jnp.asarray(RANDOM.random((2, 2, 1)) < 0.3)
    logits = []
    for module in (plain, plain.clone(for_gpu=True)):
        stem, head = split_vit._parts(module, (1, 2), depth)
        parts = jax.jit(lambda *given, s=stem, h=head: h(given[0], s(*given[:2]), given[2]))
        logits.append(np.asarray(parts(params, images, hidden)))
    assert (logits[0] != logits[1]).any()  # other last bits: other forms
    assert np.abs(logits[0] - logits[1]).max() < 2e-4 * np.abs(logits[0]).max()
