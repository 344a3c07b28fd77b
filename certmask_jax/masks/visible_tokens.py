"""Kept tokens: what a ViT still sees of an image under a mask, when hidden tokens are dropped.

A ViT cuts an image into square tokens and puts a class token before them. Under a mask a token is
kept if any pixel of it can be seen, and the class token always (smoothed ViTs, Salman et al., CVPR
2022; ViP, Li et al., ECCV 2022). Positions are added before tokens are dropped, so what is kept is
told by its index alone. Nothing of a hidden pixel gets through, as a token that is partly hidden
holds the fill there; so the proofs about masks hold for dropped tokens as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import geometry
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.intervals import boxes_of, wrapped
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.pixels_of_cells import cell_pixels

PADDING = -1
"""What stands in a list of tokens after the last one."""

# Masks are painted in blocks of about this many pixels.
_PIXELS_AT_ONCE = 1 << 24


class SameCount(NamedTuple):
    """The masks that keep one number of tokens, and which."""

    masks: NDArray[np.int32]  # [n] which masks
    tokens: NDArray[np.int32]  # [n, count] without padding


def kept_tokens(
    masks: MaskSet | NDArray[np.int32],
    image_size: Size | None = None,
    *,
    token: int,
    enlarged: int = 1,
    seen_size: Size | None = None,
) -> NDArray[np.int32]:
    """The tokens that are kept under each mask.

    Args:
      masks: a mask set, or boxes ``int32[N, R, 4]``.
      image_size: in pixels, of boxes.
      token: the side of a token, in pixels of the model's input.
      enlarged: how many times larger the model's input is than the image that is masked, where it
        is enlarged by repeating pixels (7 for CIFAR-10 at 224).
      seen_size: (height, width) that masked images are resized to before the model sees them, in
        whose pixels ``token`` is; None: as they are. A token is then kept if any pixel that the
        resize makes it of can be seen, see ``pixels_of_cells``.

    Returns:
      ``int32[N, M]``, ascending: 0 is the class token, ``1 + i`` token i, row by row; filled up
      with ``PADDING`` to M, the most that a mask keeps.

    Raises:
      ValueError: for boxes without an image size, or a token that does not divide the input.
    """
    return _listed(np.concatenate(list(_seen(masks, image_size, token, enlarged, seen_size))))


def kept_counts(
    masks: MaskSet | NDArray[np.int32],
    image_size: Size | None = None,
    *,
    token: int,
    seen_size: Size | None = None,
) -> NDArray[np.int32]:
    """How many tokens are kept under each mask, ``int32[N]``, the class token too.

    Arguments and errors are those of ``kept_tokens``, without its lists in memory.
    """
    seen = _seen(masks, image_size, token, 1, seen_size)
    parts = [part.sum(axis=1, dtype=np.int32) for part in seen]
    return 1 + np.concatenate(parts)


def by_count(tokens: NDArray[np.int32]) -> list[SameCount]:
    """Masks that keep equally many tokens together, fewest first: programs without padding.

    ``tokens int32[N, M]`` as of ``kept_tokens``.
    """
    counts = (tokens != PADDING).sum(axis=1)
    groups = [(np.flatnonzero(counts == count), int(count)) for count in np.unique(counts)]
    return [SameCount(of.astype(np.int32), tokens[of, :count]) for of, count in groups]


def token_windows(image_size: Size, patch_size: Size, *, token: int, window: Size) -> MaskSet:
    """ViP's masks: every window of ``window`` tokens of the image, row by row.

    A patch of p pixels on an axis lies in some window of ``ceil((p - 1) / token) + 1`` tokens,
    wherever it is (``window_for``): 3 for 23 and 32 pixels and tokens of 16.

    Args:
      image_size, patch_size: in pixels.
      token: the side of a token in pixels.
      window: in tokens, a side or ``(height, width)``. ViP's linear masks are as high as the image.

    Raises:
      CoverageError: where a placement is hidden by no window.
      ValueError: for a token that does not divide the image, or a window that does not fit it.
    """
    image, patch, _ = geometry.checked_sizes(image_size, patch_size)
    grid, sides = _grid(image, token), geometry.as_size(window, "window")
    if any(side > count for side, count in zip(sides, grid, strict=True)):
        raise ValueError(f"window: expected at most {grid[0]}x{grid[1]} tokens, got {sides}")
    axes = [
        [[(i * token, (i + side) * token)] for i in range(count - side + 1)]
        for side, count in zip(sides, grid, strict=True)
    ]
    return MaskSet(boxes_of(axes), image, patch, name="token_windows")


def wrapped_token_windows(image_size: Size, *, token: int, window: Size) -> NDArray[np.int32]:
    """ViP's masks for two patches: windows of tokens that go round the border, row by row.

    Returns:
      Boxes ``int32[N, R, 4]`` in pixels, a window for each token; ``MaskSet(boxes, image_size,
      Threat.of(image_size, patch, patches=2))`` says whether they hide every two patches.

    Raises:
      ValueError: for a token that does not divide the image.
    """
    image = geometry.as_size(image_size, "image_size")
    grid, sides = _grid(image, token), geometry.as_size(window, "window")
    axes = [
        [wrapped(i * token, side * token, count * token) for i in range(count)]
        for side, count in zip(sides, grid, strict=True)
    ]
    return boxes_of(axes)


def window_for(patch_size: Size, *, token: int) -> tuple[int, int]:
    """The smallest window, in tokens, that holds a patch wherever it is."""
    patch = geometry.as_size(patch_size, "patch_size")
    return -(-(patch[0] - 1) // token) + 1, -(-(patch[1] - 1) // token) + 1


def pixels_of_tokens(
    image_size: tuple[int, int], *, token: int, seen_size: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pixels of an axis a resize makes a row of tokens of, and a column.

    Args:
      image_size: ``(h, w)`` of the images.
      token: the side of a token, in pixels of ``seen_size``, which it divides.
      seen_size: what images are resized to.

    Returns:
      ``bool[rows, h]`` and ``bool[columns, w]``.
    """
    axes = []
    for size, seen in zip(image_size, seen_size, strict=True):
        first, end = cell_pixels(size, field=token, stride=token, seen_size=seen)
        at = np.arange(size)
        axes.append((at >= first[:, None]) & (at < end[:, None]))
    rows, columns = axes
    return rows, columns


