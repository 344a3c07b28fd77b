"""Bands and blocks: masks that leave one part of an image to be seen, for votes of many parts.

(De)Randomized Smoothing (Levine and Feizi, NeurIPS 2020) classifies an image by the votes of a
model that sees one band of b columns at a time, or one block; smoothed ViTs do the same with a
stride. A band is told here by what is hidden: its mask is everything else. So a mask hides a patch
if and only if its band does not meet it, and ``MaskSet.affected`` says which bands each placement
meets, counted one by one. The closed form ceil((p + b - 1) / s) is one short where the stride does
not divide the width (soundness, 13.2).

Bands begin at 0, s, 2s, ... With ``wrap`` there is one for every such position of the image, and
those near the border go on at the other side. Without, bands end at the border: those that lie
inside the image, and one more that ends at the border where the stride leaves a rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import geometry, placements
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.intervals import Interval, boxes_of, wrapped
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat, as_threat


def column_bands(
    image_size: Size, patch_size: Size | Threat, *, band: int, stride: int = 1, wrap: bool = True
) -> MaskSet:
    """Masks that each leave ``band`` columns in a row to be seen, from left to right.

    Args:
      image_size, patch_size: in pixels; or a threat in the place of a patch. Bands are the same
        against every one.
      band: b, columns that are seen.
      stride: s, columns from one band to the next; the last step may be shorter.
      wrap: bands go round the border.

    Returns:
      ``ceil(w / s)`` masks with ``wrap``, else ``ceil((w - b) / s) + 1``.

    Raises:
      CoverageError: where a patch meets every band.
      ValueError: unless 1 <= b < w and 1 <= s <= w.
    """
    image, threat = _attacked(image_size, patch_size)
    return MaskSet(_columns(image, band, stride, wrap), image, threat, name="column_bands")


def row_bands(
    image_size: Size, patch_size: Size | Threat, *, band: int, stride: int = 1, wrap: bool = True
) -> MaskSet:
    """Masks that each leave ``band`` rows in a row to be seen, from the top down.

    As ``column_bands``, of rows.
    """
    image, threat = _attacked(image_size, patch_size)
    return MaskSet(_rows(image, band, stride, wrap), image, threat, name="row_bands")


def row_and_column_bands(
    image_size: Size, patch_size: Size | Threat, *, band: Size, stride: Size = 1, wrap: bool = True
) -> MaskSet:
    """The masks of ``row_bands`` and then those of ``column_bands``: smoothed ViTs' mode "both".

    Args:
      band, stride: of both, or ``(of rows, of columns)``.
    """
    image, threat = _attacked(image_size, patch_size)
    rows, columns = _rows_and_columns(image, band, stride, wrap)
    boxes = np.concatenate([rows, columns])
    return MaskSet(boxes, image, threat, name="row_and_column_bands")


def blocks(
    image_size: Size, patch_size: Size | Threat, *, band: Size, stride: Size = 1, wrap: bool = True
) -> MaskSet:
    """Masks that each leave a block to be seen, row by row: those of row and column bands at once.

    Args:
      image_size, patch_size: as of ``column_bands``.
      band: the height and width of a block; an int is a square.
      stride: pixels from one block to the next, or ``(down, across)``.
      wrap: blocks go round the border.

    Raises:
      CoverageError: where a patch meets every block.
      ValueError: as for ``column_bands``, on each axis.
    """
    image, threat = _attacked(image_size, patch_size)
    rows, columns = _rows_and_columns(image, band, stride, wrap)
    outer = np.repeat(rows, len(columns), axis=0)
    boxes = np.concatenate([outer, np.tile(columns, (len(rows), 1, 1))], axis=1)
    return MaskSet(boxes, image, threat, name="blocks")


def band_starts(length: int, band: int, stride: int, *, wrap: bool) -> list[int]:
    """Where the bands of an axis begin, ascending; sizes that fit it."""
    if wrap:
        return list(range(0, length, stride))
    return sorted({*range(0, length - band + 1, stride), length - band})


def affected_parts(masks: MaskSet) -> tuple[NDArray[np.bool_], ...]:
    """``masks.affected()``, as parts of which an attacker picks a group each, whatever the others.

    Which bands of rows a patch meets is up to its row alone, and which bands of columns up to its
    column. So one patch of one shape, anywhere in the image, has two independent parts where the
    set is of bands of rows followed by bands of columns; all pairs of them are never listed.

    Returns:
      ``bool[G_i, B_i]`` for each part, in the order of the masks; one part where they do not fall
      apart.
    """
    top, left, bottom, right = np.moveaxis(masks.boxes, -1, 0)
    used = (top < bottom) & (left < right)
    of_rows = (~used | ((left == 0) & (right == masks.image_size[1]))).all(axis=1)
    of_columns = (~used | ((top == 0) & (bottom == masks.image_size[0]))).all(axis=1)
    first = int(of_rows.sum())
    one_shape = len(masks.threat) == 1 and len(masks.threat.shapes) == 1
    apart = of_rows[:first].all() and of_columns[first:].all() and 0 < first < len(masks)
    if not apart or not one_shape or len(masks.threat.region) > 1:
        return (masks.affected(),)
    return tuple(
        ~placements.groups(boxes, masks.threat).hidden
        for boxes in (masks.boxes[:first], masks.boxes[first:])
    )


def _attacked(image_size: Size, patch: Size | Threat) -> tuple[tuple[int, int], Threat]:
    image = geometry.as_size(image_size, "image_size")
    return image, as_threat(patch, image)


def _rows(image: tuple[int, int], band: int, stride: int, wrap: bool) -> NDArray[np.int32]:
    return boxes_of([_hidden(image[0], band, stride, wrap, "rows"), [[(0, image[1])]]])


def _columns(image: tuple[int, int], band: int, stride: int, wrap: bool) -> NDArray[np.int32]:
    return boxes_of([[[(0, image[0])]], _hidden(image[1], band, stride, wrap, "columns")])


def _rows_and_columns(
    image: tuple[int, int], band: Size, stride: Size, wrap: bool
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """What bands of rows hide and what bands of columns do, with equally many boxes each."""
    (height, width), (down, across) = (
        geometry.as_size(band, "band"),
        geometry.as_size(stride, "stride"),
    )
    rows, columns = _rows(image, height, down, wrap), _columns(image, width, across, wrap)
    slots = max(rows.shape[1], columns.shape[1])
    rows, columns = (
        np.pad(boxes, ((0, 0), (0, slots - boxes.shape[1]), (0, 0))) for boxes in (rows, columns)
    )
    return rows, columns


def _hidden(length: int, band: int, stride: int, wrap: bool, unit: str) -> list[list[Interval]]:
    """What each band of an axis hides of it: all from its end round to its beginning."""
    for name, value, most in (("band", band, length - 1), ("stride", stride, length)):
        if not isinstance(value, int | np.integer) or not 1 <= value <= most:
            raise ValueError(
                f"{name}: expected {unit} from 1 to {most}, of an image of {length}, got {value}"
            )
    firsts = band_starts(length, band, stride, wrap=wrap)
    return [wrapped(first + band, length - band, length) for first in firsts]
