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


class StageSize(NamedTuple):
    """Blocks of one width."""

    blocks: int
    features: int
    kernel: int
    stride: int
    expansion: int


_STAGES = (  # before they are scaled
    StageSize(1, 16, 3, 1, 1),
    StageSize(2, 24, 3, 2, 6),
    StageSize(2, 40, 5, 2, 6),
    StageSize(3, 80, 3, 2, 6),
    StageSize(3, 112, 5, 1, 6),
    StageSize(4, 192, 5, 2, 6),
    StageSize(1, 320, 3, 1, 6),
)
STEM_KERNEL, STEM_STRIDE = 3, 2
_STEM, _HEAD = 32, 1280


class Block(layers.Module):
    """Inverted bottleneck (Sandler et al., 2018); without expansion a separable convolution.

    Attributes:
      padding: ``"SAME"``, or ``"VALID"`` for none; the shortcut is then cropped on all sides alike.
      opens: only the expansion, with its norm and ReLU6, which looks at each place by itself.
    """

    features: int
    kernel: int
    stride: int
    expansion: int
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    depthwise: str = "shifts"
    padding: str = "SAME"
    opens: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inner = x.shape[-1] * self.expansion
        shortcut, norms = x, iter(("bn1", "bn2", "bn3"))
        if self.expansion > 1:
            x = self._normed(self._pointwise(inner, "conv_pw")(x), next(norms), active=True)
        if self.opens:
            return x
        types = (self.dtype, self.param_dtype, self.padding)
        x = DepthwiseConv(self.kernel, self.stride, self.depthwise, *types, name="conv_dw")(x)
        x = self._normed(x, next(norms), active=True)
        last = "conv_pwl" if self.expansion > 1 else "conv_pw"
        x = self._normed(self._pointwise(self.features, last)(x), next(norms), active=False)
        if self.padding == "VALID" and self.stride == 1:
            edge = self.kernel // 2
            shortcut = shortcut[:, edge : edge + x.shape[1], edge : edge + x.shape[2]]
        return x + shortcut if x.shape == shortcut.shape else x

    def _pointwise(self, features: int, name: str) -> layers.Conv:
        return _conv(features, 1, 1, self.dtype, self.param_dtype, name)

    def _normed(self, x: Array, name: str, *, active: bool) -> Array:
        return _normed(x, self.is_training, self.param_dtype, name, active=active)


class Stage(layers.Module):
    """Blocks of one width; the first one has the stride.

    Attributes:
      padding: as ``Block.padding``.
      opens: after the blocks comes the expansion of one more.
    """

    blocks: int
    features: int
    kernel: int
    stride: int
    expansion: int
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    depthwise: str = "shifts"
    padding: str = "SAME"
    opens: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for block in range(self.blocks + self.opens):
            x = Block(
                self.features,
                self.kernel,
                self.stride if block == 0 else 1,
                self.expansion,
                self.is_training,
                self.dtype,
                self.param_dtype,
                self.depthwise,
                self.padding,
                block == self.blocks,
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
        x = stem(x, self.is_training, *types)
        for number, stage in enumerate(stages(self.width, self.depth)):
            how = (self.is_training, *types, self.depthwise)
            x = Stage(*stage, *how, name=f"blocks_{number}")(x)
        x = _conv(_HEAD, 1, 1, *types, "conv_head")(x)
        x = _normed(x, self.is_training, self.param_dtype, "bn2", active=True)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        head = layers.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="classifier"
        )
        return head(x)


def stages(width: float = 1.0, depth: float = 1.0) -> tuple[StageSize, ...]:
    """The stages of a net of this width and depth; the first and the last keep their one block."""
    middle = range(1, len(_STAGES) - 1)
    return tuple(
        stage._replace(
            blocks=math.ceil(depth * stage.blocks) if number in middle else stage.blocks,
            features=_rounded(width * stage.features),
        )
        for number, stage in enumerate(_STAGES)
    )


def stem(x: Array, is_training: bool, dtype: Any, param_dtype: Any, padding: str = "SAME") -> Array:
    """The first convolution, as a part of the module that calls: half as many pixels a side."""
    x = _conv(_STEM, STEM_KERNEL, STEM_STRIDE, dtype, param_dtype, "conv_stem", padding)(x)
    return _normed(x, is_training, param_dtype, "bn1", active=True)


def _rounded(features: float) -> int:
    """The multiple of 8 nearest to so many channels, but not less than 90% of them."""
    rounded = max(8, int(features + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * features else rounded


def _conv(
    features: int,
    kernel: int,
    stride: int,
    dtype: Any,
    param_dtype: Any,
    name: str,
    padding: str = "SAME",
) -> layers.Conv:
    return layers.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=padding,
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
