"""A ViT in two parts: blocks that look within windows of tokens, then blocks that look at all.

PatchCURE's ViT-SRF (Xiang et al., USENIX Security 2024). The tokens of an image are cut into
windows, all of one size: 14 x 2 tokens are two whole columns of 14. In the first blocks the tokens
of a window look at each other, and at a class token (and registers) that the window has for itself.
A window's features then depend on its own pixels alone. The blocks after these look at the tokens
of all windows that are not hidden, and at one class token, the mean of those of these windows.

There are no parameters but the ViT's own, so any weights of it load. They need not have been
trained for it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax._own_settings import usual_promotion
from certmask_jax.inference.two_parts import Head, Stem, TwoParts
from certmask_jax.masks.geometry import Size, as_size
from certmask_jax.models import gpu_forms, layers
from certmask_jax.models.named_models import Model, Params
from certmask_jax.models.vit import VisionTransformer, mean_of_seen
from certmask_jax.models.vit_blocks import Block, Implementation, layer_norm


@dataclasses.dataclass(frozen=True)
class ViTShape:
    """What both parts have from the ViT, see ``VisionTransformer``, and where it is cut."""

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int
    pooling: str
    gelu: str
    attention: Implementation
    layer_scale: float | None
    registers: int
    class_position: bool
    computes_token_only: bool
    has_gpu_forms: bool
    dtype: Any
    param_dtype: Any
    windows: tuple[int, int]  # in tokens
    split: int  # blocks within windows

    @property
    def types(self) -> dict[str, Any]:
        """The types of its layers."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def block(self, number: int) -> Block:
        """One block, by its name in the ViT."""
        return Block(
            self.num_heads,
            gelu=self.gelu,
            attention=self.attention,
            layer_scale=self.layer_scale,
            token_only=number == self.depth - 1 and self.computes_token_only,
            for_gpu=self.has_gpu_forms,
            name=f"blocks_{number}",
            **self.types,
        )


