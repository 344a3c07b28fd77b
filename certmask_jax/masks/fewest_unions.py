"""What a mask set for several patches takes at least, counted on the masks of one patch.

K patches and n masks make all unions of up to K masks, of which many a rule would make unions
again. Masks with a pixel of their own, that no other mask hides, are counted: unions of two
selections of these differ in such a pixel. Where a patch lies inside such a mask, on such a pixel,
a union hides it only with that mask. So patches in different such masks are hidden together by the
unions that have all of these masks, and no placement is hidden by only some of those.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from certmask_jax.masks import distinct_unions, edge_grids, placements
from certmask_jax.masks.mask_set import MaskSet


class Needed(NamedTuple):
    """How many masks of a set for one patch no others do without."""

    own: int  # with a pixel of their own
    alone: int  # of these, with a placement of the patch on such a pixel


def needed(masks: MaskSet) -> Needed:
    """Counts them; of placements one of each group is looked at, so there may be more."""
    grid = edge_grids.edge_grid(masks.boxes, masks.image_size)
    cells = edge_grids.paint(masks.boxes, grid)
    own = cells & (cells.sum(axis=0) == 1)
    rows, cols = (
        np.append(starts, side)
        for starts, side in zip((grid.rows, grid.cols), masks.image_size, strict=True)
    )
    groups = placements.groups(masks.boxes, masks.threat)
    is_alone = np.zeros(len(masks), np.bool_)
    for hidden, (height, width, row, column) in zip(
        groups.hidden, groups.example[:, 0].tolist(), strict=True
    ):
        on_rows = (rows[:-1] < row + height) & (rows[1:] > row)
        on_cols = (cols[:-1] < column + width) & (cols[1:] > column)
        is_alone |= hidden & own[:, on_rows][:, :, on_cols].any(axis=(1, 2))
    return Needed(int(own.any(axis=(1, 2)).sum()), int(is_alone.sum()))


def up_to(count: int, most: int) -> int:
    """How many selections of 1 to ``most`` of ``count`` masks there are."""
    return sum(math.comb(count, masks) for masks in range(1, most + 1))


def check_rounds(masks: MaskSet, patches: int, rounds: int) -> None:
    """Refuses what unions for several patches would be refused for once they were made.

    Args:
      masks: for one of these patches.
      patches: how many, 2 or more.
      rounds: how many of those unions are united, 1 or more, and asked which placements they hide.

    Raises:
      ValueError: for more choices of unions, or groups of placements, than can be.
    """
    own, alone = needed(masks)
    distinct_unions.check_choices([up_to(own, patches)] * rounds, or_more=True)
    groups = math.comb(alone, patches - 1)
    placements.check_entries(groups, alone, up_to(own, rounds * patches), or_more=True)
