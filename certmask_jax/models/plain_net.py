"""Plain nets: convolutions, dense layers and ReLUs, and nothing else.

Interval bounds widen with every layer, so they are trained for nets of few, without norms. These
have the form of those of Gowal et al. (2018, On the Effectiveness of Interval Bound Propagation,
Table 1), with padding, so that small images fit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers


class Convolution(NamedTuple):
    """A convolution with a bias, which a ReLU follows."""

    features: int
    kernel: int
    stride: int = 1


class PlainNet(nn.Module):
    """Images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    Attributes:
      num_classes: K.
      convolutions: the first layers, padded as TensorFlow's SAME.
      hidden: widths of dense layers after them; one more gives the logits.
      is_training: of no use here, as nothing differs.
      dtype: of the computation; logits are in float32.
      param_dtype: of the parameters.
    """

    num_classes: int
    convolutions: tuple[Convolution, ...]
    hidden: tuple[int, ...]
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for number, layer in enumerate(self.convolutions, start=1):
            kernel, strides = (layer.kernel, layer.kernel), (layer.stride, layer.stride)
            name = f"conv{number}"
            x = layers.Conv(layer.features, kernel, strides, padding="SAME", name=name, **types)(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.hidden, start=1):
            x = nn.relu(layers.Dense(width, name=f"dense{number}", **types)(x))
        head = layers.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="fc"
        )
        return head(x.astype(jnp.float32))
