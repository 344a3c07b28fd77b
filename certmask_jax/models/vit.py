"""Vision Transformers (Dosovitskiy et al., 2021) for small images.

Parameter names are timm's (``patch_embed.proj.weight``, ``blocks.0.attn.qkv.weight``, ...), with
dots where Flax nests.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array


class Attention(nn.Module):
    """Multi-head self-attention: tokens ``[B, N, D]`` -> ``[B, N, D]``."""

    num_heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.num_heads, -1), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v)  # softmax in float32
        return nn.Dense(width, dtype=self.dtype, name="proj")(mixed.reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block."""

    num_heads: int
    mlp_ratio: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)

        y = norm("norm1")(x).astype(x.dtype)
        x = x + Attention(self.num_heads, self.dtype, name="attn")(y)
        y = norm("norm2")(x).astype(x.dtype)
        y = nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name="mlp_fc1")(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name="mlp_fc2")(y)


class VisionTransformer(nn.Module):
    """ViT with a class token: images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    Attributes:
      num_classes: K.
      patch: side of a token in pixels; must divide the image.
      width, depth, num_heads: D, blocks, heads.
      is_training: unused, so that all models are made alike (there is no dropout).
      dtype: of the computation; norms, softmax and logits are in float32.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int
    is_training: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"input_size: expected multiples of the ViT's patch of {self.patch} pixels, got "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        side = (self.patch, self.patch)
        x = nn.Conv(
            self.width, side, side, padding="VALID", dtype=self.dtype, name="patch_embed_proj"
        )(x)
        x = x.reshape(x.shape[0], -1, self.width)
        small = nn.initializers.normal(0.02)
        token = self.param("cls_token", small, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + self.param("pos_embed", small, (1, x.shape[1], self.width))
        x = x.astype(self.dtype or x.dtype)
        for block in range(self.depth):
            x = Block(self.num_heads, dtype=self.dtype, name=f"blocks_{block}")(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x[:, 0])
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
