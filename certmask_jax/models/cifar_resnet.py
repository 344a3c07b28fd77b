"""The ResNets for CIFAR-10 of He et al. (2016), section 4.2: depth 6n + 2, option-A shortcuts.

Parameter names are those of the widespread PyTorch port (``layer1.0.conv1.weight``, ...,
``linear.bias``), with dots where Flax nests.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers


def _batch_norm(is_training: bool, param_dtype: Any, name: str) -> layers.BatchNorm:
    """Batch normalisation in float32, epsilon 1e-5 and momentum as in PyTorch."""
    return layers.BatchNorm(
        use_running_average=not is_training,
        momentum=0.9,
        epsilon=1e-5,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        name=name,
    )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut that has no parameters."""

    planes: int
    stride: int = 1
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv(stride: int, name: str) -> layers.Conv:
            return layers.Conv(
                self.planes,
                (3, 3),
                (stride, stride),
                padding=1,
                use_bias=False,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        y = conv(self.stride, "conv1")(x)
        y = nn.relu(_batch_norm(self.is_training, self.param_dtype, name="bn1")(y).astype(x.dtype))
        y = conv(1, "conv2")(y)
        y = _batch_norm(self.is_training, self.param_dtype, name="bn2")(y).astype(x.dtype)
        return nn.relu(y + self._shortcut(x))

    def _shortcut(self, x: Array) -> Array:
        """Option A: take every ``stride``-th pixel, pad new channels with zeros on both sides."""
        grown = self.planes - x.shape[-1]
        if self.stride == 1 and grown == 0:
            return x
        sampled = x[:, :: self.stride, :: self.stride]
        return jnp.pad(sampled, ((0, 0), (0, 0), (0, 0), (grown // 2, grown - grown // 2)))


class CifarResNet(nn.Module):
    """ResNet-(6n + 2): images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    Attributes:
      num_classes: K.
      blocks_per_stage: n.
      widths: channels of the three stages.
      is_training: batch statistics instead of running averages (collection ``batch_stats``).
      dtype: of the computation; norms and logits are in float32.
      param_dtype: of the parameters.
    """

    num_classes: int
    blocks_per_stage: int
    widths: tuple[int, ...] = (16, 32, 64)
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = layers.Conv(
            self.widths[0],
            (3, 3),
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv1",
        )(x)
        x = nn.relu(_batch_norm(self.is_training, self.param_dtype, name="bn1")(x).astype(x.dtype))
        for stage, planes in enumerate(self.widths):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(
                    planes,
                    stride,
                    self.is_training,
                    self.dtype,
                    self.param_dtype,
                    name=f"layer{stage + 1}_{block}",
                )(x)
        x = x.mean(axis=(1, 2)).astype(jnp.float32)
        head = layers.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="linear"
        )
        return head(x)
