"""Small nets with local logits for 32x32 pixels: a few VALID convolutions, then 1 x 1 ones.

What BagNets are to photographs, at the size of CIFAR-10 and small enough that two cores train one
in minutes. PatchGuard (Xiang et al., 2021) has BagNets for CIFAR-10 too, on images that are made
six times larger first: a field of 17 pixels is one of 3 pixels there, and of 5 to 9 here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers, local_net
from certmask_jax.models.local_net import LocalNet


class Layer(NamedTuple):
    """A convolution, which a batch norm and a ReLU follow."""

    features: int
    kernel: int = 1
    stride: int = 1


class CifarBagNet(LocalNet):
    """Images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``, the mean local logits.

    Attributes:
      num_classes: K.
      layers: the convolutions, without padding.
      is_training: batch statistics instead of running averages (collection ``batch_stats``).
      dtype: of the computation; norms and logits are in float32.
      param_dtype: of the parameters.
    """

    num_classes: int
    layers: tuple[Layer, ...]
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def convolutions(self) -> list[tuple[int, int]]:
        """See ``LocalNet``."""
        return [(layer.kernel, layer.stride) for layer in self.layers]

    @nn.compact
    def _logits(self, x: Array, *, is_local: bool) -> Array:
        self.check_size((x.shape[1], x.shape[2]))
        for number, layer in enumerate(self.layers, start=1):
            x = layers.Conv(
                layer.features,
                (layer.kernel, layer.kernel),
                (layer.stride, layer.stride),
                padding="VALID",
                use_bias=False,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"conv{number}",
            )(x)
            norm = layers.BatchNorm(
                use_running_average=not self.is_training,
                momentum=0.9,
                epsilon=1e-5,
                dtype=jnp.float32,
                param_dtype=self.param_dtype,
                name=f"bn{number}",
            )
            x = nn.relu(norm(x).astype(x.dtype))
        how: Any = {"param_dtype": self.param_dtype, "name": "fc", "is_local": is_local}
        return local_net.head(x, self.num_classes, **how)
