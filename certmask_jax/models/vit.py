"""Vision Transformers (Dosovitskiy et al., 2021), from 8 x 8 digits to ViT-L at 384.

Parameter names are timm's (``patch_embed.proj.weight``, ``blocks.0.attn.qkv.weight``, ...), with
dots where Flax nests.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax._settings import SettingError

POOLINGS = ("token", "mean")
GELUS = ("exact", "tanh")
ATTENTIONS = ("xla", "cudnn")

Implementation = Literal["xla", "cudnn"]


class Attention(nn.Module):
    """Multi-head self-attention: tokens ``[B, N, D]`` -> ``[B, N, D]``."""

    num_heads: int
    attention: Implementation = "xla"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        qkv = nn.Dense(3 * width, name="qkv", **types)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.num_heads, -1), 2, 0)
        if self.attention == "cudnn":
            _check_cudnn(q)
        mixed = jax.nn.dot_product_attention(  # softmax in float32
            q, k, v, implementation=self.attention
        )
        return nn.Dense(width, name="proj", **types)(mixed.reshape(x.shape))


class Block(nn.Module):
    """Pre-norm transformer block: tokens ``[B, N, D]`` -> ``[B, N, D]``."""

    num_heads: int
    mlp_ratio: int = 4
    gelu: str = "exact"
    attention: Implementation = "xla"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = _norm(self.param_dtype, "norm1")(x).astype(x.dtype)
        x = x + Attention(self.num_heads, self.attention, name="attn", **types)(y)
        y = _norm(self.param_dtype, "norm2")(x).astype(x.dtype)
        y = nn.Dense(self.mlp_ratio * width, name="mlp_fc1", **types)(y)
        y = nn.gelu(y, approximate=self.gelu == "tanh")
        return x + nn.Dense(width, name="mlp_fc2", **types)(y)


class VisionTransformer(nn.Module):
    """ViT: images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    Attributes:
      num_classes: K.
      patch: side of a token in pixels; must divide the image.
      width, depth, num_heads: D, blocks, heads.
      pooling: ``"token"`` classifies the class token, normalised by ``norm``; ``"mean"`` the mean
        of the image's tokens, normalised after the mean by ``fc_norm``: timm's
        ``global_pool="avg"``. The class token takes part in the attention either way, as in timm.
      gelu: ``"exact"``, as timm runs all ViTs, or ``"tanh"``, the approximation with which
        Google's own weights were trained.
      attention: ``"xla"``, on any device, or ``"cudnn"``: cuDNN's flash attention, on NVIDIA GPUs
        in 16 bits (``jax.nn.dot_product_attention``, which names what else it asks for).
      is_training: unused, so that all models are made alike (there is no dropout).
      dtype: of the computation; norms, softmax and logits are in float32.
      param_dtype: of the parameters.

    Raises:
      ValueError: for another pooling, gelu or attention; on a call, for an image that the patch
        does not divide, or for cuDNN without a GPU or in float32.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int
    pooling: str = "token"
    gelu: str = "exact"
    attention: Implementation = "xla"
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {POOLINGS}, got {self.pooling!r}")
        if self.gelu not in GELUS:
            raise ValueError(f"gelu: expected one of {GELUS}, got {self.gelu!r}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention: expected one of {ATTENTIONS}, got {self.attention!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"input_size: expected multiples of the ViT's patch of {self.patch} pixels, got "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        side = (self.patch, self.patch)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Conv(self.width, side, side, padding="VALID", name="patch_embed_proj", **types)(x)
        x = x.reshape(x.shape[0], -1, self.width)
        small = nn.initializers.normal(0.02)
        token = self.param("cls_token", small, (1, 1, self.width), self.param_dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], axis=1)
        x = x + self.param("pos_embed", small, (1, x.shape[1], self.width), self.param_dtype)
        x = x.astype(self.dtype or x.dtype)
        for block in range(self.depth):
            x = Block(
                self.num_heads,
                gelu=self.gelu,
                attention=self.attention,
                name=f"blocks_{block}",
                **types,
            )(x)
        if self.pooling == "token":
            x = _norm(self.param_dtype, "norm")(x[:, 0])
        else:
            x = _norm(self.param_dtype, "fc_norm")(x[:, 1:].astype(jnp.float32).mean(axis=1))
        head = nn.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="head"
        )
        return head(x)


def _norm(param_dtype: Any, name: str) -> nn.LayerNorm:
    """Layer normalisation in float32, with the published epsilon."""
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, param_dtype=param_dtype, name=name)


def _check_cudnn(q: Array) -> None:
    """``ValueError`` where cuDNN's flash attention cannot run."""
    backend = jax.default_backend()
    if backend != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16):
        raise SettingError(
            lambda say: (
                f"{say('attention', None)}: expected cudnn on an NVIDIA GPU and in 16 bits "
                f"({say('precision', 'bfloat16')}), got {q.dtype} on {backend}; use xla, which "
                "runs anywhere"
            )
        )
