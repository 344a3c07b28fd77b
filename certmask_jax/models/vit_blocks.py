"""The blocks of a Vision Transformer (Dosovitskiy et al., 2021): attention, MLP, norms, scales.

Parameter names are timm's, with dots where Flax nests.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax._settings import SettingError
from certmask_jax.models import gpu_forms, layers

Implementation = Literal["xla", "cudnn"]


class Attention(layers.Module):
    """Multi-head self-attention: tokens ``[B, N, D]`` -> ``[B, N, D]``, or ``[B, 1, D]``.

    With ``token_only`` the first token alone asks, all are looked at: what the whole attention
    gives for it, without what nobody reads. ``seen bool[B, N]`` are the tokens that are looked at;
    None for all of them. ``for_gpu`` takes the products of ``gpu_forms``.
    """

    num_heads: int
    attention: Implementation = "xla"
    token_only: bool = False
    for_gpu: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, seen: Array | None = None) -> Array:
        batch, tokens, width = x.shape
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads = (self.num_heads, width // self.num_heads)
        if self.token_only:
            query, others = TokenQkv(name="qkv", **types)(x)
            q = query.reshape(batch, 1, *heads)
            k, v = jnp.moveaxis(others.reshape(batch, tokens, 2, *heads), 2, 0)
        elif self.for_gpu:
            parts = gpu_forms.QkvProducts(name="qkv", **types)(x)
            q, k, v = (part.reshape(batch, tokens, *heads) for part in parts)
        else:
            qkv = layers.Dense(3 * width, name="qkv", **types)(x)
            q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, *heads), 2, 0)
        if self.attention == "cudnn":
            _check_cudnn(q)
        mask: dict[str, Any] = {}
        if seen is not None:  # cuDNN wants every query's, [B, 1, queries, keys]
            every = (batch, 1, q.shape[1], tokens)
            mask = {"mask": jnp.broadcast_to(seen[:, None, None], every)}
        mixed = jax.nn.dot_product_attention(  # softmax in float32
            # One query has no scores worth fusing, and cuDNN's kernels are made for many.
            q,
            k,
            v,
            implementation="xla" if self.token_only else self.attention,
            **mask,
        )
        return layers.Dense(width, name="proj", **types)(mixed.reshape(batch, -1, width))


class TokenQkv(layers.QkvParameters):
    """The layer of queries, keys and values, with the query of the first token alone.

    Tokens ``[B, N, D]`` -> queries ``[B, 1, D]``, keys and values ``[B, N, 2 D]``.
    """

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        width = x.shape[-1]
        x, kernel, bias = self.with_parameters(x)
        shift = bias[None, None]
        query = x[:, :1] @ kernel[:, :width] + shift[..., :width]
        return query, x @ kernel[:, width:] + shift[..., width:]


class LayerScale(layers.Module):
    """A factor for each channel (Touvron et al., 2021, CaiT): ``[B, N, D]`` -> ``[B, N, D]``."""

    first: float
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.constant(self.first)
        gamma = self.param("gamma", init, (x.shape[-1],), self.param_dtype)
        return x * gamma.astype(x.dtype)[None, None]


class Block(layers.Module):
    """Pre-norm transformer block: tokens ``[B, N, D]`` -> ``[B, N, D]``, or ``[B, 1, D]``.

    ``token_only`` computes the first token alone, and ``seen`` are the tokens that others look at,
    see ``Attention``. ``layer_scale`` is what the scales of the residual branches start from; None
    for none. ``for_gpu`` takes the forms of ``gpu_forms``.
    """

    num_heads: int
    mlp_ratio: int = 4
    gelu: str = "exact"
    attention: Implementation = "xla"
    layer_scale: float | None = None
    token_only: bool = False
    for_gpu: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, seen: Array | None = None) -> Array:
        width = x.shape[-1]
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = self._normed(x, "norm1")
        attention = Attention(
            self.num_heads, self.attention, self.token_only, self.for_gpu, name="attn", **types
        )
        mixed = attention(y, seen)
        x = (x[:, :1] if self.token_only else x) + self._scaled(mixed, "ls1")
        y = self._normed(x, "norm2")
        y = layers.Dense(self.mlp_ratio * width, name="mlp_fc1", **types)(y)
        if self.for_gpu and self.gelu == "exact":
            y = gpu_forms.exact_gelu(y)
        else:
            y = nn.gelu(y, approximate=self.gelu == "tanh")
        return x + self._scaled(layers.Dense(width, name="mlp_fc2", **types)(y), "ls2")

    def _normed(self, x: Array, name: str) -> Array:
        norm = layer_norm(self.param_dtype, name, mean_first=self.for_gpu)
        if not self.for_gpu:
            return norm(x).astype(x.dtype)
        # Of rows of tokens the compiler's tile is some that follow each other in memory. Of images
        # and tokens it is the same token of some images, which takes twice the time.
        rows = x.reshape(-1, x.shape[-1])
        return norm(rows).astype(x.dtype).reshape(x.shape)

    def _scaled(self, x: Array, name: str) -> Array:
        if self.layer_scale is None:
            return x
        return LayerScale(self.layer_scale, self.param_dtype, name=name)(x)


def layer_norm(param_dtype: Any, name: str, *, mean_first: bool = False) -> layers.LayerNorm:
    """Layer normalisation in float32, with the published epsilon (timm's, 1e-6).

    The variance is that of what is left of the mean with ``mean_first``, or else the mean square
    without the square of the mean.
    """
    return layers.LayerNorm(
        epsilon=1e-6,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        use_fast_variance=not mean_first,
        name=name,
    )


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
