"""Published architectures: sizes, names, parity with torch, and what a BagNet's logits see."""

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

from certmask_jax import data, models, weights
from certmask_jax.models.bagnet import BagNet
from certmask_jax.models.cifar_resnet import CifarResNet
from certmask_jax.models.published import MODELS
from certmask_jax.models.resmlp import ResMLP
from certmask_jax.models.resnetv2 import NormRelu, ResNetV2, StdConv, Stem
from certmask_jax.models.spellings import _timm_names, resolve
from certmask_jax.models.vit import VisionTransformer

TOLERANCE = 1e-4  # of the largest logit

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


def _count(model: models.Model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes()["params"]))


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


# --- Sizes and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("vit_ti16", 5_717_416), ("vit_s16", 22_050_664), ("vit_b16", 86_567_656),
        ("vit_l16", 304_326_632), ("vit_b32", 88_224_232), ("vit_b16_384", 86_859_496),
        ("resnetv2_50x1", 25_549_352), ("resnetv2_101x1", 44_541_480),
        ("resnetv2_50x3", 217_319_080), ("resmlp_s12", 15_350_872), ("resmlp_s24", 30_020_680),
        ("resmlp_s36", 44_690_488),
        # ResNet-50 has 25,557,032: the 7x7 stem (9,408) becomes 1x1 and 3x3 (192 + 36,864), and
        # 12 of its 3x3 convolutions become 1x1; then layer4.0's (8 * 512^2), then layer3.0's.
        ("bagnet33", 25_557_032 - 9_408 + 192 + 36_864
         - 8 * (2 * 64**2 + 3 * 128**2 + 5 * 256**2 + 2 * 512**2)),
        ("bagnet17", 18_310_184 - 8 * 512**2), ("bagnet9", 16_213_032 - 8 * 256**2),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, published):
    assert _count(models.create(name)) == published == MODELS[name].parameters


@pytest.mark.parametrize(
    "name", ["vit_digits", "cifar_resnet56", "vit_small_patch2_64", "vit_tiny_patch8_32",
             "vit_l32_384", "vit_ti32"],
)  # fmt: skip
def test_parameter_counts_of_the_table(name):
    assert _count(models.create(name)) == MODELS[name].parameters


@pytest.mark.parametrize(
    ("name", "short", "num_classes", "side", "resize"),
    [
        ("vit_b16", "vit_b16", 1000, 224, 248),
        ("vit_base_patch16_224", "vit_b16", 1000, 224, 248),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_b16", 1000, 224, 248),
        ("vit_base_patch16_224.augreg_in21k", "vit_b16", 21843, 224, 248),
        ("vit_base_patch16_224_in21k", "vit_b16", 21843, 224, 248),
        ("vit_base_patch16_384", "vit_b16_384", 1000, 384, 384),
        ("vit_base_patch16_224_cutout2_128_imagenette", "vit_b16", 10, 224, 248),
        ("vit_base_patch16_224_cutout2_128_imagenet.pth", "vit_b16", 1000, 224, 248),
        ("vit_base_patch16_224_cutout2_128_flower102", "vit_b16", 102, 224, 248),
        ("vit_base_patch16_224_cutout2_128_cifar", "vit_b16", 10, 224, None),
        ("vit_base_patch16_224_cifar100", "vit_b16", 100, 224, None),
        ("vit_base_patch16_224_masked_imagenet", "vit_b16", 1000, 224, 248),
        ("resnetv2_50x1_bit_distilled", "resnetv2_50x1", 1000, 224, 256),
        ("resnetv2_50x1_bit", "resnetv2_50x1", 1000, 224, 256),
        ("resnetv2_50x1_bitm", "resnetv2_50x1_448", 1000, 448, 448),
        ("resnetv2_50x1_bit.goog_in21k_ft_in1k", "resnetv2_50x1_448", 1000, 448, 448),
        ("resnetv2_50x1_bit_distilled_cutout2_128_imagenet", "resnetv2_50x1", 1000, 224, 256),
        ("resnetv2_50x1_bit_distilled_cutout2_128_svhn", "resnetv2_50x1", 10, 224, None),
        ("resmlp_24_224", "resmlp_s24", 1000, 224, 256),
        ("resmlp_24_distilled_224", "resmlp_s24", 1000, 224, 256),
        ("resmlp_24_distilled_224_cutout2_128_cifar10", "resmlp_s24", 10, 224, None),
        ("bagnet17_imagenette", "bagnet17", 10, 224, 256),
        ("vit_tiny_patch4_32", "vit_tiny_patch4_32", 10, 32, None),
        ("cifar_resnet20_cifar100", "cifar_resnet20", 100, 32, None),
    ],
)
def test_every_spelling(name, short, num_classes, side, resize):
    model = models.create(name)
    assert (model.name, resolve(name).model, model.num_classes) == (name, short, num_classes)
    assert model.data_config.input_size == (side, side)
    assert model.data_config.resize == resize
    assert models.create(name, num_classes=7).num_classes == 7
    assert models.create(short, num_classes=num_classes).apply_fn is model.apply_fn


