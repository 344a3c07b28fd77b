"""EfficientNet-Lite cut early: local logits of photographs with weights that anybody can have.

Its first blocks are a net of few convolutions that are not 1 x 1, so a place of their map sees few
pixels: of Lite0 11, 19, 35 and 67 a side after two to five blocks. That is what BagNets (Brendel
and Bethge, 2019) are built for. The expansion of the block after the cut is 1 x 1 too. It is kept,
as the hidden layer of a head that looks at each place alone.

There is no padding, so that every local logit sees its field and nothing else. What a place says
is what the published net says there, of an image that is moved by some pixels so that its strides
fall on the same ones and its padding is far away.
"""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers
from certmask_jax.models.bagnet import field_and_stride
from certmask_jax.models.efficientnet_lite import (
    STEM_KERNEL,
    STEM_STRIDE,
    Stage,
    StageSize,
    stages,
    stem,
)


class LocalEfficientNetLite(layers.Module):
    """Images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``, the mean local logits.

    Attributes:
      num_classes: K.
      blocks: how many of the net's blocks are kept, of all stages together.
      width, depth, is_training, dtype, param_dtype, depthwise: as in ``EfficientNetLite``.
    """

    num_classes: int
    blocks: int
    width: float = 1.0
    depth: float = 1.0
    is_training: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    depthwise: str = "shifts"

    def __call__(self, x: Array) -> Array:
        return self._logits(x, is_local=False)

    def local_logits(self, x: Array) -> Array:
        """Logits of every place, as ``BagNet.local_logits``: ``float32[B, Fh, Fw, K]``."""
        return self._logits(x, is_local=True)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of what a local logit sees."""
        return field_and_stride(self._convolutions)[0]

    @property
    def stride(self) -> int:
        """Pixels between the fields of neighbouring local logits."""
        return field_and_stride(self._convolutions)[1]

    def is_cut_off(self, name: str) -> bool:
        """Whether an entry of the whole net's weights, by timm's name, lies behind the cut."""
        match = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)\..+", name)
        if match is None:
            return name.startswith(("conv_head.", "bn2."))
        place, (stage, kept) = (int(match[1]), int(match[2])), self._last
        return place > (stage, kept) or (
            place == (stage, kept) and match[3] not in ("conv_pw", "bn1")
        )

    @property
    def _last(self) -> tuple[int, int]:
        """Stage and place there of the block of which only the expansion is kept."""
        left = self.blocks
        for number, stage in enumerate(stages(self.width, self.depth)):
            if left < stage.blocks:
                return number, left
            left -= stage.blocks
        raise AssertionError("blocks were looked at")

    @property
    def _kept(self) -> list[tuple[StageSize, bool]]:
        """The stages with the blocks that they keep, and whether one more is opened."""
        sizes = stages(self.width, self.depth)
        most = sum(stage.blocks for stage in sizes) - 1
        if not 1 <= self.blocks <= most:
            raise ValueError(
                f"blocks: expected 1 to {most}, as the expansion of the next one is the last layer "
                f"before the logits, got {self.blocks}"
            )
        number, left = self._last
        whole = [(stage, False) for stage in sizes[:number]]
        return [*whole, (sizes[number]._replace(blocks=left), True)]

    @property
    def _convolutions(self) -> list[tuple[int, int]]:
        """``(kernel, stride)`` of what is not 1 x 1."""
        layers_seen = [(STEM_KERNEL, STEM_STRIDE)]
        for stage, _ in self._kept:
            strides = [stage.stride, *[1] * stage.blocks][: stage.blocks]
            layers_seen += [(stage.kernel, stride) for stride in strides]
        return layers_seen

    @nn.compact
    def _logits(self, x: Array, *, is_local: bool) -> Array:
        kept = self._kept
        if min(x.shape[1:3]) < self.receptive_field:
            raise ValueError(
                f"input_size: expected at least {self.receptive_field}x{self.receptive_field}, "
                f"what a local logit sees, got {x.shape[1]}x{x.shape[2]}"
            )
        how = (self.is_training, self.dtype, self.param_dtype)
        x = stem(x, *how, "VALID")
        for number, (stage, opens) in enumerate(kept):
            named = Stage(*stage, *how, self.depthwise, "VALID", opens, name=f"blocks_{number}")
            x = named(x)
        x = x.astype(jnp.float32)
        if not is_local:
            x = x.mean(axis=(1, 2))  # before the linear layer, which it commutes with: cheaper
        head = layers.Dense(
            self.num_classes, dtype=jnp.float32, param_dtype=self.param_dtype, name="classifier"
        )
        return head(x)
