"""BiT ResNetV2 (Kolesnikov et al., 2020; He et al., 2016b): pre-activation bottlenecks.

Weight standardisation (Qiao et al., 2019) and group normalisation instead of batch statistics, so
that evaluation and training compute alike. Parameter names are timm's (``stem.conv.weight``,
``stages.0.blocks.0.downsample.conv.weight``, ...), with dots where Flax nests.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers

_EXPANSION = 4
_WEIGHT_EPSILON = 1e-8


class StdConv(layers.Module):
    """Convolution with standardised weights: ``[B, h, w, c]`` -> ``[B, H, W, features]``.

    The kernel of each output channel has mean 0 and variance 1 (biased, plus 1e-8), in float32.
    Padding is symmetric, as in PyTorch, and not "SAME", which differs at stride 2.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, shape, self.param_dtype).astype(jnp.float32)
        centred = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
        variance = jnp.square(centred).mean(axis=(0, 1, 2), keepdims=True)
        kernel = centred * jax.lax.rsqrt(variance + _WEIGHT_EPSILON)
        margin = (self.size // 2, self.size // 2)
        dtype = self.dtype or x.dtype
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        if self.size == 1:
            return layers.pixel_products(x[:, :: self.stride, :: self.stride], kernel)
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            (margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class NormRelu(layers.Module):
    """Group normalisation with 32 groups, in float32, then ReLU: the shape and dtype of ``x``."""

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # The parameters belong to this module, whose name is that of the normalisation in timm.
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        groups = x.astype(jnp.float32).reshape(*x.shape[:-1], 32, -1)
        centred = groups - groups.mean(axis=(1, 2, 4), keepdims=True)
        variance = jnp.square(centred).mean(axis=(1, 2, 4), keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        scale, bias = (jnp.asarray(one, jnp.float32).reshape(1, 1, 1, -1) for one in (scale, bias))
        return nn.relu(normal * scale + bias).astype(x.dtype)


class Downsample(layers.Module):
    """The projection of a shortcut whose shape changes: 1 x 1, with the block's stride."""

    features: int
    stride: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return StdConv(self.features, 1, self.stride, self.dtype, self.param_dtype, name="conv")(x)


class Bottleneck(layers.Module):
    """Pre-activation bottleneck: norms come first, and nothing follows the sum."""

    planes: int
    stride: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = (self.dtype, self.param_dtype)
        features = _EXPANSION * self.planes
        y = NormRelu(self.param_dtype, name="norm1")(x)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != features:
            # The projection sees the normalised input, the identity the raw one.
            shortcut = Downsample(features, self.stride, *types, name="downsample")(y)
        y = StdConv(self.planes, 1, 1, *types, name="conv1")(y)
        y = NormRelu(self.param_dtype, name="norm2")(y)
        y = StdConv(self.planes, 3, self.stride, *types, name="conv2")(y)
        y = NormRelu(self.param_dtype, name="norm3")(y)
        return shortcut + StdConv(features, 1, 1, *types, name="conv3")(y)


class Stage(layers.Module):
    """Bottlenecks of one width; the first one has the stride."""

    blocks: int
    planes: int
    stride: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for block in range(self.blocks):
            stride = self.stride if block == 0 else 1
            x = Bottleneck(
                self.planes, stride, self.dtype, self.param_dtype, name=f"blocks_{block}"
            )(x)
        return x


class Stem(layers.Module):
    """7 x 7 convolution and 3 x 3 max-pool, each of stride 2."""

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = StdConv(self.features, 7, 2, self.dtype, self.param_dtype, name="conv")(x)
        # Zeros, not minus infinity: no ReLU comes before, so at the border zero can be the maximum.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")


class Head(layers.Module):
    """Logits in float32 by a 1 x 1 convolution, which is how the published weights store it."""

    num_classes: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
        logits = layers.Conv(
            self.num_classes, (1, 1), dtype=jnp.float32, param_dtype=self.param_dtype, name="fc"
        )(x)
        return logits[:, 0, 0]


class ResNetV2(layers.Module):
    """BiT ResNetV2: images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    Attributes:
      num_classes: K.
      blocks: bottlenecks of each of the stages; (3, 4, 6, 3) is depth 50.
      width: factor on all channels.
      is_training: unused, so that all models are made alike (there are no batch statistics).
      dtype: of the computation; norms, standardised weights and logits are in float32.
      param_dtype: of the parameters.
    """

    num_classes: int
    blocks: tuple[int, ...]
    width: int = 1
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = (self.dtype, self.param_dtype)
        x = Stem(64 * self.width, *types, name="stem")(x)
        for stage, blocks in enumerate(self.blocks):
            planes, stride = 64 * self.width * 2**stage, 1 if stage == 0 else 2
            x = Stage(blocks, planes, stride, *types, name=f"stages_{stage}")(x)
        x = NormRelu(self.param_dtype, name="norm")(x)
        return Head(self.num_classes, self.param_dtype, name="head")(x)
