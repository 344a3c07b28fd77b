"""Published architectures: precision, parity with torch, and what a BagNet's logits see."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bagnet_oracle import image, random_weights, stored, torch_local_logits, uniform
from PIL import Image
from safetensors.numpy import load_file
from timm_oracle import load_timm

from certmask_jax import data, models, predict, weights
from certmask_jax.inference import whole_images
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import distinct_unions
from certmask_jax.models.bagnet import BagNet
from certmask_jax.models.cifar_resnet import CifarResNet
from certmask_jax.models.published import MODELS
from certmask_jax.models.resmlp import ResMLP
from certmask_jax.models.resnetv2 import NormRelu, ResNetV2, StdConv, Stem
from certmask_jax.models.vit import VisionTransformer

TOLERANCE = 2e-5  # of the largest logit; 1e-4 is asked for, and would hide a wrong epsilon

SMALL = {
    "vit": partial(VisionTransformer, patch=4, width=12, depth=1, num_heads=3),
    "vit_mean": partial(
        VisionTransformer, patch=4, width=12, depth=1, num_heads=3, pooling="mean", gelu="tanh"
    ),
    "resnetv2": partial(ResNetV2, blocks=(1,)),
    "resmlp": partial(ResMLP, depth=1, layer_scale=0.1, patch=4, width=12),
    "bagnet": partial(BagNet, kernels=(3, 1), blocks=(1, 1), strides=(2, 1), width=8),
    "cifar_resnet": partial(CifarResNet, blocks_per_stage=1, widths=(8, 16)),
}


def _random_variables(module, x):
    """Random variables without compiling ``init``; kernels scaled by their fan-in."""

    def leaf(path, shape):
        name = jax.tree_util.keystr(path)
        noise = uniform(name, shape.shape)
        if "kernel" in name:
            return noise / np.float32(np.sqrt(math.prod(shape.shape[:-1])))
        is_scale = any(word in name for word in ("scale", "alpha", "var"))
        return np.float32(0.2) * noise + np.float32(is_scale)

    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


# --- Precision ---------------------------------------------------------------------------------


@jax.numpy_dtype_promotion("standard")  # as a Model's apply_fn sets it for Flax's layers
def _check_dtypes(family):
    x = uniform("precision", (2, 16, 16, 3))
    module = SMALL[family](num_classes=5)
    variables = _random_variables(module, x)
    expected = jax.jit(module.apply)(variables, x)
    half = SMALL[family](num_classes=5, dtype=jnp.bfloat16)
    got, seen = jax.jit(partial(half.apply, capture_intermediates=True))(variables, x)
    assert got.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert np.abs(got - expected).max() > 0  # it did compute in bfloat16
    types = {
        (jax.tree_util.keystr(path).split("'")[-4], leaf.dtype.name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(seen["intermediates"])
        if len(path) > 2
    }
    products = ("qkv", "proj", "conv1", "conv2", "fc1", "fc2", "patch_embed_proj", "linear_tokens")
    for name, dtype in types:
        if name in products:
            assert dtype == "bfloat16", name
        if name in ("head", "fc", "linear"):
            assert dtype == "float32", name
        if "norm" in name and family != "resnetv2":  # cast to what follows within the module there
            assert dtype == "float32", name
    stored_half = SMALL[family](num_classes=5, param_dtype=jnp.bfloat16)
    shapes = jax.eval_shape(stored_half.init, jax.random.key(0), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes["params"])} == {"bfloat16"}


@pytest.mark.parametrize("family", SMALL)
def test_dtype_and_param_dtype(family):
    _check_dtypes(family)


# --- Parity with torch -------------------------------------------------------------------------


def _torch_logits(theirs, images):
    """A torch model's logits with random weights on ``float32[B, h, w, c]``, and the weights."""
    import torch

    arrays = random_weights({n: tuple(value.shape) for n, value in theirs.state_dict().items()})
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=True)
    with torch.no_grad():
        logits = theirs.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert logits.std() > 0.1  # no trivial agreement
    return logits, arrays


def _logits(theirs, model, images, tmp_path):
    """Our logits and theirs with the same weights."""
    expected, arrays = _torch_logits(theirs, images)
    np.savez(tmp_path / "w.npz", **arrays)
    params = weights.load(tmp_path / "w.npz", model)  # strict: every name and shape is timm's
    with jax.default_matmul_precision("highest"):
        got = np.asarray(jax.jit(model.apply_fn)(params, images))
    return got, expected