class ViTStem(layers.Module):
    """The first ``split`` blocks, within windows: ``floating[B, h, w, c]`` -> ``[B, H, W, N, D]``.

    The N tokens of a window are its class token, its registers, and those of the image, row by row.
    After all blocks of a ViT that classifies the class token, only the first is kept.
    """

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Array) -> Array:
        of = self.shape
        rows, columns = (n // of.patch for n in x.shape[1:3])
        down, across = of.windows
        grid = (rows // down, columns // across)
        on_gpu = of.has_gpu_forms
        x = gpu_forms.patch_embedding(of.width, of.patch, for_gpu=on_gpu, **of.types)(x)
        prefix = self._prefix()
        own = int(of.class_position)
        positions = self._param("pos_embed", own + rows * columns)
        # Not by .at[], which jaxlib 0.11.2 crashes on with several CPU devices.
        with_positions = prefix[:, :own] + positions[:, :own]
        prefix = jnp.concatenate([with_positions, prefix[:, own:]], axis=1)
        x = x + positions[:, own:].reshape(1, rows, columns, of.width)
        x = x.reshape(-1, grid[0], down, grid[1], across, of.width).swapaxes(2, 3)
        x = x.reshape(-1, down * across, of.width)
        prefix = jnp.broadcast_to(prefix.astype(x.dtype), (x.shape[0], *prefix.shape[1:]))
        x = jnp.concatenate([prefix, x], axis=1)
        x = x.astype(of.dtype or x.dtype)
        for number in range(of.split):
            x = of.block(number)(x)
        return x.reshape(-1, *grid, *x.shape[1:])

    def _prefix(self) -> Array:
        """Class token and registers, ``[1, 1 + registers, D]``."""
        token = self._param("cls_token", 1)
        if not self.shape.registers:
            return token
        return jnp.concatenate([token, self._param("reg_token", self.shape.registers)], axis=1)

    def _param(self, name: str, count: int) -> Array:
        size, dtype = (1, count, self.shape.width), self.shape.param_dtype
        tokens: Array = self.param(name, nn.initializers.normal(0.02), size, dtype)
        return tokens


class ViTHead(layers.Module):
    """The other blocks, on windows that are not hidden: ``[B, H, W, N, D]`` -> logits ``[B, K]``.

    Hidden windows are those of ``hidden bool[B, H, W]``. Their tokens are replaced by 0 and looked
    at by none. Where all are hidden the class token starts from 0.
    """

    shape: ViTShape

    @nn.compact
    def __call__(self, features: Array, hidden: Array) -> Array:
        of = self.shape
        seen = ~hidden[..., None]
        first = 1 + of.registers
        batch = features.shape[0]
        kept = jnp.where(seen[..., None], features, 0)
        count = jnp.maximum(seen.sum(axis=(1, 2)), 1)[..., None].astype(jnp.float32)
        prefix = kept[..., :first, :].astype(jnp.float32).sum(axis=(1, 2)) / count
        tokens = kept[..., first:, :]
        seen = jnp.broadcast_to(seen, tokens.shape[:-1]).reshape(batch, -1)
        tokens = tokens.reshape(batch, -1, of.width)
        x = jnp.concatenate([prefix.astype(features.dtype), tokens], axis=1)
        looked_at = jnp.concatenate([jnp.ones((batch, first), jnp.bool_), seen], axis=1)
        for number in range(of.split, of.depth):
            x = of.block(number)(x, looked_at)
        if of.pooling == "token":
            x = layer_norm(of.param_dtype, "norm")(x[:, 0])
        else:
            mean = mean_of_seen(x[:, first:].astype(jnp.float32), seen)
            x = layer_norm(of.param_dtype, "fc_norm")(mean)
        types: dict[str, Any] = {**of.types, "dtype": jnp.float32}
        return layers.Dense(of.num_classes, name="head", **types)(x)


def vit_in_two_parts(model: Model, *, windows: Size, depth: int) -> TwoParts:
    """A ViT of the registry, or of its shape, in two parts.

    Args:
      model: a ViT; its parameters are those of the parts.
      windows: (height, width) in tokens, which divide those of the image. For 14 x 14 tokens the
        paper has 14 x 1, 14 x 2 and 2 x 2.
      depth: how many blocks look within a window, from 0 to all of them.

    Returns:
      The parts, the same functions for equal models. Field and stride are a window's pixels.

    Raises:
      ValueError: for a model that is no ViT, windows that do not divide its tokens, or a depth that
        it does not have.
    """
    module = model.module
    if not isinstance(module, VisionTransformer):
        raise ValueError(f"windows: expected a ViT, which has tokens, got {model.name}")
    sides = as_size(windows, "windows")
    height, width = model.data_config.input_size
    tokens = (height // module.patch, width // module.patch)
    if any(count % side for count, side in zip(tokens, sides, strict=True)):
        raise ValueError(
            f"windows: expected a height that divides the {tokens[0]} rows of tokens of "
            f"{model.name} and a width that divides the {tokens[1]} columns, got "
            f"{sides[0]}x{sides[1]}"
        )
    if not isinstance(depth, int) or not 0 <= depth <= module.depth:
        raise ValueError(
            f"depth: expected from 0 to {module.depth}, the blocks of {model.name}, got {depth}"
        )
    stem, head = _parts(module, sides, depth)
    pixels = (sides[0] * module.patch, sides[1] * module.patch)
    return TwoParts(
        stem,
        head,
        field=pixels,
        stride=pixels,
        image_size=(height, width),
        name=f"{depth} of {module.depth} blocks within windows of {sides[0]}x{sides[1]} tokens",
    )


@functools.lru_cache(maxsize=32)  # equal ones are the same functions, so that JAX compiles once
def _parts(module: VisionTransformer, windows: tuple[int, int], split: int) -> tuple[Stem, Head]:
    names = [field.name for field in dataclasses.fields(ViTShape)][:-2]
    own = {name: getattr(module, name) for name in names}
    shape = ViTShape(**own, windows=windows, split=split)
    first, second = ViTStem(shape), ViTHead(shape)

    def stem(params: Params, images: Array) -> Array:
        with usual_promotion():
            return first.apply(params, images)  # type: ignore[return-value]

    def head(params: Params, features: Array, hidden: Array) -> Array:
        with usual_promotion():
            return second.apply(params, features, hidden)  # type: ignore[return-value]

    return stem, head
