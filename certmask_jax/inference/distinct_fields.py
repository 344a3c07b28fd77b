"""Local fields: what a model that looks at small parts of an image sees of many masked images.

BagNet's logits are the mean of local logits, each of which sees one field of few pixels. A mask
changes only the local logits whose field it meets, and of those that it hides wholly nothing is
left to tell apart. So all masked images of an image come down to few *distinct fields*: a place,
and what is hidden there. Each is evaluated once, alone, and index arrays lead from a masked image
to its fields, as they do from pairs of masks to masked images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks.distinct_unions import MaskedImages, distinct


@dataclasses.dataclass(frozen=True)
class LocalLogits:
    """A model whose logits are the mean of local logits that see one field each.

    Attributes:
      apply_fn: ``(params, normalised images float32[B, h, w, c]) -> float32[B, Fh, Fw, K]``, in
        eval mode. The one at ``(i, j)`` depends on the pixels from ``(i, j) * stride`` to
        ``(i, j) * stride + field``, exclusive, and on no other; so of an image of one field it
        gives one.
      field: side in pixels of what a local logit sees.
      stride: pixels between neighbouring fields.
    """

    apply_fn: Callable[[Any, Any], Any] = dataclasses.field(repr=False)
    field: int
    stride: int

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """``(Fh, Fw)``: how many local logits an image of ``(height, width)`` has.

        Raises:
          ValueError: for an image smaller than a field.
        """
        if min(image_size) < self.field:
            raise ValueError(
                f"expected images of at least {self.field}x{self.field} pixels, which a local "
                f"logit sees, got {image_size[0]}x{image_size[1]}"
            )
        height, width = ((n - self.field) // self.stride + 1 for n in image_size)
        return height, width


@dataclasses.dataclass(frozen=True, eq=False)
class LocalFields:
    """The E distinct fields of V masked images, and where each masked image finds its own.

    Attributes:
      origins: ``int32[E, 2]``, the field's row and column of pixels in the image.
      boxes: ``int32[E, R, 4]``, what is hidden there, in pixels of the field.
      index: ``int32[V, F]``, the fields of each masked image, rows of the grid outer.
    """

    origins: NDArray[np.int32]
    boxes: NDArray[np.int32]
    index: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def whole_images(self) -> float:
        """How many images have as many fields as there are here."""
        return len(self) / self.index.shape[1]


def local_fields(masks: MaskedImages, local: LocalLogits) -> LocalFields:
    """The distinct fields of ``masks``, told apart by the pixels that are hidden in them."""
    side = local.field
    grid = local.grid(masks.image_size)
    origins: list[NDArray[np.int32]] = []
    boxes: list[NDArray[np.int32]] = []
    index = np.empty((len(masks), grid[0] * grid[1]), dtype=np.int32)
    count, hidden = 0, -1  # the number of the field of which nothing is seen: the same everywhere
    for place, (row, col) in enumerate(np.ndindex(grid)):
        origin = np.array([row, col], dtype=np.int32) * local.stride
        cut = np.clip(masks.boxes - np.tile(origin, 2), 0, side)
        cut[(cut[..., 0] >= cut[..., 2]) | (cut[..., 1] >= cut[..., 3])] = 0
        alike, of_mask = np.unique(cut.reshape(len(cut), -1), axis=0, return_inverse=True)
        different, of_alike = distinct(alike.reshape(len(alike), -1, 4), (side, side))
        numbers = np.empty(len(different), dtype=np.int32)
        for field, parts in enumerate(different.boxes):
            is_hidden = _hides_all(parts, side)
            if is_hidden and hidden >= 0:
                numbers[field] = hidden
                continue
            numbers[field] = count
            hidden = count if is_hidden else hidden
            origins.append(origin)
            boxes.append(parts)
            count += 1
        index[:, place] = numbers[of_alike][of_mask.reshape(-1)]
    return LocalFields(np.stack(origins), np.stack(boxes), index)


def _hides_all(boxes: NDArray[np.int32], side: int) -> bool:
    """Whether a union of boxes ``int32[R, 4]`` leaves nothing of a field to be seen."""
    seen = np.ones((side, side), dtype=np.bool_)
    for top, left, bottom, right in boxes:
        seen[top:bottom, left:right] = False
    return not seen.any()