def _assert_close(got, expected):
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("vit_ti16", "vit_tiny_patch16_224"),
        ("resnetv2_50x1", "resnetv2_50x1_bit"),
        ("resmlp_s24", "resmlp_24_224"),
    ],
)
def test_parity_with_timm_on_photographs(shared, tmp_path, name, theirs):
    timm = load_timm()
    model = models.create(name)
    files = sorted((shared / "data" / "imagenet_sample" / "val").glob("*/*"))[:40:40]
    mean, std = (np.array(v, np.float32) for v in (model.data_config.mean, model.data_config.std))
    images = np.stack([data.preprocess(Image.open(f), model.data_config, f.name) for f in files])
    images = (images.astype(np.float32) / 255 - mean) / std
    assert len(images) == 1
    _assert_close(*_logits(timm.create_model(theirs), model, images, tmp_path))


def _model(module, height, width):
    """A module under test as a model that has no name."""
    config = models.DataConfig((height, width), (0.5,) * 3, (0.5,) * 3)
    return models.Model("small", module.num_classes, module, module, config, module.apply)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"pooling": "mean"}, {"global_pool": "avg"}),
        ({"gelu": "tanh"}, {"act_layer": "gelu_tanh"}),
        ({"layer_scale": 0.1, "last_block": "all"}, {"init_values": 0.1}),
        ({"class_position": False}, {"no_embed_class": True}),
        (
            {"layer_scale": 0.1, "registers": 4, "class_position": False},
            {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
        ),
        (
            {"registers": 2, "class_position": False, "pooling": "mean"},
            {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"},
        ),
    ],
)
def test_parity_of_small_vits_and_their_options(tmp_path, ours, theirs):
    timm = load_timm()
    build = partial(
        timm.models.vision_transformer.VisionTransformer,
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10,
    )  # fmt: skip
    module = VisionTransformer(10, patch=8, width=48, depth=3, num_heads=3, **ours)
    images = uniform("small images", (2, 32, 32, 3))
    got, expected = _logits(build(**theirs), _model(module, 32, 32), images, tmp_path)
    tolerance = 1e-5 * np.abs(expected).max()  # tighter: the two GELUs differ by 5e-4 at most
    assert np.abs(got - expected).max() <= tolerance
    if ours:  # the option matters
        assert np.abs(_torch_logits(build(), images)[0] - expected).max() > 5 * tolerance


def test_parity_of_a_small_resmlp(tmp_path):
    timm = load_timm()
    mixer = timm.models.mlp_mixer
    theirs = mixer.MlpMixer(
        img_size=32, patch_size=8, num_blocks=3, embed_dim=48, mlp_ratio=4, num_classes=10,
        block_layer=mixer.ResBlock, norm_layer=mixer.Affine,
    )  # fmt: skip
    module = ResMLP(10, depth=3, layer_scale=0.1, patch=8, width=48)
    images = uniform("small images", (2, 32, 32, 3))
    got, expected = _logits(theirs, _model(module, 32, 32), images, tmp_path)
    # Tighter, because the tanh GELU differs by 5e-4 at most.
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("width", [1, 3])
def test_parity_of_a_small_resnetv2_on_odd_sizes(tmp_path, width):
    """Odd sizes, at which the paddings of "SAME" and of PyTorch differ most."""
    timm = load_timm()
    theirs = timm.models.resnetv2.ResNetV2(
        layers=[1, 2, 1], channels=[256, 512, 1024], width_factor=width, stem_type="fixed",
        num_classes=10,
        conv_layer=partial(timm.layers.StdConv2d, eps=1e-8),
    )  # fmt: skip
    module = ResNetV2(10, blocks=(1, 2, 1), width=width)
    images = uniform("odd images", (2, 45, 38, 3))
    _assert_close(*_logits(theirs, _model(module, 45, 38), images, tmp_path))


