"""Dropped tokens: a ViT that is given the tokens of an image that can be seen, and no others.

Under a mask a ViT need not look at a fill: the tokens that are hidden wholly are left out of its
sequence (smoothed ViTs, Salman et al., CVPR 2022; ViP, Li et al., ECCV 2022). Which ones stay is
told by index arrays, ``masks.visible_tokens``. That is another function than the one that sees the
fill, with other logits, so a run records it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from jax import Array


class KeptLogits(Protocol):
    """A ViT on some tokens of each image."""

    def __call__(self, params: Any, images: Any, kept: Any, *, padded: bool = True) -> Array:
        """Logits ``float32[B, K]``.

        Args:
          params: of the model.
          images: masked, normalised, ``floating[B, h, w, c]``.
          kept: ``int32[B, M]``, first the class token, 0, then ``1 + i`` for each token i of the
            image, row by row, that is kept; -1 where there are fewer, which nothing looks at.
          padded: whether there is any -1. False leaves the mask of the attention out.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TokenDropping:
    """How a ViT is given some of its tokens.

    Attributes:
      apply_fn: ``(params, images, kept int32[B, M]) -> logits float32[B, K]``, see ``KeptLogits``.
        Kept tokens have the positions that they have in the whole image, and with all of them kept
        the logits are the model's. Dropped pixels change nothing of them.
      token: side of a token in pixels.
    """

    apply_fn: KeptLogits = dataclasses.field(repr=False)
    token: int