def _grid(image: tuple[int, int], token: int) -> tuple[int, int]:
    if not isinstance(token, int | np.integer) or token < 1 or any(n % token for n in image):
        raise ValueError(
            f"token: expected a side that divides the image of {image[0]}x{image[1]} pixels, got "
            f"{token!r}"
        )
    return image[0] // token, image[1] // token


def _seen(
    masks: MaskSet | NDArray[np.int32],
    image_size: Size | None,
    token: int,
    enlarged: int,
    seen_size: Size | None,
) -> Iterator[NDArray[np.bool_]]:
    """``bool[n, tokens]`` for some masks after others: which tokens of the image are seen."""
    if isinstance(masks, MaskSet):
        boxes, image = masks.boxes, masks.image_size
    elif image_size is None:
        raise ValueError("image_size: expected the size of the image beside boxes, got None")
    else:
        image = geometry.as_size(image_size, "image_size")
        boxes = geometry.as_boxes(masks, image)
    for name, value in (("token", token), ("enlarged", enlarged)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name}: expected an int of at least 1, got {value!r}")
    size = image[0] * enlarged, image[1] * enlarged
    seen = size if seen_size is None else geometry.as_size(seen_size, "seen_size")
    if any(side % token for side in seen):
        raise ValueError(
            f"token: expected a side that divides the input of {seen[0]}x{seen[1]} pixels, got "
            f"{token}"
        )
    made_of = pixels_of_tokens(size, token=token, seen_size=seen)
    for part in np.array_split(boxes, max(1, len(boxes) * size[0] * size[1] // _PIXELS_AT_ONCE)):
        yield _tokens_seen(part * enlarged, made_of)


def _tokens_seen(
    boxes: NDArray[np.int32], made_of: tuple[NDArray[np.bool_], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """``bool[n, tokens]``: whether any pixel that a token is made of is seen."""
    rows, columns = made_of
    visible = np.ones((len(boxes), rows.shape[1], columns.shape[1]), dtype=np.float32)
    for pixels, mask in zip(visible, boxes, strict=True):
        for top, left, bottom, right in mask:
            pixels[top:bottom, left:right] = 0
    counts = rows.astype(np.float32) @ visible @ columns.T.astype(np.float32)
    return (counts > 0).reshape(len(boxes), -1)


def _listed(seen: NDArray[np.bool_]) -> NDArray[np.int32]:
    kept = np.concatenate([np.ones((len(seen), 1), np.bool_), seen], axis=1)
    most = int(kept.sum(axis=1).max())
    order = np.argsort(~kept, axis=1, kind="stable")[:, :most].astype(np.int32)
    return np.where(np.take_along_axis(kept, order, axis=1), order, PADDING)
