"""The table of models: architecture, preprocessing, parameter count and source, by short name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from certmask_jax._later import Later
from certmask_jax.models import architectures
from certmask_jax.models.data_config import DataConfig

if TYPE_CHECKING:
    import flax.linen as nn
else:
    nn = Later("flax.linen")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
      about: one line.
      build: ``(num_classes=, is_training=, ...) -> module``; also takes the module's other fields.
      data_config: preprocessing of the weights that ``source`` names.
      parameters: how many the model has with ``num_classes`` classes, as published (without running
        averages).
      source: paper, and the published weights if there are any.
      num_classes: K of the published weights.
    """

    about: str
    build: Callable[..., nn.Module]
    data_config: DataConfig
    parameters: int
    source: str
    num_classes: int = 10


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CIFAR = DataConfig((32, 32), *_IMAGENET)
_DIGITS = DataConfig((8, 8), (0.305,), (0.376,), channels=1)

_VIT_PAPER = "Dosovitskiy et al. (2021), arXiv 2010.11929"
_BIT_PAPER = "Kolesnikov et al. (2020), arXiv 1912.11370"
_DINOV2_PAPER = "Oquab et al. (2024), arXiv 2304.07193"
_REGISTERS_PAPER = "Darcet et al. (2024), arXiv 2309.16588"
_MAE_PAPER = "He et al. (2022), arXiv 2111.06377"
_DEIT3_PAPER = "Touvron et al. (2022), arXiv 2204.07118"
_BAGNET_PAPER = "Brendel and Bethge (2019), arXiv 1904.00760"

_VITS = {  # short -> (timm's word, width, depth, heads)
    "ti": ("tiny", 192, 12, 3),
    "s": ("small", 384, 12, 6),
    "b": ("base", 768, 12, 12),
    "l": ("large", 1024, 24, 16),
}
_VIT_PARAMETERS = {  # (size, patch, input side) -> count with 1,000 classes
    ("ti", 16, 224): 5_717_416, ("ti", 16, 384): 5_790_376,
    ("ti", 32, 224): 6_131_560, ("ti", 32, 384): 6_149_800,
    ("s", 16, 224): 22_050_664, ("s", 16, 384): 22_196_584,
    ("s", 32, 224): 22_878_952, ("s", 32, 384): 22_915_432,
    ("b", 16, 224): 86_567_656, ("b", 16, 384): 86_859_496,
    ("b", 32, 224): 88_224_232, ("b", 32, 384): 88_297_192,
    ("l", 16, 224): 304_326_632, ("l", 16, 384): 304_715_752,
    ("l", 32, 224): 306_535_400, ("l", 32, 384): 306_632_680,
}  # fmt: skip
_SMALL_VIT_PARAMETERS = {  # (size, patch, input side) -> count with 10 classes
    ("ti", 2, 32): 5_392_714, ("ti", 2, 64): 5_540_170,
    ("ti", 4, 32): 5_362_762, ("ti", 4, 64): 5_399_626,
    ("ti", 8, 32): 5_381_194, ("ti", 8, 64): 5_390_410,
    ("s", 2, 32): 21_402_250, ("s", 2, 64): 21_697_162,
    ("s", 4, 32): 21_342_346, ("s", 4, 64): 21_416_074,
    ("s", 8, 32): 21_379_210, ("s", 8, 64): 21_397_642,
}  # fmt: skip


def _vit(size: str, patch: int) -> Callable[..., nn.Module]:
    _, width, depth, heads = _VITS[size]
    return functools.partial(
        architectures.vision_transformer, patch=patch, width=width, depth=depth, num_heads=heads
    )


def _imagenet_vit(size: str, patch: int, side: int) -> Entry:
    word = _VITS[size][0]
    # timm's crop fractions: 0.9 at 224, 1.0 at 384.
    config = DataConfig((side, side), *_HALVES, resize=248 if side == 224 else side)
    return Entry(
        f"ViT-{size.capitalize()}/{patch} for {side}x{side}",
        _vit(size, patch),
        config,
        _VIT_PARAMETERS[size, patch, side],
        f"{_VIT_PAPER}; timm: vit_{word}_patch{patch}_{side}",
        num_classes=1000,
    )


