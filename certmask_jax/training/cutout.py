"""Cutout: training images lose pixels, so that the model bears the masks of certification.

Random squares (DeVries and Taylor, 2017, with PatchCleanser's sizes), masks of the mask set that
certifies, unions of two of them, Greedy Cutout (Saha et al., 2023), and all but one band or block
(Levine and Feizi, 2020; smoothed ViTs, Salman et al., 2022). What is hidden becomes 0 in every
channel of what the model sees: the mean colour of normalised pixels, which is what
``Preprocessing`` puts behind a mask by default, and "hidden" in its other encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.inference.masking import hidden_pixels
from certmask_jax.masks.mask_set import MaskSet

Cutout = Literal[
    "none",
    "random",
    "mask_set",
    "two_masks",
    "greedy",
    "column_bands",
    "row_bands",
    "row_and_column_bands",
    "blocks",
]
"""What a training image loses; see ``ABOUT``."""

OF_MASKS = ("mask_set", "two_masks", "greedy")
"""Those that hide masks of a mask set."""

BANDS = ("column_bands", "row_bands", "row_and_column_bands", "blocks")
"""Those that leave one band or block to be seen, as the masks of ``mask_sets`` of these names."""

ABOUT: dict[str, str] = {
    "none": "nothing",
    "random": "random squares, centres anywhere",
    "mask_set": "one random mask of the mask set",
    "two_masks": "two random masks of the mask set",
    "greedy": "the two masks that a greedy search finds worst for the model as it is",
    "column_bands": "all but one random band of columns, which goes round the border",
    "row_bands": "all but one of rows",
    "row_and_column_bands": "all but one of either",
    "blocks": "all but one random block, which goes round the borders",
}

LossesOf = Callable[[Array], Array]
"""A loss of each image: ``float32[B, h, w, c] -> float32[B]``."""


class MaskStack(NamedTuple):
    """Mask sets of several sizes in one array; one of them is drawn for a step.

    Shorter sets repeat their first mask at the end, which changes no worst mask; ``counts`` says
    how many are their own.
    """

    boxes: NDArray[np.int32]  # [S, N, R, 4]
    counts: NDArray[np.int32]  # [S]


def default_size(input_size: tuple[int, int]) -> int:
    """PatchCleanser's squares, 128 pixels at 224 (section 4.1), scaled to the shorter side."""
    return max(1, round(min(input_size) * 128 / 224))


def default_band(input_size: tuple[int, int]) -> int:
    """Levine and Feizi's 4 of 32 columns (their section 5), scaled to the shorter side."""
    return max(1, round(min(input_size) * 4 / 32))


def mask_stack(mask_sets: Sequence[MaskSet]) -> MaskStack:
    """Stacks mask sets of one image size.

    Raises:
      ValueError: for no mask set, or sets of different image sizes.
    """
    sizes = {masks.image_size for masks in mask_sets}
    if len(sizes) != 1:
        raise ValueError(
            f"mask sets: expected at least 1, all of one image size, got {len(mask_sets)} of sizes "
            f"{sorted(sizes)}"
        )
    longest = max(len(masks) for masks in mask_sets)
    widest = max(masks.boxes.shape[1] for masks in mask_sets)
    stacked = []
    for masks in mask_sets:
        boxes = np.pad(masks.boxes, ((0, 0), (0, widest - masks.boxes.shape[1]), (0, 0)))
        stacked.append(np.concatenate([boxes, np.repeat(boxes[:1], longest - len(boxes), axis=0)]))
    return MaskStack(np.stack(stacked), np.array([len(m) for m in mask_sets], np.int32))


def random_squares(key: Array, images: Array, *, size: int, squares: int) -> Array:
    """Replaces random squares by 0.

    Args:
      key: of the randomness.
      images: ``float32[B, h, w, c]``, normalised.
      size: side of a square in pixels. Its centre is uniform over the image, so that squares may
        be cut by the border, as in the original.
      squares: how many an image.
    """
    height, width = images.shape[1:3]
    shape = (len(images), squares, 1, 1)
    keys = jax.random.split(key)
    top = jax.random.randint(keys[0], shape, 0, height) - size // 2
    left = jax.random.randint(keys[1], shape, 0, width) - size // 2
    rows = jnp.arange(height, dtype=jnp.int32).reshape(1, 1, -1, 1)
    cols = jnp.arange(width, dtype=jnp.int32).reshape(1, 1, 1, -1)
    hidden = (rows >= top) & (rows < top + size) & (cols >= left) & (cols < left + size)
    return jnp.where(hidden.any(axis=1)[..., None], 0.0, images)


