"""BagNets (Brendel and Bethge, 2019): a ResNet-50 whose local logits see few pixels.

A patch reaches only the local logits whose receptive field it meets, which robust masking and its
kin build on. Parameter names are those of bag-of-local-features-models (``conv1.weight``,
``layer1.0.downsample.0.weight``, ..., ``fc.bias``), with dots where Flax nests.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers, local_net
from certmask_jax.models.local_net import LocalNet

_EXPANSION = 4
_STEM_KERNEL = 3


class Bottleneck(nn.Module):
    """Bottleneck of VALID convolutions; the shortcut is cropped at the bottom and right."""

    planes: int
    kernel: int
    stride: int
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = _EXPANSION * self.planes
        shortcut = x
        if self.stride != 1 or x.shape[-1] != features:
            shortcut = self._conv(features, 1, self.stride, "downsample_0")(x)
            shortcut = self._norm("downsample_1", shortcut)
        y = nn.relu(self._norm("bn1", self._conv(self.planes, 1, 1, "conv1")(x)))
        y = self._conv(self.planes, self.kernel, self.stride, "conv2")(y)
        y = nn.relu(self._norm("bn2", y))
        y = self._norm("bn3", self._conv(features, 1, 1, "conv3")(y))
        return nn.relu(y + shortcut[:, : y.shape[1], : y.shape[2]])

    def _conv(self, features: int, kernel: int, stride: int, name: str) -> layers.Conv:
        return _conv(features, kernel, stride, self.dtype, self.param_dtype, name)

    def _norm(self, name: str, x: Array) -> Array:
        norm = _batch_norm(self.is_training, 0.9, self.param_dtype, name)
        return norm(x).astype(x.dtype)


class BagNet(LocalNet):
    """BagNet: images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``, the mean local logits.

    Attributes:
      num_classes: K.
      kernels: side of the first 3 x 3 (or 1 x 1) convolution of each stage; all others are 1 x 1.
        (3, 3, 3, 3) is BagNet-33, (3, 3, 3, 1) BagNet-17, (3, 3, 1, 1) BagNet-9.
      blocks, strides, width: bottlenecks and strides of the stages, channels of the stem.
      is_training: batch statistics instead of running averages (collection ``batch_stats``).
      dtype: of the computation; norms and logits are in float32.
      param_dtype: of the parameters.
    """

    num_classes: int
    kernels: tuple[int, ...]
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    strides: tuple[int, ...] = (2, 2, 2, 1)
    width: int = 64
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def convolutions(self) -> list[tuple[int, int]]:
        """See ``LocalNet``: the stem's, and the first one of each stage."""
        return [(_STEM_KERNEL, 1), *zip(self.kernels, self.strides, strict=True)]

    def feature_map_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """``(Fh, Fw)`` for images of ``(height, width)``.

        Raises:
          ValueError: for an image smaller than the receptive field.
        """
        self.check_size(input_size)
        height, width = (_side(n, self.kernels, self.strides) for n in input_size)
        return height, width

    @nn.compact
    def _logits(self, x: Array, *, is_local: bool) -> Array:
        self.feature_map_size((x.shape[1], x.shape[2]))
        types = (self.dtype, self.param_dtype)
        x = _conv(self.width, 1, 1, *types, name="conv1")(x)  # no norm or ReLU, as published
        x = _conv(self.width, _STEM_KERNEL, 1, *types, name="conv2")(x)
        norm = _batch_norm(self.is_training, 0.999, self.param_dtype, "bn1")
        x = nn.relu(norm(x).astype(x.dtype))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = Bottleneck(
                    self.width * 2**stage,
                    self.kernels[stage] if block == 0 else 1,
                    self.strides[stage] if block == 0 else 1,
                    self.is_training,
                    *types,
                    name=f"layer{stage + 1}_{block}",
                )(x)
        how: Any = {"param_dtype": self.param_dtype, "name": "fc", "is_local": is_local}
        return local_net.head(x, self.num_classes, **how)


def _side(pixels: int, kernels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Side of the feature map of VALID convolutions."""
    side = pixels - _STEM_KERNEL + 1
    for kernel, stride in zip(kernels, strides, strict=True):
        side = (side - kernel) // stride + 1
    return side


def _conv(
    features: int, kernel: int, stride: int, dtype: Any, param_dtype: Any, name: str
) -> layers.Conv:
    return layers.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding="VALID",
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def _batch_norm(
    is_training: bool, momentum: float, param_dtype: Any, name: str
) -> layers.BatchNorm:
    """Batch normalisation in float32, epsilon 1e-5; Flax's momentum is 1 minus PyTorch's."""
    return layers.BatchNorm(
        use_running_average=not is_training,
        momentum=momentum,
        epsilon=1e-5,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        name=name,
    )