def _small_vit(size: str, patch: int, side: int) -> Entry:
    return Entry(
        f"ViT-{size.capitalize()} for {side}x{side}, {patch}-pixel tokens",
        _vit(size, patch),
        DataConfig((side, side), *_HALVES),
        _SMALL_VIT_PARAMETERS[size, patch, side],
        _VIT_PAPER,
    )


_DINOV2_PARAMETERS = {  # (size, registers, input side) -> count with 1,000 classes
    ("s", 0, 224): 22_013_800, ("s", 0, 518): 22_441_192,
    ("s", 4, 224): 22_014_952, ("s", 4, 518): 22_442_344,
    ("b", 0, 224): 86_493_928, ("b", 0, 518): 87_348_712,
    ("b", 4, 224): 86_496_232, ("b", 4, 518): 87_351_016,
    ("l", 0, 224): 304_252_904, ("l", 0, 518): 305_392_616,
    ("l", 4, 224): 304_255_976, ("l", 4, 518): 305_395_688,
}  # fmt: skip
_MAE_PARAMETERS = {"b": 86_567_656, "l": 304_326_632}
_DEIT3_PARAMETERS = {  # (size, input side) -> count with 1,000 classes
    ("s", 224): 22_059_496, ("s", 384): 22_205_416,
    ("b", 224): 86_585_320, ("b", 384): 86_877_160,
    ("l", 224): 304_374_760, ("l", 384): 304_763_880,
}  # fmt: skip


def _dinov2(size: str, registers: int, side: int) -> Entry:
    word = _VITS[size][0]
    reg = f"reg{registers}_" if registers else ""
    paper = f"{_DINOV2_PAPER}{f', {_REGISTERS_PAPER}' if registers else ''}"
    # At 518 as timm; at 224 as its authors evaluate it. There are no published heads here.
    config = DataConfig((side, side), *_IMAGENET, resize=256 if side == 224 else side)
    return Entry(
        f"ViT-{size.capitalize()}/14 of DINOv2{', 4 registers,' if registers else ''} for "
        f"{side}x{side}; its weights have no head",
        functools.partial(
            _vit(size, 14),
            layer_scale=1e-5,
            registers=registers,
            class_position=not registers,
            position_resize="antialiased" if registers else "dinov2",
        ),
        config,
        _DINOV2_PARAMETERS[size, registers, side],
        f"{paper}; timm: vit_{word}_patch14_{reg}dinov2.lvd142m",
        num_classes=1000,
    )


def _mae(size: str) -> Entry:
    return Entry(
        f"ViT-{size.capitalize()}/16 of MAE for 224x224; its weights have no head",
        _vit(size, 16),
        DataConfig((224, 224), *_IMAGENET, resize=248),
        _MAE_PARAMETERS[size],
        f"{_MAE_PAPER}; timm: vit_{_VITS[size][0]}_patch16_224.mae",
        num_classes=1000,
    )


def _deit3(size: str, side: int) -> Entry:
    return Entry(
        f"DeiT III {size.capitalize()}/16 for {side}x{side}",
        functools.partial(_vit(size, 16), layer_scale=1e-6, class_position=False),
        DataConfig((side, side), *_IMAGENET, resize=248 if side == 224 else side),
        _DEIT3_PARAMETERS[size, side],
        f"{_DEIT3_PAPER}; timm: deit3_{_VITS[size][0]}_patch16_{side}",
        num_classes=1000,
    )


_BIT_PARAMETERS = {"50x1": 25_549_352, "101x1": 44_541_480, "50x3": 217_319_080}
_BIT_BLOCKS = {"50x1": (3, 4, 6, 3), "101x1": (3, 4, 23, 3), "50x3": (3, 4, 6, 3)}


