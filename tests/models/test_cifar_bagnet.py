"""Small nets with local logits: what each place sees, by gradients, and the logits by loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax import models
from certmask_jax.inference import evidence_program
from certmask_jax.models.cifar_bagnet import CifarBagNet, Layer

LAYERS = (Layer(6, 3), Layer(7, 2, 2), Layer(8, 3), Layer(5))


def _net():
    """A net with random variables, running averages too, and an image of 12x11 pixels."""
    rng = np.random.default_rng(0)
    net = CifarBagNet(num_classes=3, layers=LAYERS)
    image = rng.normal(size=(12, 11, 2)).astype(np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image[None])

    def random(path, shape):
        values = rng.normal(size=shape.shape).astype(np.float32)
        return np.abs(values) + 0.5 if "var" in jax.tree_util.keystr(path) else values

    return net, jax.tree_util.tree_map_with_path(random, shapes), image


def _by_loops(variables, image):
    """The local logits, with a loop over the places of each layer."""
    params, averages = variables["params"], variables["batch_stats"]
    x = image.astype(np.float64)
    for number, (_, kernel, stride) in enumerate(LAYERS, start=1):
        sides = [(side - kernel) // stride + 1 for side in x.shape[:2]]
        weights = params[f"conv{number}"]["kernel"]
        sums = np.empty((*sides, weights.shape[3]))
        for row, column in np.ndindex(*sides):
            top, left = row * stride, column * stride
            seen = x[top : top + kernel, left : left + kernel]
            sums[row, column] = np.einsum("hwc,hwcf->f", seen, weights)
        norm, stats = params[f"bn{number}"], averages[f"bn{number}"]
        scaled = (sums - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"]
        x = np.maximum(scaled + norm["bias"], 0)
    return x @ params["fc"]["kernel"] + params["fc"]["bias"]


def test_logits_are_the_mean_of_local_logits_by_loops():
    net, variables, image = _net()
    expected = _by_loops(variables, image)
    assert expected.shape == (3, 2, 3)
    scale = np.abs(expected).max()
    local = net.apply(variables, image[None], method="local_logits")[0]
    np.testing.assert_allclose(local, expected, atol=1e-5 * scale)
    logits = net.apply(variables, image[None])[0]
    np.testing.assert_allclose(logits, expected.mean((0, 1)), atol=1e-5 * scale)


def test_every_cell_sees_its_field_to_the_corners_and_nothing_else():
    net, variables, image = _net()
    assert (net.receptive_field, net.stride) == (8, 2)

    def local(image):
        return net.apply(variables, image[None], method="local_logits")[0]

    # [cells, cells, K, h, w, c]; at several images, as a ReLU may be shut at one
    images = np.random.default_rng(1).normal(size=(8, *image.shape)).astype(np.float32)
    slopes = np.asarray(jax.jit(jax.vmap(jax.jacrev(local)))(jnp.asarray(images)))
    sees = (slopes != 0).any(axis=(0, 3, 6))
    for row, column in np.ndindex(3, 2):
        expected = np.zeros(image.shape[:2], bool)
        expected[2 * row : 2 * row + 8, 2 * column : 2 * column + 8] = True
        np.testing.assert_array_equal(sees[row, column], expected)


@pytest.mark.parametrize(("field", "cells"), [(5, 14), (9, 12)])
def test_the_nets_for_cifar_have_the_fields_of_their_names(field, cells):
    model = models.create(f"cifar_bagnet{field}")
    params = jax.jit(model.init)(jax.random.key(0))
    shape = evidence_program.check_local(model.local, params, (32, 32, 3))
    assert shape == (cells, cells, 10)
    assert model.local.field == field
    with pytest.raises(ValueError, match=f"at least {field}x{field}, what a local logit sees"):
        models.create(f"cifar_bagnet{field}", input_size=(4, 32)).param_shapes()
