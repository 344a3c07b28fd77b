"""All unions of up to so many masks, and what one more mask makes of each of them.

The empty union, the image itself, is the first; then come the single masks, then pairs, and so on.
Statements about "all unions that add up to two masks to A" then need no list of them: they hold at
A if they hold for one mask less at A and wherever one mask leads from A. 36 masks have 66,712
unions of up to four, and 8,000 rows of 36 numbers say all about them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import distinct_unions, edge_grids
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet

MOST = 1 << 18
"""No more unions than this: 49 masks have 231,526 of up to four."""


class Unions(NamedTuple):
    """V distinct unions of up to ``order`` of N distinct masks, told apart by their pixels.

    Attributes:
      images: the V masked images; the first is the image itself.
      masks_of: ``int32[V, order]``, the masks of each; -1 where it has fewer.
      up_to: ``order + 1`` numbers: the first ``up_to[j]`` are the unions of at most j masks.
      adding: ``int32[up_to[order - 1], N]``, the union with one more mask.
    """

    images: MaskedImages
    masks_of: NDArray[np.int32]
    up_to: tuple[int, ...]
    adding: NDArray[np.int32]

    @property
    def order(self) -> int:
        """How many masks are united at most."""
        return len(self.up_to) - 1


def all_unions(mask_set: MaskSet, order: int) -> Unions:
    """All unions of at most ``order`` masks, 1 or more, of a set.

    Raises:
      ValueError: for an order below 1; for more than ``MOST`` unions, before long work.
    """
    if order < 1:
        raise ValueError(f"unions: expected an order of at least 1, got {order}")
    singles = distinct_unions.distinct(mask_set.boxes, mask_set.image_size)[0].boxes
    grid = edge_grids.edge_grid(singles, mask_set.image_size)
    cells = np.packbits(edge_grids.paint(singles, grid).reshape(len(singles), -1), axis=1)

    painted = np.zeros((1, cells.shape[1]), np.uint8)
    masks_of = np.full((1, order), -1, np.int32)
    up_to, adding = [1], []
    first = 0  # of those with as many masks as there may be so far
    for j in range(order):
        last = len(painted)
        _check_number(len(singles), order, (last - first) * len(singles) // (j + 1))
        grown = (painted[first:, None] | cells).reshape(-1, cells.shape[1])
        number, new = _numbered(painted, grown)
        adding.append(number.reshape(last - first, len(singles)))
        parent, mask = np.divmod(new, len(singles))
        more = masks_of[first + parent]
        more[:, j] = mask
        painted = np.concatenate([painted, grown[new]])
        masks_of = np.concatenate([masks_of, more])
        up_to.append(len(painted))
        first = last
    nothing = np.zeros((1, *singles.shape[1:]), np.int32)
    boxes = np.concatenate([singles, nothing])[masks_of]  # -1 is the last one
    images = MaskedImages(boxes.reshape(len(painted), -1, 4), mask_set.image_size)
    return Unions(images, masks_of, tuple(up_to), np.concatenate(adding).astype(np.int32))


def _numbered(
    painted: NDArray[np.uint8], grown: NDArray[np.uint8]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The number of each of ``grown``, and which of them are new, in order of appearance."""
    rows = np.ascontiguousarray(np.concatenate([painted, grown]))
    _, appears, of_row = np.unique(
        rows.view(np.dtype((np.void, rows.shape[1]))).ravel(),
        return_index=True,
        return_inverse=True,
    )
    order = np.sort(appears)
    number = np.searchsorted(order, appears)[of_row]  # the painted ones come first, as they were
    return number[len(painted) :], order[len(painted) :] - len(painted)


def _check_number(masks: int, order: int, at_least: int) -> None:
    """``at_least`` is what the next order alone would have if no two unions were the same."""
    most = sum(math.comb(masks, j) for j in range(order + 1))
    if at_least > MOST and most > MOST:
        raise ValueError(
            f"expected at most {MOST:,} unions, got up to {most:,} of up to {order} of {masks} "
            "masks; use fewer and larger masks"
        )
