"""Parts of a ViT in forms that suit GPUs: the same functions, other last bits.

Of a ViT-B/16 in bfloat16 on an H100, 512 masked images took 50 ms. The convolution of the patches
took 3.6 of these, and as a product 0.3; the exact GELU took 11, and by the error function 5.5.

Two more were measured and are left out. Queries, keys and values as three products spare what it
takes to cut one up (3.6), but their biases are then added by themselves (3.5). Norms that subtract
the mean first become one kernel each, which takes longer (8.4) than the two that share their work
with the sums of the residual branches (5.7).
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


def exact_gelu(x: Array) -> Array:
    """GELU by the error function, in float32: ``[...]`` -> ``[...]`` of the same type.

    ``jax.nn.gelu`` takes the complementary function, which keeps more digits far below 0 and
    has twice the operations. The difference is at most 1.1e-6.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
