"""Parts of a ViT in forms that suit GPUs: the same functions, other last bits.

They are written so that XLA's compiler leaves most of what stands between products to cuBLAS
(``inference.devices.compiler_options``): biases, a tanh GELU and the sums of the residual branches
are then part of the products. What is left is made as little as can be: queries, keys and values
are three products, so that none is cut up for cuDNN; norms subtract the mean first, which is one
kernel; patches are embedded by a product, where cuDNN's convolutions of three channels take many
times as long; and the exact GELU has half of the operations.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers


class PatchProducts(layers.Module):
    """The embedding of patches as one product: ``[B, h, w, c]`` -> ``[B, h/p, w/p, D]``.

    cuDNN's convolutions of three channels take many times as long. Parameters are those of
    ``nn.Conv(D, (p, p), (p, p), padding="VALID")``; p divides the image.
    """

    features: int
    patch: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        side = self.patch
        shape = (side, side, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        grid = (height // side, width // side)
        x = x.reshape(batch, grid[0], side, grid[1], side, channels).swapaxes(2, 3)
        x = x.reshape(batch, *grid, side * side * channels)
        return x @ kernel.reshape(-1, self.features) + bias[None, None, None]


def patch_embedding(
    features: int, patch: int, *, for_gpu: bool, dtype: Any, param_dtype: Any
) -> layers.Module:
    """The embedding of patches, ``patch_embed_proj``: a convolution, or for GPUs ``PatchProducts``.

    ``[B, h, w, c]`` -> ``[B, h/p, w/p, D]``, with the same parameters either way.
    """
    named = {"name": "patch_embed_proj", "dtype": dtype, "param_dtype": param_dtype}
    if for_gpu:
        return PatchProducts(features, patch, **named)
    side = (patch, patch)
    return layers.Conv(features, side, side, padding="VALID", **named)


class QkvProducts(layers.QkvParameters):
    """The layer of queries, keys and values as three products: ``[B, N, D]`` -> three of these.

    One product of all three has to be cut up before cuDNN reads it.
    """

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        x, kernel, bias = self.with_parameters(x)
        parts = zip(jnp.split(kernel, 3, axis=1), jnp.split(bias, 3), strict=True)
        query, key, value = (x @ of_part + shift[None, None] for of_part, shift in parts)
        return query, key, value


def exact_gelu(x: Array) -> Array:
    """GELU by the error function, in float32: ``[...]`` -> ``[...]`` of the same type.

    ``jax.nn.gelu`` takes the complementary function, which keeps more digits far below 0 and
    has twice the operations. The difference is at most 1.1e-6.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
