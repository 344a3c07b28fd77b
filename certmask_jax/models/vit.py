"""Vision Transformers (Dosovitskiy et al., 2021), from 8 x 8 digits to ViT-L at 518.

Also the shapes of DINOv2 (LayerScale, register tokens) and of DeiT III (LayerScale, positions for
the image's tokens alone). Parameter names are timm's (``patch_embed.proj.weight``,
``blocks.0.attn.qkv.weight``, ...), with dots where Flax nests.
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
LAST_BLOCKS = ("token", "all")
POSITION_RESIZES = ("antialiased", "dinov2")

Implementation = Literal["xla", "cudnn"]


class Attention(nn.Module):
    """Multi-head self-attention: tokens ``[B, N, D]`` -> ``[B, N, D]``, or ``[B, 1, D]``.

    With ``token_only`` the first token alone asks, all are looked at: what the whole attention
    gives for it, without what nobody reads. ``seen bool[B, N]`` are the tokens that are looked at;
    None for all of them.
    """

    num_heads: int
    attention: Implementation = "xla"
    token_only: bool = False
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
        else:
            qkv = nn.Dense(3 * width, name="qkv", **types)(x)
            q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, *heads), 2, 0)
        if self.attention == "cudnn":
            _check_cudnn(q)
        if seen is not None:  # cuDNN wants every query's, [B, 1, queries, keys]
            seen = jnp.broadcast_to(seen[:, None, None], (batch, 1, q.shape[1], tokens))
        mixed = jax.nn.dot_product_attention(  # softmax in float32
            # One query has no scores worth fusing, and cuDNN's kernels are made for many.
            q,
            k,
            v,
            mask=seen,
            implementation="xla" if self.token_only else self.attention,
        )
        return nn.Dense(width, name="proj", **types)(mixed.reshape(batch, -1, width))


class TokenQkv(nn.Module):
    """The layer of queries, keys and values, with the query of the first token alone.

    Tokens ``[B, N, D]`` -> queries ``[B, 1, D]``, keys and values ``[B, N, 2 D]``. Parameters are
    those of ``nn.Dense(3 * D)``.
    """

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        width = x.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (width, 3 * width), self.param_dtype
        )
        bias = self.param("bias", nn.initializers.zeros, (3 * width,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        shift = bias[None, None]
        query = x[:, :1] @ kernel[:, :width] + shift[..., :width]
        return query, x @ kernel[:, width:] + shift[..., width:]


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al., 2021, CaiT): ``[B, N, D]`` -> ``[B, N, D]``."""

    first: float
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.constant(self.first)
        gamma = self.param("gamma", init, (x.shape[-1],), self.param_dtype)
        return x * gamma.astype(x.dtype)[None, None]


class Block(nn.Module):
    """Pre-norm transformer block: tokens ``[B, N, D]`` -> ``[B, N, D]``, or ``[B, 1, D]``.

    ``token_only`` computes the first token alone, and ``seen`` are the tokens that others look at,
    see ``Attention``. ``layer_scale`` is what the scales of the residual branches start from; None
    for none.
    """

    num_heads: int
    mlp_ratio: int = 4
    gelu: str = "exact"
    attention: Implementation = "xla"
    layer_scale: float | None = None
    token_only: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, seen: Array | None = None) -> Array:
        width = x.shape[-1]
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = _norm(self.param_dtype, "norm1")(x).astype(x.dtype)
        attention = Attention(self.num_heads, self.attention, self.token_only, name="attn", **types)
        mixed = attention(y, seen)
        x = (x[:, :1] if self.token_only else x) + self._scaled(mixed, "ls1")
        y = _norm(self.param_dtype, "norm2")(x).astype(x.dtype)
        y = nn.Dense(self.mlp_ratio * width, name="mlp_fc1", **types)(y)
        y = nn.gelu(y, approximate=self.gelu == "tanh")
        return x + self._scaled(nn.Dense(width, name="mlp_fc2", **types)(y), "ls2")

    def _scaled(self, x: Array, name: str) -> Array:
        if self.layer_scale is None:
            return x
        return LayerScale(self.layer_scale, self.param_dtype, name=name)(x)


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
      layer_scale: what the scales of the residual branches start from; None for none.
      registers: how many register tokens stand between the class token and the image's (Darcet et
        al., 2024).
      class_position: whether the class token has a position of its own, the first. Registers have
        none, so that models with registers leave it out, as timm does.
      last_block: ``"token"`` computes the last block for the class token alone where nothing else
        is read of it (``pooling="token"``): the same mathematics, some operations less, and other
        last bits; ``"all"`` for all tokens, as it is written down.
      position_resize: how ``weights.load`` fits positions to another grid: ``"antialiased"`` as
        timm, ``"dinov2"`` as DINOv2's own code without registers.
      is_training: unused, so that all models are made alike (there is no dropout).
      dtype: of the computation; norms, softmax and logits are in float32.
      param_dtype: of the parameters.

    Raises:
      ValueError: for another pooling, gelu, attention, last_block or position_resize, or registers
        with a position for the class token; on a call, for an image that the patch does not
        divide, or for cuDNN without a GPU or in float32.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int
    pooling: str = "token"
    gelu: str = "exact"
    attention: Implementation = "xla"
    layer_scale: float | None = None
    registers: int = 0
    class_position: bool = True
    last_block: str = "token"
    position_resize: str = "antialiased"
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name, choices in (
            ("pooling", POOLINGS),
            ("gelu", GELUS),
            ("attention", ATTENTIONS),
            ("last_block", LAST_BLOCKS),
            ("position_resize", POSITION_RESIZES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")
        if self.registers and self.class_position:
            raise ValueError(
                f"class_position: expected False with {self.registers} registers, which have no "
                "positions, got True"
            )
        super().__post_init__()

    @property
    def computes_token_only(self) -> bool:
        """Whether the last block is computed for the class token alone."""
        return self.pooling == "token" and self.last_block == "token"

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
        batch, rows, columns = x.shape[:3]  # the batch may be symbolic, for jax.export
        x = x.reshape(batch, rows * columns, self.width)
        x = self._with_prefix(x)
        x = x.astype(self.dtype or x.dtype)
        for block in range(self.depth):
            is_last = block == self.depth - 1
            x = Block(
                self.num_heads,
                gelu=self.gelu,
                attention=self.attention,
                layer_scale=self.layer_scale,
                token_only=is_last and self.computes_token_only,
                name=f"blocks_{block}",
                **types,
            )(x)
        if self.pooling == "token":
            x = _norm(self.param_dtype, "norm")(x[:, 0])
        else:
            seen = x[:, 1 + self.registers :]
            x = _norm(self.param_dtype, "fc_norm")(seen.astype(jnp.float32).mean(axis=1))
        head = nn.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="head"
        )
        return head(x)

    def _with_prefix(self, x: Array) -> Array:
        """Tokens of the image with their positions, behind the class token and the registers."""
        batch, _, width = x.shape
        small = nn.initializers.normal(0.02)
        names = ("cls_token", "reg_token") if self.registers else ("cls_token",)
        counts = (1, self.registers)
        prefix = [
            jnp.broadcast_to(
                self.param(name, small, (1, count, width), self.param_dtype), (batch, count, width)
            )
            for name, count in zip(names, counts, strict=False)
        ]
        if self.class_position:
            x = jnp.concatenate([*prefix, x], axis=1)
            prefix = []
        x = x + self.param("pos_embed", small, (1, x.shape[1], width), self.param_dtype)
        return jnp.concatenate([*prefix, x], axis=1) if prefix else x


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
