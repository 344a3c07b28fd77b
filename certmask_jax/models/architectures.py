"""The architectures of the table of models, each imported when a model of it is made.

What the table says of models, their names, sizes and sources, needs no Flax, which takes a fifth of
a second to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from certmask_jax._later import Later

if TYPE_CHECKING:
    import flax.linen as nn
else:
    nn = Later("flax.linen")


def vision_transformer(**fields: Any) -> nn.Module:
    """``VisionTransformer`` with these fields."""
    from certmask_jax.models.vit import VisionTransformer

    return VisionTransformer(**fields)


def cifar_res_net(**fields: Any) -> nn.Module:
    """``CifarResNet`` with these fields."""
    from certmask_jax.models.cifar_resnet import CifarResNet

    return CifarResNet(**fields)


def resnet_v2(**fields: Any) -> nn.Module:
    """``ResNetV2`` with these fields."""
    from certmask_jax.models.resnetv2 import ResNetV2

    return ResNetV2(**fields)


def res_mlp(**fields: Any) -> nn.Module:
    """``ResMLP`` with these fields."""
    from certmask_jax.models.resmlp import ResMLP

    return ResMLP(**fields)


def efficient_net_lite(**fields: Any) -> nn.Module:
    """``EfficientNetLite`` with these fields."""
    from certmask_jax.models.efficientnet_lite import EfficientNetLite

    return EfficientNetLite(**fields)


def local_efficient_net_lite(**fields: Any) -> nn.Module:
    """``LocalEfficientNetLite`` with these fields."""
    from certmask_jax.models.local_efficientnet import LocalEfficientNetLite

    return LocalEfficientNetLite(**fields)


def bag_net(**fields: Any) -> nn.Module:
    """``BagNet`` with these fields."""
    from certmask_jax.models.bagnet import BagNet

    return BagNet(**fields)


def cifar_bag_net(*, layers: Sequence[tuple[int, ...]], **fields: Any) -> nn.Module:
    """``CifarBagNet`` with these fields; ``layers`` as ``Layer`` takes each."""
    from certmask_jax.models.cifar_bagnet import CifarBagNet, Layer

    return CifarBagNet(layers=tuple(Layer(*layer) for layer in layers), **fields)


def plain(*, convolutions: Sequence[tuple[int, ...]], **fields: Any) -> nn.Module:
    """``PlainNet`` with these fields; ``convolutions`` as ``Convolution`` takes each."""
    from certmask_jax.models.plain_net import Convolution, PlainNet

    return PlainNet(convolutions=tuple(Convolution(*one) for one in convolutions), **fields)
