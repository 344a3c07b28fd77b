"""ResMLP (Touvron et al., 2021): an image classifier of linear layers, without normalisation.

Parameter names are timm's (``blocks.0.norm1.alpha``, ``blocks.0.mlp_channels.fc1.weight``, ...),
with dots where Flax nests. The token mixing ties a model to its input size.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers


class Affine(layers.Module):
    """``beta + alpha * x`` per channel, in float32: ``[B, N, D]`` -> ``float32[B, N, D]``."""

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (1, 1, x.shape[-1])
        alpha = self.param("alpha", nn.initializers.ones, shape, self.param_dtype)
        beta = self.param("beta", nn.initializers.zeros, shape, self.param_dtype)
        return beta.astype(jnp.float32) + alpha.astype(jnp.float32) * x.astype(jnp.float32)


class Stem(layers.Module):
    """Tokens: images ``[B, h, w, c]`` -> ``[B, N, D]``, row by row."""

    patch: int
    width: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        side = (self.patch, self.patch)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = layers.Conv(self.width, side, side, padding="VALID", name="proj", **types)(x)
        return x.reshape(x.shape[0], -1, self.width)


class Mlp(layers.Module):
    """Two layers with an exact GELU between, on channels: ``[B, N, D]`` -> ``[B, N, D]``."""

    hidden: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.gelu(layers.Dense(self.hidden, name="fc1", **types)(x), approximate=False)
        return layers.Dense(x.shape[-1], name="fc2", **types)(y)


class Block(layers.Module):
    """Mixes tokens, then channels (section 2, equations 2 and 3), each scaled per channel."""

    layer_scale: float
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        tokens, width = x.shape[1:]
        init = nn.initializers.constant(self.layer_scale)
        scales = [
            self.param(name, init, (width,), self.param_dtype).astype(x.dtype)[None, None]
            for name in ("ls1", "ls2")
        ]
        y = Affine(self.param_dtype, name="norm1")(x).astype(x.dtype).swapaxes(1, 2)
        y = layers.Dense(tokens, name="linear_tokens", **types)(y).swapaxes(1, 2)
        x = x + scales[0] * y
        y = Affine(self.param_dtype, name="norm2")(x).astype(x.dtype)
        return x + scales[1] * Mlp(4 * width, name="mlp_channels", **types)(y)


class ResMLP(layers.Module):
    """ResMLP: images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    Attributes:
      num_classes: K.
      patch: side of a token in pixels; must divide the image.
      width, depth: D, blocks.
      layer_scale: what the scales of the residual branches start from.
      is_training: unused, so that all models are made alike (there is no dropout).
      dtype: of the computation; affine layers and logits are in float32.
      param_dtype: of the parameters.
    """

    num_classes: int
    depth: int
    layer_scale: float
    patch: int = 16
    width: int = 384
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"input_size: expected multiples of the ResMLP's patch of {self.patch} pixels, "
                f"got {x.shape[1]}x{x.shape[2]}"
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Stem(self.patch, self.width, name="stem", **types)(x)
        for block in range(self.depth):
            x = Block(self.layer_scale, name=f"blocks_{block}", **types)(x)
        x = Affine(self.param_dtype, name="norm")(x).mean(axis=1)
        head = layers.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="head"
        )
        return head(x)