@pytest.mark.parametrize("name", ["vit_b16_", "vit_b16_imagenett", "vit_base_patch16_224.mae",
                                  "_imagenette", "", "resnetv2_50x1_bit.goog_in21k"])  # fmt: skip
def test_unknown_names(name):
    with pytest.raises(ValueError, match=r"model: expected one of vit_digits, .*bagnet33, or timm"):
        models.create(name)


def test_data_configs_are_timms():
    timm = load_timm()
    from timm.models import _registry

    old = {k: v for found in _registry._module_to_deprecated_models.values()
           for k, v in found.items()}  # fmt: skip
    tagged = set(timm.list_models(pretrained=True))
    checked = 0
    for name, spelling in _timm_names().items():
        current = old.get(name) or name
        if current not in tagged and ("." in current or not timm.is_model(current)):
            continue  # a size or a tag that timm has not
        cfg = timm.get_pretrained_cfg(current, allow_unregistered=False)
        if cfg is None or not cfg.num_classes:
            continue
        config = models.create(name).data_config
        side = cfg.input_size[1]
        assert config.input_size == (side, side), name
        assert config.resize == math.floor(side / cfg.crop_pct), name
        assert config.interpolation == cfg.interpolation, name
        assert (config.mean, config.std) == (cfg.mean, cfg.std), name
        assert models.create(name).num_classes == cfg.num_classes, name
        assert spelling.model in MODELS
        checked += 1
    assert checked > 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_b16", "pooling": "max"}, "pooling: expected one of"),
        ({"name": "vit_b16", "gelu": "fast"}, "gelu: expected one of"),
        ({"name": "resmlp_s12", "pooling": "mean"}, "pooling: expected only for ViTs"),
        ({"name": "vit_b16", "dtype": "int8"}, "dtype: expected a floating dtype"),
        ({"name": "vit_b16", "param_dtype": "bf17"}, "param_dtype: expected a dtype"),
        ({"name": "vit_b16", "num_classes": 0}, "num_classes: expected at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.create(**options)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("vit_ti16", 100, "multiples of the ViT's patch of 16 pixels, got 100x100"),
        ("resmlp_s12", 100, "multiples of the ResMLP's patch of 16 pixels, got 100x100"),
        ("bagnet33", 32, "at least 33x33, the BagNet's receptive field, got 32x32"),
    ],
)
def test_input_sizes_that_do_not_fit(name, side, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, input_size=(side, side)).param_shapes()


# --- Precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
def test_dtype_and_param_dtype(family):
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
        ("vit_b16", "vit_base_patch16_224"),
        ("resnetv2_50x1", "resnetv2_50x1_bit"),
        ("resmlp_s24", "resmlp_24_224"),
    ],
)
def test_parity_with_timm_on_photographs(shared, tmp_path, name, theirs):
    timm = load_timm()
    model = models.create(name)
    files = sorted((shared / "data" / "imagenet_sample" / "val").glob("*/*"))[:40:20]
    mean, std = (np.array(v, np.float32) for v in (model.data_config.mean, model.data_config.std))
    images = np.stack([data.preprocess(Image.open(f), model.data_config, f.name) for f in files])
    images = (images.astype(np.float32) / 255 - mean) / std
    assert len(images) == 2
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