# --- Details by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1.0, -9.0), (100.0, -9.0), (1e-4, -9.0 * 0.8944272)],  # 2e-4 / sqrt(4e-8 + 1e-8)
)
def test_standardised_weights_by_hand(scale, expected):
    """Two weights, -1 and 3, have mean 1 and variance 4; on 10 and 1: (-2 * 10 + 2 * 1) / 2."""
    kernel = jnp.array([-1.0, 3.0]).reshape(1, 1, 2, 1)
    x = jnp.array([10.0, 1.0]).reshape(1, 1, 1, 2)
    y = StdConv(1, 1).apply({"params": {"kernel": scale * kernel}}, x)
    np.testing.assert_allclose(y.item(), expected, rtol=1e-5)


def test_group_norm_by_hand():
    """One group of 0 and 0.02: mean 0.01, variance 1e-4; the other groups are all zero."""
    x = jnp.zeros((1, 1, 1, 64)).at[..., 1].set(0.02)
    params = {"scale": jnp.full(64, 2.0), "bias": jnp.full(64, 0.5)}
    y = NormRelu().apply({"params": params}, x)[0, 0, 0]
    high = 2 * 0.01 / math.sqrt(1e-4 + 1e-5) + 0.5
    np.testing.assert_allclose(y, [0.0, high, *[0.5] * 62], rtol=1e-5)


def test_the_stem_pads_its_pooling_with_zeros():
    """Where all activations are negative, the border sees the padding's zeros, the inside not."""
    stem = Stem(features=1)
    kernel = np.zeros((7, 7, 3, 1), np.float32)
    kernel[3, 3, 0] = 1.0  # standardised: its centre positive, all else slightly negative
    y = stem.apply({"params": {"conv": {"kernel": kernel}}}, -np.ones((1, 16, 16, 3), np.float32))
    assert (y[0, 0] == 0).all()
    assert (y[0, :, 0] == 0).all()
    inside = stem.apply({"params": {"conv": {"kernel": kernel}}}, -_only_red(16))[0, 1:-1, 1:-1]
    assert (inside < 0).all()


def _only_red(side):
    x = np.zeros((1, side, side, 3), np.float32)
    x[..., 0] = 1.0
    return x


# --- BagNet ------------------------------------------------------------------------------------


def _random_bagnet(name, side, tmp_path):
    """A BagNet with the oracle's weights, by their published names."""
    model = models.create(name, num_classes=10, input_size=(side, side))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.param_shapes())
    weights.save(tmp_path / "zeros.safetensors", zeros)
    shapes = {name: a.shape for name, a in load_file(tmp_path / "zeros.safetensors").items()}
    np.savez(tmp_path / "w.npz", **random_weights(shapes))
    return model, weights.load(tmp_path / "w.npz", model)


@pytest.mark.parametrize("field", [9, 17, 33])
def test_bagnet_equals_the_published_layout(tmp_path, field):
    expected = stored()[f"bagnet{field}"]
    x = image()
    model, params = _random_bagnet(f"bagnet{field}", x.shape[1], tmp_path)
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(partial(model.module.apply, method="local_logits"))
        local, logits = apply(params, x), jax.jit(model.apply_fn)(params, x)
    _assert_close(np.asarray(local), expected)
    _assert_close(np.asarray(logits), expected.mean(axis=(1, 2)))
    assert expected.std(axis=(1, 2)).max() > 0.01  # places differ, so that a shift is seen


@pytest.mark.parametrize("field", [17, 33])
def test_the_bagnet_fixture_is_what_torch_computes(field):
    pytest.importorskip("torch", reason="needs the extra: parity")
    expected = torch_local_logits(field)
    np.testing.assert_allclose(stored()[f"bagnet{field}"], expected, atol=1e-4)


@pytest.mark.parametrize(("field", "side"), [(9, 27), (17, 26), (33, 24)])
def test_feature_maps_at_224(field, side):
    model = models.create(f"bagnet{field}")
    local = partial(model.module.apply, method="local_logits")
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(local, model.param_shapes(), x).shape == (1, side, side, 1000)
    assert model.module.feature_map_size((224, 224)) == (side, side)
    assert (model.module.receptive_field, model.module.stride) == (field, 8)


