"""Dropped tokens: a ViT that is given the tokens of an image that can be seen, and no others.

Under a mask a ViT need not look at a fill: the tokens that are hidden wholly are left out of its
sequence (smoothed ViTs, Salman et al., CVPR 2022; ViP, Li et al., ECCV 2022). A token that is
hidden in part stays, with the fill in that part. That is another function than the one that sees
the fill, with other logits, so a run records it. What it sees of an image is a function of the mask
and of pixels that the mask shows, so proofs about masks hold for it as they are (soundness, 13.4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from certmask_jax.inference.masking import hidden_pixels
from certmask_jax.masks.visible_tokens import PADDING, pixels_of_tokens

KeptLogits = Callable[..., Array]
"""A ViT on some tokens of each image: ``(params, images, kept, *, padded=True) -> logits``.

Images are masked and normalised, ``floating[B, h, w, c]``; ``kept int32[B, M]`` is the class token,
0, then ``1 + i`` for each token i of the image, row by row, that is kept; -1 stands where there are
fewer, and nothing looks at it. ``padded=False`` says that there is no -1, which saves the mask of
the attention. Logits are ``float32[B, K]``.
"""


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

    def tokens(self, image_size: tuple[int, int]) -> int:
        """How many tokens a whole image has, the class token too."""
        return 1 + (image_size[0] // self.token) * (image_size[1] // self.token)


@dataclasses.dataclass(frozen=True)
class SeenTokens:
    """A model function that looks at the tokens that are seen under each mask.

    ``masked_logits`` gives it the masks. Equal ones hash alike, so that what was compiled for one
    serves the other.

    Attributes:
      dropping: the ViT.
      most: M, how many tokens it is given, the class token too: as many as any mask leaves, or
        fewer are looked at. None for those of a whole image, which is enough for every mask and
        saves nothing.
      padded: whether some masks leave fewer.
    """

    dropping: TokenDropping
    most: int | None = None
    padded: bool = True

    def __call__(
        self,
        params: Any,
        images: Array,
        boxes: Array | None = None,
        masked_size: tuple[int, int] | None = None,
    ) -> Array:
        """Logits ``float32[B, K]`` of masked, normalised images ``floating[B, h, w, c]``.

        ``boxes int32[B, R, 4]`` are their masks; without, nothing is hidden, and of the tokens of
        an image the first M are looked at: what it costs is the same. Where images were resized
        after they were masked, ``masked_size`` is their size before.
        """
        if boxes is None:
            boxes = jnp.zeros((images.shape[0], 1, 4), jnp.int32)
        height, width = images.shape[1:3]
        most = self.dropping.tokens((height, width)) if self.most is None else self.most
        kept = seen_tokens(
            boxes,
            (height, width) if masked_size is None else masked_size,
            token=self.dropping.token,
            most=most,
            seen_size=(height, width),
        )
        return self.dropping.apply_fn(params, images, kept, padded=self.padded)


def seen_tokens(
    boxes: ArrayLike,
    image_size: tuple[int, int],
    *,
    token: int,
    most: int,
    seen_size: tuple[int, int] | None = None,
) -> Array:
    """``masks.visible_tokens.kept_tokens`` as a traceable function of masks.

    Args:
      boxes: ``int32[W, R, 4]``.
      image_size: ``(height, width)`` in pixels of what is masked.
      token: the side of a token in pixels.
      most: M, the class token too. Of a mask that leaves more the first M are given.
      seen_size: ``(height, width)`` that masked images are resized to, multiples of ``token``, see
        ``kept_tokens``; None, or ``image_size``: as they are.

    Returns:
      ``int32[W, M]``: 0 for the class token, then ``1 + i`` for each token i of the image, row by
      row, of which any pixel is seen, then -1.
    """
    corners = jnp.asarray(boxes)
    hidden = jax.vmap(lambda one: hidden_pixels(one, image_size))(corners)
    if seen_size is None or seen_size == image_size:
        height, width = image_size
        cells = hidden.reshape(-1, height // token, token, width // token, token)
        gone = cells.all(axis=(2, 4)).reshape(corners.shape[0], -1)
    else:
        rows, columns = pixels_of_tokens(image_size, token=token, seen_size=seen_size)
        # Whole numbers, in whichever precision products are: 0 stays 0 and others stay above.
        visible = (~hidden).astype(jnp.float32)
        counts = jnp.einsum(
            "ih,whv,jv->wij", rows.astype(np.float32), visible, columns.astype(np.float32)
        )
        gone = (counts == 0).reshape(corners.shape[0], -1)
    order = jnp.argsort(gone, axis=1, stable=True)[:, : most - 1].astype(jnp.int32)
    there = ~jnp.take_along_axis(gone, order, axis=1)
    first = jnp.zeros((corners.shape[0], 1), jnp.int32)
    return jnp.concatenate([first, jnp.where(there, order + 1, PADDING)], axis=1)