def random_bands(key: Array, images: Array, *, kind: str, band: int) -> Array:
    """Replaces all but a band or a block of each image by 0.

    Args:
      key: of the randomness.
      images: ``float32[B, h, w, c]``, as the model sees them.
      kind: one of ``BANDS``. Each image has a band of its own, of ``row_and_column_bands`` a band
        of rows or of columns by the toss of a coin.
      band: rows, columns or both that are seen. The first of them is uniform over the image, and
        what passes a border goes on at the other side.
    """
    count, height, width = images.shape[:3]
    keys = jax.random.split(key, 3)

    def seen(key: Array, side: int) -> Array:
        first = jax.random.randint(key, (count, 1), 0, side)
        return (jnp.arange(side, dtype=jnp.int32)[None] - first) % side < band

    rows = seen(keys[0], height)[:, :, None, None]
    columns = seen(keys[1], width)[:, None, :, None]
    if kind == "row_and_column_bands":
        of_rows = jax.random.bernoulli(keys[2], shape=(count, 1, 1, 1))
        kept = jnp.where(of_rows, rows, columns)
    else:
        kept = {"column_bands": columns, "row_bands": rows, "blocks": rows & columns}[kind]
    return jnp.where(kept, images, 0.0)


def random_masks(key: Array, images: Array, masks: MaskStack, *, order: int) -> Array:
    """Hides the union of ``order`` masks of one set ("train as you certify").

    The set is drawn once for all images, the masks for each image, with repetition: order 2 draws
    single masks too, as certification looks at them too.

    Args:
      key: of the randomness.
      images: ``float32[B, h, w, c]``, normalised.
      masks: of the images' size.
      order: how many masks an image.
    """
    of_set, of_mask = jax.random.split(key)
    chosen = _one_set(of_set, masks)
    shape = (len(images), order)
    number = jax.random.randint(of_mask, shape, 0, jnp.asarray(masks.counts)[chosen])
    boxes = jnp.asarray(masks.boxes)[chosen][number]  # [B, order, R, 4]
    return hide(images, boxes.reshape(len(images), -1, 4))


def greedy(key: Array, images: Array, masks: MaskStack, losses_of: LossesOf) -> tuple[Array, Array]:
    """Greedy Cutout (Saha et al., 2023): hides the two masks with the highest loss.

    First the worst single mask of each image, then the worst second one given the first: 2N
    forward passes, where all pairs take N(N + 1)/2. Among equals the first mask counts.

    Args:
      key: draws the set, for several sizes.
      images: ``float32[B, h, w, c]``, normalised.
      masks: of the images' size.
      losses_of: the loss of each image under the model as it is.

    Returns:
      The masked images, and the masks that were chosen, ``int32[B, 2]``.
    """
    boxes = jnp.asarray(masks.boxes)[_one_set(key, masks)]  # [N, R, 4]

    def worst(images: Array) -> tuple[Array, Array]:
        def one(mask: Array) -> Array:
            return losses_of(hide(images, mask[None]))

        number = jax.lax.map(one, boxes).argmax(axis=0)  # [N, B] -> [B]
        return hide(images, boxes[number]), number

    once, first = worst(images)
    twice, second = worst(once)
    return twice, jnp.stack([first, second], axis=1).astype(jnp.int32)


def hide(images: Array, boxes: Array) -> Array:
    """0 for the pixels of ``images float32[B, h, w, c]`` in ``boxes int32[B or 1, R, 4]``."""
    size = (images.shape[1], images.shape[2])
    hidden = jax.vmap(lambda one: hidden_pixels(one, size))(boxes)
    return jnp.where(hidden[..., None], 0.0, images)


def _one_set(key: Array, masks: MaskStack) -> Array:
    return jax.random.randint(key, (), 0, len(masks.counts))
