"""Vision Transformers (Dosovitskiy et al., 2021), from 8 x 8 digits to ViT-L at 518.

Also the shapes of DINOv2 (LayerScale, register tokens) and of DeiT III (LayerScale, positions for
the image's tokens alone). Parameter names are timm's (``patch_embed.proj.weight``,
``blocks.0.attn.qkv.weight``, ...), with dots where Flax nests.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.masks.visible_tokens import PADDING
from certmask_jax.models import gpu_forms, layers
from certmask_jax.models.vit_blocks import Block, Implementation, layer_norm
from certmask_jax.models.vit_choices import (
    ATTENTIONS,
    GELUS,
    LAST_BLOCKS,
    POOLINGS,
    POSITION_RESIZES,
)


class VisionTransformer(layers.Module):
    """ViT: images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``.

    It may be given ``kept int32[B, M]``, the tokens of each image that it is to see (first the
    class token, 0, then ``1 + i`` for token i of the image, row by row): the others
    are dropped once they are embedded. What is kept has the position that it has in
    the whole image; class token and registers always stay. Where an image keeps fewer than M, -1
    stands, which no token looks at; ``padded=False`` says that there is none.

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
      for_gpu: whether embedding and blocks have the forms that suit GPUs: the same
        mathematics and parameters, other last bits (``models.gpu_forms``); None: with cuDNN.
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
    for_gpu: bool | None = None
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

    @property
    def has_gpu_forms(self) -> bool:
        """Whether its parts have the forms of ``models.gpu_forms``."""
        return self.attention == "cudnn" if self.for_gpu is None else self.for_gpu

    @nn.compact
    def __call__(self, x: Array, kept: Array | None = None, *, padded: bool = True) -> Array:
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"input_size: expected multiples of the ViT's patch of {self.patch} pixels, got "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        on_gpu = self.has_gpu_forms
        x = gpu_forms.patch_embedding(self.width, self.patch, for_gpu=on_gpu, **types)(x)
        batch, rows, columns = x.shape[:3]  # the batch may be symbolic, for jax.export
        x = x.reshape(batch, rows * columns, self.width)
        places, seen = None, None
        if kept is not None:
            # Gathering pixels before would save the embedding of what is dropped, 7% of a ViT-S on
            # a CPU with 33 of 257 tokens; but a TPU takes longer for that than for the embedding.
            places, seen = _places(kept, x.shape[0], padded=padded)
            x = jnp.take_along_axis(x, places[..., None], axis=1)
        if seen is not None:  # nothing of the pixels that stand for what is not there
            x = jnp.where(seen[..., None], x, 0)
        x = self._with_prefix(x, rows * columns, places)
        x = x.astype(self.dtype or x.dtype)
        looked_at = None
        if seen is not None:
            prefix = jnp.ones((batch, 1 + self.registers), jnp.bool_)
            looked_at = jnp.concatenate([prefix, seen], axis=1)
        for block in range(self.depth):
            is_last = block == self.depth - 1
            x = Block(
                self.num_heads,
                gelu=self.gelu,
                attention=self.attention,
                layer_scale=self.layer_scale,
                token_only=is_last and self.computes_token_only,
                for_gpu=self.has_gpu_forms,
                name=f"blocks_{block}",
                **types,
            )(x, looked_at)
        if self.pooling == "token":
            x = layer_norm(self.param_dtype, "norm")(x[:, 0])
        else:
            tokens = x[:, 1 + self.registers :].astype(jnp.float32)
            x = layer_norm(self.param_dtype, "fc_norm")(mean_of_seen(tokens, seen))
        head = layers.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="head"
        )
        return head(x)

    def _with_prefix(self, x: Array, count: int, places: Array | None) -> Array:
        """Tokens of the image with their positions, behind the class token and the registers.

        ``count`` tokens has the whole image; those at ``places int[B, M]`` are there, or all.
        """
        batch, _, width = x.shape
        small = nn.initializers.normal(0.02)
        names = ("cls_token", "reg_token") if self.registers else ("cls_token",)
        counts = (1, self.registers)
        prefix = [
            jnp.broadcast_to(
                self.param(name, small, (1, number, width), self.param_dtype),
                (batch, number, width),
            )
            for name, number in zip(names, counts, strict=False)
        ]
        first = int(self.class_position)
        if self.class_position:
            x = jnp.concatenate([*prefix, x], axis=1)
            prefix = []
        positions = self.param("pos_embed", small, (1, first + count, width), self.param_dtype)
        if places is not None:
            of_image = jnp.take(positions[0, first:], places, axis=0)  # NumPy arrays too
            own = jnp.broadcast_to(positions[:, :first], (batch, first, width))
            positions = jnp.concatenate([own, of_image], axis=1)
        x = x + positions
        return jnp.concatenate([*prefix, x], axis=1) if prefix else x


def _places(kept: Array, images: int, *, padded: bool) -> tuple[Array, Array | None]:
    """Which tokens of the image are kept, ``int32[B, M]``, M >= 1, and which of these are there.

    None where all are. ``kept`` is as ``VisionTransformer`` takes it.
    """
    kept = jnp.asarray(kept)
    if kept.ndim != 2 or kept.shape[0] != images or not jnp.issubdtype(kept.dtype, jnp.integer):
        raise ValueError(
            f"kept: expected tokens int32[{images}, M], those of each image, got {kept.dtype}"
            f"{list(kept.shape)}"
        )
    if kept.shape[1] == 1:  # the class token alone: a list of no tokens is no array for products
        kept, padded = jnp.pad(kept, ((0, 0), (0, 1)), constant_values=PADDING), True
    of_image = kept[:, 1:]
    return jnp.maximum(of_image - 1, 0), (of_image != PADDING) if padded else None


def mean_of_seen(tokens: Array, seen: Array | None) -> Array:
    """The mean of the tokens that are there: ``float32[B, M, D]`` -> ``[B, D]``; 0 of none."""
    if seen is None:
        return tokens.mean(axis=1)
    total = jnp.where(seen[..., None], tokens, 0).sum(axis=1)
    return total / jnp.maximum(seen.sum(axis=1, keepdims=True), 1).astype(total.dtype)