def _bit(size: str, side: int) -> Entry:
    if side == 448:
        weights, resize, interpolation = "goog_in21k_ft_in1k", side, "bilinear"
    elif size == "50x1":
        weights, resize, interpolation = "goog_distilled_in1k", 256, "bicubic"
    else:
        weights, resize, interpolation = "goog_in21k", 256, "bilinear"
    return Entry(
        f"BiT ResNetV2-{size} for {side}x{side}",
        functools.partial(
            architectures.resnet_v2, blocks=_BIT_BLOCKS[size], width=int(size.split("x")[1])
        ),
        DataConfig((side, side), *_HALVES, resize=resize, interpolation=interpolation),
        _BIT_PARAMETERS[size],
        f"{_BIT_PAPER}; timm: resnetv2_{size}_bit.{weights}",
        num_classes=1000,
    )


def _resmlp(depth: int, layer_scale: float, parameters: int) -> Entry:
    return Entry(
        f"ResMLP-S{depth} for 224x224",
        functools.partial(architectures.res_mlp, depth=depth, layer_scale=layer_scale),
        DataConfig((224, 224), *_IMAGENET, resize=256),
        parameters,
        f"Touvron et al. (2021), arXiv 2105.03404; timm: resmlp_{depth}_224",
        num_classes=1000,
    )


def _bagnet(field: int, kernels: tuple[int, ...], parameters: int) -> Entry:
    return Entry(
        f"BagNet-{field} for 224x224, logits of {field}x{field} pixels averaged",
        functools.partial(architectures.bag_net, kernels=kernels),
        DataConfig((224, 224), *_IMAGENET, resize=256, interpolation="bilinear"),
        parameters,
        f"{_BAGNET_PAPER}; weights: wielandbrendel/bag-of-local-features-models",
        num_classes=1000,
    )


_CIFAR_BAGNETS = {  # field -> (fields of each Layer, parameters)
    5: (((32, 3), (64, 3, 2), (128,), (128,)), 45_866),
    9: (((32, 3), (64, 3, 2), (96, 3), (128,)), 88_810),
}


def _cifar_bagnet(field: int) -> Entry:
    layers, parameters = _CIFAR_BAGNETS[field]
    return Entry(
        f"small BagNet-{field} for 32x32, logits of {field}x{field} pixels averaged",
        functools.partial(architectures.cifar_bag_net, layers=layers),
        _CIFAR,
        parameters,
        f"this package, after {_BAGNET_PAPER}",
    )


_PLAIN_NETS: dict[str, tuple[DataConfig, tuple[tuple[int, ...], ...], tuple[int, ...], int]] = {
    "plain_digits": (_DIGITS, ((16, 3), (32, 3, 2)), (64,), 38_282),
    "cifar_plain": (_CIFAR, ((16, 4, 2), (32, 4)), (100,), 829_318),
}


def _plain_net(name: str) -> Entry:
    config, convolutions, hidden, parameters = _PLAIN_NETS[name]
    height, width = config.input_size
    return Entry(
        f"plain net for {height}x{width}, {len(convolutions)} convolutions and "
        f"{len(hidden) + 1} dense layers, to be trained for interval bounds",
        functools.partial(architectures.plain, convolutions=convolutions, hidden=hidden),
        config,
        parameters,
        "this package, after Gowal et al. (2018)",
    )


_LITE = {  # number -> (width, depth, input side, parameters)
    0: (1.0, 1.0, 224, 4_652_008),
    1: (1.0, 1.1, 240, 5_416_680),
    2: (1.1, 1.2, 260, 6_092_072),
    3: (1.2, 1.4, 280, 8_197_096),
    4: (1.4, 1.8, 300, 13_006_568),
}


def _efficientnet_lite(number: int) -> Entry:
    width, depth, side, parameters = _LITE[number]
    levels = (127 / 255,) * 3, (128 / 255,) * 3
    return Entry(
        f"EfficientNet-Lite{number} for {side}x{side}",
        functools.partial(architectures.efficient_net_lite, width=width, depth=depth),
        DataConfig((side, side), *levels, resize=side + 32),
        parameters,
        "Tan and Le (2019), arXiv 1905.11946; weights: tensorflow/tpu efficientnet/lite, "
        f"efficientnet_lite_pytorch, timm: tf_efficientnet_lite{number}",
        num_classes=1000,
    )


