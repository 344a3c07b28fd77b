"""Models by name: published sizes, other people's spellings, preprocessing, options."""

from __future__ import annotations

import math

import jax
import pytest
from timm_oracle import load_timm

from certmask_jax import models
from certmask_jax.models.published import MODELS
from certmask_jax.models.spellings import _timm_names, resolve


def _count(model: models.Model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes()["params"]))


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
        # Weights of the convolutions, two numbers a channel of each norm, the layer of logits.
        ("cifar_bagnet5", 27 * 32 + 288 * 64 + 64 * 128 + 128**2 + 2 * 352 + 1290),
        ("cifar_bagnet9", 27 * 32 + 288 * 64 + 576 * 96 + 96 * 128 + 2 * 320 + 1290),
        ("bagnet17", 18_310_184 - 8 * 512**2), ("bagnet9", 16_213_032 - 8 * 256**2),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, published):
    assert _count(models.create(name)) == published == MODELS[name].parameters


@pytest.mark.parametrize(
    "name", ["vit_digits", "cifar_resnet8", "cifar_resnet56", "vit_small_patch2_64",
             "vit_tiny_patch8_32", "vit_l32_384", "vit_ti32", "vit_s14_dinov2",
             "vit_l14_reg4_dinov2_518", "vit_b16_mae", "deit3_b16_384"],
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
        ("vit_base_patch16_224.mae", "vit_b16_mae", 1000, 224, 248),
        ("vit_small_patch14_dinov2", "vit_s14_dinov2_518", 1000, 518, 518),
        ("vit_base_patch14_reg4_dinov2.lvd142m", "vit_b14_reg4_dinov2_518", 1000, 518, 518),
        ("dinov2_vits14_reg", "vit_s14_reg4_dinov2", 1000, 224, 256),
        ("deit3_small_patch16_224", "deit3_s16", 1000, 224, 248),
        ("deit3_base_patch16_384.fb_in1k", "deit3_b16_384", 1000, 384, 384),
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


@pytest.mark.parametrize("name", ["vit_b16_", "vit_b16_imagenett", "vit_small_patch16_224.mae",
                                  "_imagenette", "", "resnetv2_50x1_bit.goog_in21k"])  # fmt: skip
def test_unknown_names(name):
    with pytest.raises(
        ValueError, match=r"model: expected one of the \d+ models of models\.names\(\), or timm"
    ):
        models.create(name)


def test_data_configs_are_timms():
    timm = load_timm()
    from timm.models import _registry

    old = {k: v for renamed in _registry._module_to_deprecated_models.values()
           for k, v in renamed.items()}  # fmt: skip
    tagged = set(timm.list_models(pretrained=True))
    checked = 0
    for name, spelling in _timm_names().items():
        current = old.get(name) or name
        if current not in tagged and ("." in current or not timm.is_model(current)):
            continue  # a size or a tag that timm has not
        cfg = timm.get_pretrained_cfg(current, allow_unregistered=False)
        if cfg is None or not cfg.num_classes:
            continue
        if spelling.model.startswith("efficientnet_lite"):
            continue  # its authors' own, (x - 127) / 128 at their sizes: test_efficientnet_lite
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
        ({"name": "vit_b16", "attention": "flash"}, "attention: expected one of"),
        ({"name": "resmlp_s12", "attention": "xla"}, "attention: expected only for ViTs"),
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
        ("bagnet33", 32, "at least 33x33, what a local logit sees, got 32x32"),
    ],
)
def test_input_sizes_that_do_not_fit(name, side, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, input_size=(side, side)).param_shapes()
