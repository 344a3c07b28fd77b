"""EfficientNet-Lite cut early: fields by gradients, and cells as in the whole published net."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax import models, weights
from certmask_jax.models.depthwise import DepthwiseConv
from certmask_jax.models.efficientnet_lite import EfficientNetLite
from certmask_jax.models.local_efficientnet import LocalEfficientNetLite
from certmask_jax.models.published import MODELS
from certmask_jax.training.head_model import head_alone
from certmask_jax.weights.names import to_arrays

FIELDS = {1: (7, 2), 2: (11, 4), 3: (19, 4), 4: (35, 8), 5: (67, 8), 6: (83, 16)}  # by hand
CUTS = (11, 19, 35, 67)


def _random_variables(module, images, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = jax.tree_util.keystr(path)
        noise = rng.normal(size=shape.shape).astype(np.float32)
        if "kernel" in name:
            return noise * np.float32(1.5 / np.sqrt(np.prod(shape.shape[:-1])))
        is_scale = "scale" in name or "var" in name
        return np.abs(noise) + np.float32(0.5) if is_scale else np.float32(0.3) * noise

    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def whole():
    """The whole Lite0 with random weights."""
    module = EfficientNetLite(7)
    return module, _random_variables(module, np.zeros((1, 32, 32, 3), np.float32))


@pytest.fixture(scope="module")
def file(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("lite") / "whole.npz"
    np.savez(path, **to_arrays(whole[1]))
    return path


@pytest.mark.parametrize("blocks", FIELDS)
def test_fields_and_strides_of_every_cut_by_hand(blocks):
    net = LocalEfficientNetLite(7, blocks)
    assert (net.receptive_field, net.stride) == FIELDS[blocks]


@pytest.mark.parametrize("field", [11, 35])
def test_every_cell_sees_its_field_to_the_corners_and_nothing_else(field):
    """By gradients of the real net of two cells a side, at several images: a ReLU6 may be shut."""
    model = models.create(f"efficientnet_lite0_field{field}", num_classes=2)
    local = model.local
    side = local.field + local.stride
    assert local.field == field
    images = np.random.default_rng(1).normal(size=(3, side, side, 3)).astype(np.float32)
    variables = _random_variables(model.module, images)

    def cell(images, row, column):
        return local.apply_fn(variables, images)[:, row, column].sum()

    slopes = jax.jit(jax.grad(cell))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sees = (np.asarray(slopes(jnp.asarray(images), row, column)) != 0).any(axis=(0, 3))
        expected = np.zeros((side, side), bool)
        top, left = row * local.stride, column * local.stride
        expected[top : top + field, left : left + field] = True
        np.testing.assert_array_equal(sees, expected)


def test_cells_are_those_of_the_whole_net_away_from_its_padding(whole, file):
    """Of the 35-pixel cut; the whole net pads, and its cell o sees the pixels from 8 o - 10."""
    module, variables = whole
    model = models.create("efficientnet_lite0_field35", num_classes=7)
    params = weights.load(file, model, new_head=True, seed=3)
    image = np.random.default_rng(2).normal(size=(1, 51, 43, 3)).astype(np.float32)
    assert model.local.grid((51, 43)) == (3, 2)
    around = np.zeros((1, 96, 96, 3), np.float32)
    around[:, 22:73, 14:57] = image  # 8 * 4 - 10 and 8 * 3 - 10

    @jax.jit
    def opened(variables, images):
        seen = []

        def listen(call, args, kwargs, context):
            made = call(*args, **kwargs)
            is_norm = context.module.path == ("blocks_2", "1", "bn1")
            if is_norm and context.method_name == "__call__":
                seen.append(jnp.clip(made, 0, 6))
            return made

        with nn.intercept_methods(listen):
            module.apply(variables, images)
        return seen[0]

    head = params["params"]["classifier"]
    features = np.asarray(opened(variables, around))[:, 4:7, 3:5]
    expected = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    local = np.asarray(model.local.apply_fn(params, image))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(local, expected, atol=1e-5 * np.abs(expected).max())
    logits = np.asarray(model.apply_fn(params, image))
    means = local.mean(axis=(1, 2))
    np.testing.assert_allclose(logits, means, atol=1e-5 * np.abs(means).max())


def test_a_whole_file_and_a_trained_one_load_and_another_is_one_error(whole, file, tmp_path):
    model = models.create("efficientnet_lite0_field19", num_classes=7)
    with pytest.raises(
        ValueError, match=r"misshapen: classifier\.weight.* a head of other features"
    ):
        weights.load(file, model)
    loaded = weights.load(file, model, new_head=True)
    kept = to_arrays(loaded)
    theirs = to_arrays(whole[1])
    assert {name for name in kept if not name.startswith("classifier")} < set(theirs)
    assert "blocks.2.0.bn1.running_var" in kept
    assert "blocks.2.0.conv_dw.weight" not in kept
    for name in sorted(set(kept) - {"classifier.weight", "classifier.bias"}):
        np.testing.assert_array_equal(kept[name], theirs[name], err_msg=name)
    weights.save(tmp_path / "trained.npz", loaded)
    assert weights.num_classes(tmp_path / "trained.npz") == 7
    again = weights.load(tmp_path / "trained.npz", model)
    assert weights.digest(again) == weights.digest(loaded)
    # what is no layer of the net is not left silently, and neither is a cut that is too short
    np.savez(tmp_path / "odd.npz", **kept, **{"blocks.1.0.extra.weight": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"unexpected: blocks\.1\.0\.extra\.weight"):
        weights.load(tmp_path / "odd.npz", model)
    deeper = models.create("efficientnet_lite0_field35", num_classes=7)
    with pytest.raises(ValueError, match=r"missing: blocks\.2\.0\.bn2"):
        weights.load(tmp_path / "trained.npz", deeper)


@pytest.mark.parametrize("field", CUTS)
def test_names_counts_and_preprocessing(field):
    model = models.create(f"efficientnet_lite0_field{field}")
    entry = MODELS[model.name]
    counted = jax.tree.leaves(model.param_shapes()["params"])
    assert sum(int(np.prod(leaf.shape)) for leaf in counted) == entry.parameters
    assert model.data_config == models.create("efficientnet_lite0").data_config
    assert (model.local.field, model.num_classes) == (field, 1000)
    grid = {11: 54, 19: 52, 35: 24, 67: 20}[field]
    assert model.local.grid((224, 224)) == (grid, grid)


@pytest.mark.parametrize("blocks", [0, -1, 16])
def test_a_cut_that_there_is_not(blocks):
    with pytest.raises(ValueError, match=rf"^blocks: expected 1 to 15, .* got {blocks}$"):
        _ = LocalEfficientNetLite(7, blocks).stride
    with pytest.raises(ValueError, match="efficientnet_lite0_field35"):
        models.create("efficientnet_lite0_field34")
    with pytest.raises(ValueError, match="at least 35x35, what a local logit sees, got 34x40"):
        models.create("efficientnet_lite0_field35", input_size=(34, 40)).param_shapes()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_without_padding_and_its_slopes_by_hand(size, stride):
    rng = np.random.default_rng(size + stride)
    images = rng.integers(-4, 5, (2, 8, 11, 3)).astype(np.float32)  # whole numbers: exact
    kernel = rng.integers(-4, 5, (size, size, 1, 3)).astype(np.float32)
    rows, columns = (8 - size) // stride + 1, (11 - size) // stride + 1
    expected = np.zeros((2, rows, columns, 3), np.float32)
    factors = rng.integers(-4, 5, expected.shape).astype(np.float32)
    of_pixels, of_kernel = np.zeros_like(images), np.zeros_like(kernel)
    for i, j, u, v in np.ndindex(rows, columns, size, size):
        pixel = images[:, i * stride + u, j * stride + v]
        expected[:, i, j] += pixel * kernel[u, v, 0]
        of_pixels[:, i * stride + u, j * stride + v] += factors[:, i, j] * kernel[u, v, 0]
        of_kernel[u, v, 0] += (factors[:, i, j] * pixel).sum(axis=0)
    for formulation in ("shifts", "convolution"):
        conv = DepthwiseConv(size, stride, formulation, padding="VALID")

        def made(pixels, held, conv=conv):
            return conv.apply({"params": {"kernel": held}}, pixels)

        got, slopes = jax.vjp(made, images, kernel)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(slopes(factors)[0], of_pixels)
        np.testing.assert_array_equal(slopes(factors)[1], of_kernel)


def test_the_head_that_is_trained_alone_sees_the_mean_of_the_opened_block():
    alone = head_alone(models.create("efficientnet_lite0_field19", num_classes=7))
    assert alone.module.shape == (6 * 24,)