@pytest.mark.parametrize("field", [9, 17, 33])
def test_local_logits_see_their_receptive_field_and_nothing_else(field):
    kernels = MODELS[f"bagnet{field}"].build.keywords["kernels"]
    module = BagNet(num_classes=4, kernels=kernels, blocks=(1, 2, 1, 2), width=8)
    height, width = 50, 61
    x = uniform("seen", (1, height, width, 3))
    params = _random_variables(module, x)

    @jax.jit
    def gradient(x, row, col):
        def local(x):
            return module.apply(params, x, method="local_logits")[0, row, col].sum()

        return jax.grad(local)(x)[0]

    rows, cols = module.feature_map_size((height, width))
    for row, col in [(0, 0), (rows // 2, cols // 2), (rows - 1, cols - 1), (0, cols - 1)]:
        seen = np.argwhere(np.asarray(gradient(x, row, col)).any(axis=-1))
        top, left = module.stride * row, module.stride * col
        assert seen.min(axis=0).tolist() == [top, left]
        assert (seen.max(axis=0) + 1).tolist() == [
            top + module.receptive_field, left + module.receptive_field
        ]  # fmt: skip


def test_bagnet_running_averages_move_as_published():
    """The stem's by 0.001 of the way to the batch's, the bottlenecks' by 0.1."""
    module = SMALL["bagnet"](num_classes=5, is_training=True)
    x = uniform("training", (3, 16, 16, 3))
    variables = _random_variables(module, x)
    apply = partial(
        module.apply, capture_intermediates=True, mutable=["batch_stats", "intermediates"]
    )
    _, changed = jax.jit(apply)(variables, x)
    for before, after, seen, step in [
        (variables["batch_stats"]["bn1"], changed["batch_stats"]["bn1"],
         changed["intermediates"]["conv2"], 0.001),
        (variables["batch_stats"]["layer1_0"]["bn2"], changed["batch_stats"]["layer1_0"]["bn2"],
         changed["intermediates"]["layer1_0"]["conv2"], 0.1),
    ]:  # fmt: skip
        batch = np.asarray(seen["__call__"][0])
        for stat, wanted in [("mean", batch.mean((0, 1, 2))), ("var", batch.var((0, 1, 2)))]:
            expected = (1 - step) * before[stat] + step * wanted
            np.testing.assert_allclose(after[stat], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "highest"])
def test_cudnn_attention_is_refused_where_it_cannot_run(precision):
    model = models.create("vit_tiny_patch8_32", num_classes=10, attention="cudnn")
    preprocessing = Preprocessing((0.5,), (0.5,), precision=precision)
    shape = models.create("vit_tiny_patch8_32").param_shapes()  # they are the same parameters
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shape)
    masks = distinct_unions.unmasked((32, 32))
    with pytest.raises(ValueError, match="expected cudnn on an NVIDIA GPU and in 16 bits"):
        predict(
            model.apply_fn,
            params,
            np.zeros((1, 32, 32, 3), np.uint8),
            masks,
            preprocessing=preprocessing,
        )


def test_cudnn_attention_is_what_jax_is_asked_for(monkeypatch):
    asked = []

    def attention(q, k, v, *, implementation):
        asked.append((implementation, q.dtype))
        return v

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    for name in ("xla", "cudnn"):
        module = VisionTransformer(
            10, 8, 16, 1, 2, attention=name, dtype=jnp.bfloat16, last_block="all"
        )
        x = jnp.zeros((1, 32, 32, 3))
        with jax.numpy_dtype_promotion("standard"):  # as a Model sets it for Flax's layers
            jax.eval_shape(lambda x, module=module: module.init(jax.random.key(0), x), x)
    assert asked == [("xla", jnp.bfloat16), ("cudnn", jnp.bfloat16)]


def test_cudnn_attention_is_never_traced_in_float32(monkeypatch):
    """Shapes of parameters, classes and operations: in 16 bits, or cuDNN's check refuses them."""
    asked, real = [], jax.nn.dot_product_attention

    def attention(q, k, v, *, implementation):
        asked.append((implementation, q.dtype))
        return real(q, k, v, implementation="xla")

    model = models.create("vit_tiny_patch8_32", attention="cudnn", num_classes=3)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), model.param_shapes()
    )  # on any machine
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    engine = whole_images.masked_forward(
        model.apply_fn, params, (32, 32, 3), chunk=8,
        preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, precision="bfloat16"),
    )  # fmt: skip
    assert engine.num_classes == 3
    assert engine.flops_an_image(1) > 1e6
    assert ("cudnn", jnp.bfloat16) in asked
    assert {dtype for _, dtype in asked} == {jnp.dtype(jnp.bfloat16)}
