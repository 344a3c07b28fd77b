"""Published architectures: sizes, names, parity with torch, and what a BagNet's logits see."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bagnet_oracle import image, random_weights, stored, torch_local_logits, uniform
from PIL import Image
from timm_oracle import load_timm

from certmask_jax import data, models, weights
from certmask_jax.models.bagnet import BagNet
from certmask_jax.models.cifar_resnet import CifarResNet
from certmask_jax.models.published import MODELS
from certmask_jax.models.resmlp import ResMLP
from certmask_jax.models.resnetv2 import ResNetV2, StdConv, Stem
from certmask_jax.models.spellings import _timm_names, resolve
from certmask_jax.models.vit import VisionTransformer

TOLERANCE = 1e-4  # of the largest logit

SMALL = {
    "vit": partial(VisionTransformer, patch=4, width=48, depth=2, num_heads=3),
    "vit_mean": partial(
        VisionTransformer, patch=4, width=48, depth=2, num_heads=3, pooling="mean", gelu="tanh"
    ),
    "resnetv2": partial(ResNetV2, blocks=(1, 2)),
    "resmlp": partial(ResMLP, depth=2, layer_scale=0.1, patch=4, width=48),
    "bagnet": partial(BagNet, kernels=(3, 1), blocks=(2, 1), strides=(2, 1), width=8),
    "cifar_resnet": partial(CifarResNet, blocks_per_stage=1),
}


def _count(model: models.Model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes()["params"]))


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
        if current not in tagged and not timm.is_model(current):
            continue
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
    x = uniform("precision", (2, 32, 32, 3))
    module = SMALL[family](num_classes=5)
    variables = module.init(jax.random.key(0), x)
    expected = module.apply(variables, x)
    half = SMALL[family](num_classes=5, dtype=jnp.bfloat16)
    got, seen = half.apply(variables, x, capture_intermediates=True)
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


def _logits(theirs, model, images, tmp_path):
    """Both models' logits with the same random weights on ``float32[B, h, w, c]``."""
    import torch

    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    arrays = random_weights(shapes)
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=True)
    np.savez(tmp_path / "w.npz", **arrays)
    params = weights.load(tmp_path / "w.npz", model)  # strict: every name and shape is timm's
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    with jax.default_matmul_precision("highest"):
        got = np.asarray(jax.jit(model.apply_fn)(params, images))
    assert expected.std() > 0.1  # no trivial agreement
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


def _timm_vit(timm, **options):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=192, num_heads=3, num_classes=10, **options
    )


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
    images = uniform("small images", (2, 32, 32, 3))
    model = models.create("vit_tiny_patch8_32", **ours)
    got, expected = _logits(_timm_vit(timm, **theirs), model, images, tmp_path)
    _assert_close(got, expected)
    if ours:  # the option matters
        plain = models.create("vit_tiny_patch8_32")
        theirs = _timm_vit(timm)
        assert np.abs(_logits(theirs, plain, images, tmp_path)[1] - expected).max() > 1e-3


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
    model = models.Model(
        "small", 10, module, module, models.DataConfig((45, 38), (0.5,) * 3, (0.5,) * 3),
        module.apply,
    )  # fmt: skip
    images = uniform("odd images", (2, 45, 38, 3))
    _assert_close(*_logits(theirs, model, images, tmp_path))


# --- Details by hand ---------------------------------------------------------------------------


def test_standardised_weights_by_hand():
    """One weight each of -1 and 3: standardised to -1 and 1, whatever the scale."""
    x = jnp.array([[[[10.0, 1.0]]]])
    kernel = jnp.array([-1.0, 3.0]).reshape(1, 1, 2, 1)
    for scale in (1.0, 100.0):
        y = StdConv(1, 1).apply({"params": {"kernel": scale * kernel}}, x)
        np.testing.assert_allclose(y, [[[[-9.0]]]], rtol=1e-6)


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


def _random_bagnet(name, side):
    """A BagNet with the oracle's weights."""
    model = models.create(name, num_classes=10, input_size=(side, side))
    shapes = jax.tree_util.tree_flatten_with_path(model.param_shapes())
    named = {weights._torch_name(k): weights._torch_shape(k, s.shape) for k, s in shapes[0]}
    arrays = random_weights(named)
    leaves = [weights._from_torch(k, arrays[weights._torch_name(k)]) for k, _ in shapes[0]]
    return model, jax.tree_util.tree_unflatten(shapes[1], leaves)


@pytest.mark.parametrize("field", [9, 17, 33])
def test_bagnet_equals_the_published_layout(field):
    expected = stored()[f"bagnet{field}"]
    x = image()
    model, params = _random_bagnet(f"bagnet{field}", x.shape[1])
    with jax.default_matmul_precision("highest"):
        local = model.module.apply(params, x, method="local_logits")
        logits = model.apply_fn(params, x)
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
    module = BagNet(num_classes=4, kernels=kernels, width=8)
    height, width = 50, 61
    x = uniform("seen", (1, height, width, 3))
    params = module.init(jax.random.key(1), x)

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


def test_models_are_modules():
    assert all(isinstance(build(num_classes=2), nn.Module) for build in SMALL.values())
