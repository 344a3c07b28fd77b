"""A threat as it arrives on a map of features: which cells its patches can reach.

Cell i of an axis sees the pixels from ``i * stride`` to ``i * stride + field``, so a patch reaches
the cells whose fields it meets: a box of cells, neighbours on each axis. The threat on the map has
these boxes as its patches. Masks that hide every one of them leave nothing that a patch could have
changed, so all that is proved of masks on images holds of masks on maps (soundness, 14).
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.evidence_windows import Size, size_pair
from certmask_jax.masks.pixels_of_cells import cell_pixels
from certmask_jax.masks.threats import Box, Shape, Threat


def cells_of(image_size: Size, *, field: Size, stride: Size) -> tuple[int, int]:
    """``(H, W)`` of the map: the cells whose fields lie in the image.

    Raises:
      ValueError: for a field that is larger than the image, or sizes below 1.
    """
    images, fields = size_pair(image_size, "image_size"), size_pair(field, "field")
    strides = size_pair(stride, "stride")
    if any(r > n for r, n in zip(fields, images, strict=True)):
        raise ValueError(
            f"field: expected one that fits into images of {images[0]}x{images[1]} pixels, got "
            f"{fields[0]}x{fields[1]}"
        )
    rows, columns = ((n - r) // s + 1 for n, r, s in zip(images, fields, strides, strict=True))
    return rows, columns


def threat_on_cells(
    threat: Threat, *, field: Size, stride: Size, seen_size: Shape | None = None
) -> Threat:
    """The threat on the map of features: windows of cells in place of patches of pixels.

    Every place that a patch may have is looked at, so a window has the cells that it reaches and no
    more. A window may then be anywhere in the map, or in the cells that see the region. Of several
    patches each has its own windows. A patch that the border spares from every cell is none.

    Args:
      threat: on images, in pixels.
      field, stride: receptive field of a cell, and the distance of two cells, in pixels: an int or
        (height, width).
      seen_size: (height, width) that images are resized to before the model sees them, see
        ``cell_pixels``; None: as they are. A window then has the cells that are made of one of the
        patch's pixels.

    Raises:
      ValueError: for a field that does not fit the image; for a patch that reaches all cells in
        some place, so that nothing can be proved.
    """
    grid = cells_of(seen_size or threat.image_size, field=field, stride=stride)
    reached = partial(_met_on_axis, threat.image_size, field, stride, seen_size=seen_size)

    def windows(shape: Shape) -> tuple[Shape, ...]:
        (top, bottom), (left, right) = reached(0, shape[0]), reached(1, shape[1])
        heights, widths, allowed = bottom - top, right - left, threat.allowed(shape)
        sizes = [
            (int(h), int(w))
            for h in np.unique(heights[heights > 0])
            for w in np.unique(widths[widths > 0])
            if allowed[np.ix_(heights == h, widths == w)].any()
        ]
        if grid in sizes:
            raise ValueError(
                f"patch_size: expected patches that leave some of the {grid[0]}x{grid[1]} cells "
                f"alone, but {shape[0]}x{shape[1]} pixels reach all of them in one place, so "
                "nothing is proved; choose a smaller patch, or parts of which each cell sees less"
            )
        return tuple(sizes) or ((1, 1),)

    def of_region(box: Box) -> Box | None:
        top, left, bottom, right = box
        (first, last), (start, stop) = reached(0, bottom - top), reached(1, right - left)
        cells = int(first[top]), int(start[left]), int(last[top]), int(stop[left])
        return cells if cells[0] < cells[2] and cells[1] < cells[3] else None

    region = tuple(box for box in map(of_region, threat.region) if box is not None)
    patches = tuple(
        tuple(window for shape in shapes for window in windows(shape)) for shapes in threat.patches
    )
    return Threat(grid, patches, region)


def sets_of_cells(
    threat: Threat, *, field: Size, stride: Size, seen_size: Shape | None = None
) -> NDArray[np.bool_]:
    """The sets of cells that one patch of the threat reaches, each a box and none inside another.

    Every place that the threat allows is looked at, for every shape. Where the border or a gap
    between fields spares a patch from every cell in all its places, there is one set, the empty.

    Args:
      threat: of one patch, on images, in pixels.
      field, stride, seen_size: as of ``threat_on_cells``.

    Returns:
      ``bool[G, H, W]``, G at least 1; not to be written to, as equal calls share it.

    Raises:
      ValueError: for a field that does not fit the image, or several patches.
    """
    if len(threat) != 1:
        raise ValueError(f"threat: expected one patch, whose cells are one box, got {threat}")
    sides = size_pair(field, "field"), size_pair(stride, "stride")
    return _sets_of_cells(threat, *sides, seen_size)


@lru_cache(maxsize=64)
def _sets_of_cells(
    threat: Threat, field: tuple[int, int], stride: tuple[int, int], seen_size: Shape | None
) -> NDArray[np.bool_]:
    grid = cells_of(seen_size or threat.image_size, field=field, stride=stride)
    boxes_by_shape = []
    for shape in threat.shapes:
        boxes = reached_boxes(threat, shape, field=field, stride=stride, seen_size=seen_size)
        boxes_by_shape.append(np.unique(boxes[threat.allowed(shape)], axis=0))
    boxes = np.unique(np.concatenate(boxes_by_shape), axis=0)
    boxes = boxes[boxes.any(axis=1)]
    inner = np.array([_is_inside_another(box, boxes) for box in boxes], dtype=np.bool_)
    sets = cells_in(boxes[~inner] if len(boxes) else np.zeros((1, 4), np.int64), grid)
    sets.flags.writeable = False
    return sets


def reached_boxes(
    threat: Threat, shape: Shape, *, field: Size, stride: Size, seen_size: Shape | None = None
) -> NDArray[np.int64]:
    """The cells that one patch of a shape reaches at each place: ``int64[rows, columns, 4]``.

    Boxes of cells (top, left, bottom, right), also of places that the threat does not allow; all 0
    where the patch reaches none. Arguments and errors are those of ``sets_of_cells``.
    """
    (top, bottom), (left, right) = (
        _met_on_axis(threat.image_size, field, stride, axis, length, seen_size)
        for axis, length in enumerate(shape)
    )
    sides = np.broadcast_arrays(top[:, None], left[None], bottom[:, None], right[None])
    boxes = np.stack(sides, axis=-1).astype(np.int64)
    some = (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])
    return np.where(some[..., None], boxes, 0)


def cells_in(boxes: NDArray[np.int64], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """The cells of a map in each of the boxes ``int64[G, 4]``: ``bool[G, H, W]``."""
    row, column = np.arange(grid[0])[:, None], np.arange(grid[1])[None, :]
    top, left, bottom, right = boxes.T[:, :, None, None]
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _is_inside_another(box: NDArray[np.int64], boxes: NDArray[np.int64]) -> bool:
    """Whether one of the boxes ``[B, 4]``, all different, contains this one of them and more."""
    around = (boxes[:, :2] <= box[:2]).all(axis=1) & (boxes[:, 2:] >= box[2:]).all(axis=1)
    return int(around.sum()) > 1


def _met_on_axis(
    image_size: tuple[int, int],
    field: Size,
    stride: Size,
    axis: int,
    length: int,
    seen_size: Shape | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First cell, and one past the last, that a stretch of pixels meets at each of its places."""
    starts, ends = cell_pixels(
        image_size[axis],
        field=size_pair(field, "field")[axis],
        stride=size_pair(stride, "stride")[axis],
        seen_size=None if seen_size is None else seen_size[axis],
    )
    places = np.arange(image_size[axis] - length + 1)
    first = np.searchsorted(ends, places, side="right")
    last = np.searchsorted(starts, places + length, side="left")
    return first, np.maximum(last, first)
