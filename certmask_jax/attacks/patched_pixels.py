"""Patches on pixels: where a placement lies, and images in which the attacker's pixels stand there.

A *placement* is what an attacker picks, ``int[K, 4]``: height, width, row and column of each of the
K patches, as ``masks.placements`` has it. Pixels outside are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from certmask_jax.defenses.feature_grid import cells_of
from certmask_jax.inference.masking import hidden_pixels
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.masks.pixels_of_cells import cell_pixels
from certmask_jax.masks.threats import Threat

Placement = NDArray[np.int64]
"""``int64[K, 4]``: height, width, row, column of each patch, in pixels."""


def with_patches(images: ArrayLike, free: ArrayLike, corners: ArrayLike) -> Array:
    """Images with the pixels of ``free`` inside the patches, and their own everywhere else.

    The derivative with respect to a free pixel is 1 inside a patch and exactly 0 outside.

    Args:
      images: ``[h, w, c]``, levels in 0..255, ``uint8`` or floating.
      free: ``float32[h, w, c]``, what the attacker would have everywhere.
      corners: ``int32[K, 4]``, top, left, bottom and right of each patch, the last two exclusive.

    Returns:
      ``float32[h, w, c]``. For many images, ``jax.vmap`` over this one.
    """
    pixels, chosen = (jnp.asarray(a).astype(jnp.float32) for a in (images, free))
    inside = hidden_pixels(jnp.asarray(corners), (pixels.shape[0], pixels.shape[1]))
    return jnp.where(inside[:, :, None], chosen, pixels)


def corners_of(place: Placement) -> NDArray[np.int32]:
    """The boxes of a placement: ``int64[..., K, 4]`` -> ``int32[..., K, 4]``, as of a mask."""
    height, width, row, column = np.moveaxis(np.asarray(place), -1, 0)
    return np.stack([row, column, row + height, column + width], axis=-1).astype(np.int32)


def cells_reached(
    place: Placement,
    *,
    image_size: tuple[int, int],
    field: tuple[int, int],
    stride: tuple[int, int],
    seen_size: tuple[int, int] | None = None,
) -> Placement:
    """The windows of cells whose fields the patches of a placement meet: ``int64[K, 4]``, in cells.

    Cell i of an axis sees the pixels from ``i * stride`` to ``i * stride + field``, exclusive. A
    patch that meets no field has a window of no cells. Where images are resized to ``seen_size``
    before, a cell sees what these pixels are made of (``cell_pixels``).
    """
    cells_of(seen_size or image_size, field=field, stride=stride)  # errors
    seen = [
        cell_pixels(
            image_size[axis],
            field=field[axis],
            stride=stride[axis],
            seen_size=None if seen_size is None else seen_size[axis],
        )
        for axis in (0, 1)
    ]
    windows = []
    for height, width, row, column in np.asarray(place).tolist():
        sides = []
        for axis, (start, length) in enumerate(((row, height), (column, width))):
            first, end = seen[axis]
            met = np.flatnonzero((first < start + length) & (end > start))
            sides.append((int(met[0]), len(met)) if len(met) else (0, 0))
        (top, rows), (left, columns) = sides
        windows.append([rows, columns, top, left])
    return np.asarray(windows, np.int64).reshape(-1, 4)


def cells_of_parts(place: Placement, parts: TwoParts) -> Placement:
    """The windows of the map of a model in two parts that a placement reaches: ``int64[K, 4]``."""
    return cells_reached(
        place,
        image_size=parts.image_size,
        field=parts.field,
        stride=parts.stride,
        seen_size=parts.seen_size,
    )


def check_placement(place: Placement, threat: Threat) -> Placement:
    """A placement that the threat allows, as ``int64[K, 4]``.

    Raises:
      ValueError: for another number of patches, a shape that the threat has not, or a patch that is
        not wholly inside the image and the region.
    """
    given = np.asarray(place, np.int64)
    if given.shape != (len(threat), 4):
        raise ValueError(
            f"place: expected [{len(threat)}, 4], height, width, row and column of each patch, got "
            f"shape {list(given.shape)}"
        )
    kinds = list(threat.patches)
    for height, width, row, column in given.tolist():
        fitting = [shapes for shapes in kinds if (height, width) in shapes]
        if not fitting:
            raise ValueError(
                f"place: expected patches of {threat}, got one of {height}x{width} pixels"
            )
        kinds.remove(fitting[0])
        allowed = threat.allowed((height, width))
        inside = 0 <= row < allowed.shape[0] and 0 <= column < allowed.shape[1]
        if not inside or not allowed[row, column]:
            raise ValueError(
                f"place: expected patches that lie wholly inside what {threat} allows, got one of "
                f"{height}x{width} pixels at row {row}, column {column}"
            )
    return given


def check_in_image(place: Placement, image_size: tuple[int, int] | None) -> Placement:
    """A placement wholly inside an image, as ``int64[K, 4]``; None for one of any size.

    Raises:
      ValueError: for another shape, a patch of no pixels, or one that is not wholly inside.
    """
    given = np.asarray(place, np.int64)
    if given.ndim != 2 or given.shape[1] != 4:
        raise ValueError(
            f"place: expected [K, 4], height, width, row and column of each patch, got shape "
            f"{list(given.shape)}"
        )
    sizes, corners = given[:, :2], given[:, 2:]
    inside = (sizes >= 1).all() and (corners >= 0).all()
    if image_size is not None:
        inside &= (corners + sizes <= np.asarray(image_size)).all()
    if not inside:
        size = "" if image_size is None else f" of {image_size[0]}x{image_size[1]} pixels"
        raise ValueError(
            f"place: expected patches that lie wholly inside the image{size}, got "
            f"{given.tolist()}, height, width, row and column of each"
        )
    return given


def check_places(
    places: Iterable[Placement],
    inside: Threat | tuple[int, int] | None,
    parts: TwoParts | None = None,
) -> None:
    """Each different one once, as ``check_placement`` of a threat or ``check_in_image`` of a size.

    Args:
      places: ``int64[K, 4]`` each.
      inside: what the attacker may do, or the size of the image where nothing else is known;
        None where that is not known either.
      parts: the model, if the threat is one on the cells of a model in two parts. A place then has
        to lie inside the image, and what it reaches inside a patch of cells that is allowed.

    Raises:
      ValueError: as these.
    """
    seen: set[bytes] = set()
    for place in places:
        key = np.asarray(place, np.int64).tobytes()
        if key in seen:
            continue
        seen.add(key)
        if not isinstance(inside, Threat):
            check_in_image(place, inside)
        elif parts is None:
            check_placement(place, inside)
        else:
            given = check_in_image(place, parts.image_size)
            cells = cells_of_parts(given, parts).tolist()
            if len(cells) != len(inside) or not all(_is_covered(one, inside) for one in cells):
                raise ValueError(
                    f"place: expected patches that reach no more cells than {inside}, got "
                    f"{given.tolist()}, height, width, row and column of each"
                )


def _is_covered(window: Sequence[int], threat: Threat) -> bool:
    """Whether some patch of the threat, where it may be, covers a window of four numbers."""
    height, width, row, column = window
    if not height or not width:
        return True
    for shape in threat.shapes:
        rows, columns = (
            slice(max(0, at + length - side), at + 1)
            for at, length, side in zip((row, column), (height, width), shape, strict=True)
        )
        fits = height <= shape[0] and width <= shape[1]
        if fits and threat.allowed(shape)[rows, columns].any():
            return True
    return False


def shows(boxes: NDArray[np.int32], place: Placement) -> NDArray[np.bool_]:
    """Which masked images show some pixel of a placement: ``bool[V]``.

    Args:
      boxes: ``int32[V, R, 4]``, the union of boxes that each masked image hides.
      place: ``int[K, 4]``.
    """
    seen = np.zeros(len(boxes), np.bool_)
    for height, width, row, column in np.asarray(place).tolist():
        rows = np.arange(row, row + height)[None, None]
        columns = np.arange(column, column + width)[None, None]
        top, left, bottom, right = np.moveaxis(boxes, -1, 0)[..., None]
        in_rows, in_columns = (
            (rows >= top) & (rows < bottom),
            (columns >= left) & (columns < right),
        )
        hidden = (in_rows[..., :, None] & in_columns[..., None, :]).any(axis=1)
        seen |= ~hidden.all(axis=(1, 2))
    return seen