_LITE0_CUTS = {  # field -> blocks, parameters with 1,000 classes
    11: (2, 155_704), 19: (3, 164_536), 35: (4, 280_344), 67: (5, 306_584),
}  # fmt: skip


def _local_lite(field: int) -> Entry:
    blocks, parameters = _LITE0_CUTS[field]
    return dataclasses.replace(
        _efficientnet_lite(0),
        about=f"the first {blocks} blocks of EfficientNet-Lite0 for 224x224, logits of "
        f"{field}x{field} pixels averaged; its weights have no head",
        build=functools.partial(architectures.local_efficient_net_lite, blocks=blocks),
        parameters=parameters,
    )


_CIFAR_PARAMETERS = {8: 75_290, 20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}

MODELS: dict[str, Entry] = {
    "vit_digits": Entry(
        "ViT for 8x8 grey digits, 2-pixel tokens; ships with weights",
        # Its weights were made, and its results stored, with the last block for all tokens.
        functools.partial(
            architectures.vision_transformer,
            patch=2,
            width=48,
            depth=4,
            num_heads=4,
            last_block="all",
        ),
        _DIGITS,
        114_778,
        f"{_VIT_PAPER}; weights: this package",
    ),
    **{
        f"cifar_resnet{depth}": Entry(
            f"ResNet-{depth} for 32x32, option-A shortcuts (He et al., 2016)",
            functools.partial(architectures.cifar_res_net, blocks_per_stage=(depth - 2) // 6),
            _CIFAR,
            parameters,
            "He et al. (2016), arXiv 1512.03385; weights: akamaster/pytorch_resnet_cifar10",
        )
        for depth, parameters in _CIFAR_PARAMETERS.items()
    },
    **{f"cifar_bagnet{field}": _cifar_bagnet(field) for field in _CIFAR_BAGNETS},
    **{name: _plain_net(name) for name in _PLAIN_NETS},
    **{
        f"vit_{_VITS[size][0]}_patch{patch}_{side}": _small_vit(size, patch, side)
        for size, patch, side in _SMALL_VIT_PARAMETERS
    },
    **{
        f"vit_{size}{patch}" + ("" if side == 224 else f"_{side}"): _imagenet_vit(size, patch, side)
        for size, patch, side in _VIT_PARAMETERS
    },
    **{
        f"vit_{size}14_{'reg4_' if registers else ''}dinov2"
        + ("" if side == 224 else f"_{side}"): _dinov2(size, registers, side)
        for size, registers, side in _DINOV2_PARAMETERS
    },
    **{f"vit_{size}16_mae": _mae(size) for size in _MAE_PARAMETERS},
    **{
        f"deit3_{size}16" + ("" if side == 224 else f"_{side}"): _deit3(size, side)
        for size, side in _DEIT3_PARAMETERS
    },
    **{
        f"resnetv2_{size}" + ("" if side == 224 else f"_{side}"): _bit(size, side)
        for size in _BIT_PARAMETERS
        for side in (224, 448)
    },
    "resmlp_s12": _resmlp(12, 1e-4, 15_350_872),
    "resmlp_s24": _resmlp(24, 1e-5, 30_020_680),
    "resmlp_s36": _resmlp(36, 1e-6, 44_690_488),
    **{f"efficientnet_lite{number}": _efficientnet_lite(number) for number in _LITE},
    **{f"efficientnet_lite0_field{field}": _local_lite(field) for field in _LITE0_CUTS},
    "bagnet9": _bagnet(9, (3, 3, 1, 1), 15_688_744),
    "bagnet17": _bagnet(17, (3, 3, 3, 1), 16_213_032),
    "bagnet33": _bagnet(33, (3, 3, 3, 3), 18_310_184),
}
