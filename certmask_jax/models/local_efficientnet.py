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

from certmask_jax.models import local_net
from certmask_jax.models.efficientnet_lite import (
    STEM_KERNEL,
    STEM_STRIDE,
    Stage,
    StageSize,
    stages,
    stem,
)
from certmask_jax.models.local_net import LocalNet


class LocalEfficientNetLite(LocalNet):
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
    def convolutions(self) -> list[tuple[int, int]]:
        """See ``LocalNet``: the stem's, and the depthwise one of each block."""
        layers_seen = [(STEM_KERNEL, STEM_STRIDE)]
        for stage, _ in self._kept:
            strides = [stage.stride, *[1] * stage.blocks][: stage.blocks]
            layers_seen += [(stage.kernel, stride) for stride in strides]
        return layers_seen

    @nn.compact
    def _logits(self, x: Array, *, is_local: bool) -> Array:
        kept = self._kept
        self.check_size((x.shape[1], x.shape[2]))
        how = (self.is_training, self.dtype, self.param_dtype)
        x = stem(x, *how, "VALID")
        for number, (stage, opens) in enumerate(kept):
            named = Stage(*stage, *how, self.depthwise, "VALID", opens, name=f"blocks_{number}")
            x = named(x)
        last: Any = {"param_dtype": self.param_dtype, "name": "classifier", "is_local": is_local}
        return local_net.head(x, self.num_classes, **last)
