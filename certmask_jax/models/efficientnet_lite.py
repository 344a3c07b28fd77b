"""EfficientNet-Lite 0 to 4: EfficientNets (Tan and Le, 2019) for integer hardware.

Without squeeze-and-excitation, with ReLU6, and with a stem and a head that keep their width. The
published ones were trained in TensorFlow, so padding is its "SAME", which is not symmetric at
stride 2. Parameter names are timm's (``blocks.1.0.conv_dw.weight``), with dots where Flax nests.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers
from certmask_jax.models.depthwise import DepthwiseConv


class _Stage(NamedTuple):
    """Blocks of one width, before it is scaled."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280


class Block(layers.Module):
    """Inverted bottleneck (Sandler et al., 2018); without expansion a separable convolution."""

    features: int
    kernel: int
    stride: int
    expansion: int
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    depthwise: str = "shifts"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inner = x.shape[-1] * self.expansion
        shortcut, norms = x, iter(("bn1", "bn2", "bn3"))
        if self.expansion > 1:
            x = self._normed(self._pointwise(inner, "conv_pw")(x), next(norms), active=True)
        x = DepthwiseConv(
            self.kernel, self.stride, self.depthwise, self.dtype, self.param_dtype, name="conv_dw"
        )(x)
        x = self._normed(x, next(norms), active=True)
        last = "conv_pwl" if self.expansion > 1 else "conv_pw"
        x = self._normed(self._pointwise(self.features, last)(x), next(norms), active=False)
        return x + shortcut if x.shape == shortcut.shape else x

    def _pointwise(self, features: int, name: str) -> layers.Conv:
        return _conv(features, 1, 1, self.dtype, self.param_dtype, name)

    def _normed(self, x: Array, name: str, *, active: bool) -> Array:
        return _normed(x, self.is_training, self.param_dtype, name, active=active)


class Stage(layers.Module):
    """Blocks of one width; the first one has the stride."""

    blocks: int
    features: int
    kernel: int
    stride: int
    expansion: int
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    depthwise: str = "shifts"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for block in range(self.blocks):
            x = Block(
                self.features,
                self.kernel,
                self.stride if block == 0 else 1,
                self.expansion,
                self.is_training,
                self.dtype,
                self.param_dtype,
                self.depthwise,
                name=str(block),
            )(x)
        return x


class EfficientNetLite(layers.Module):
    """EfficientNet-Lite: images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    Attributes:
      num_classes: K.
      width, depth: factors on the channels and the blocks of a stage; stem and head keep their
        width, first and last stage their one block.
      is_training: batch statistics instead of running averages (collection ``batch_stats``).
      dtype: of the computation; norms and logits are in float32.
      param_dtype: of the parameters.
      depthwise: how ``DepthwiseConv`` computes.
    """

    num_classes: int
    width: float = 1.0
    depth: float = 1.0
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    depthwise: str = "shifts"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = (self.dtype, self.param_dtype)
        x = _conv(_STEM, 3, 2, *types, "conv_stem")(x)
        x = _normed(x, self.is_training, self.param_dtype, "bn1", active=True)
        for number, stage in enumerate(_STAGES):
            is_end = number in (0, len(_STAGES) - 1)
            x = Stage(
                stage.blocks if is_end else math.ceil(self.depth * stage.blocks),
                _rounded(self.width * stage.features),
                stage.kernel,
                stage.stride,
                stage.expansion,
                self.is_training,
                *types,
                self.depthwise,
                name=f"blocks_{number}",
            )(x)
        x = _conv(_HEAD, 1, 1, *types, "conv_head")(x)
        x = _normed(x, self.is_training, self.param_dtype, "bn2", active=True)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        head = layers.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="classifier"
        )
        return head(x)


def _rounded(features: float) -> int:
    """The multiple of 8 nearest to so many channels, but not less than 90% of them."""
    rounded = max(8, int(features + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * features else rounded


def _conv(
    features: int, kernel: int, stride: int, dtype: Any, param_dtype: Any, name: str
) -> layers.Conv:
    return layers.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding="SAME",
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def _normed(x: Array, is_training: bool, param_dtype: Any, name: str, *, active: bool) -> Array:
    """Batch normalisation in float32, epsilon 1e-3 as in TensorFlow, and ReLU6 if ``active``."""
    norm = layers.BatchNorm(
        use_running_average=not is_training,
        momentum=0.99,
        epsilon=1e-3,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        name=name,
    )
    y = norm(x)
    return (nn.relu6(y) if active else y).astype(x.dtype)
