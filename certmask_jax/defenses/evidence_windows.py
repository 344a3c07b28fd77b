"""Windows of cells: what one patch can reach of a map of local evidence, and exact sums over them.

All windows have one size. On a plain map they lie inside it; with ``wrap`` both axes are cycles, as
for evidence of bands that wrap around the image.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

Size = int | tuple[int, int]
_NONE = np.iinfo(np.int32).min


def size_pair(size: Size, name: str) -> tuple[int, int]:
    """A size as (height, width); ``ValueError``, naming the parameter, unless 1 or more."""
    given = size if isinstance(size, tuple | list) else (size, size)
    try:
        height, width = (operator.index(side) for side in given)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected a whole number, or a pair (height, width), got {size!r}"
        ) from None
    if height < 1 or width < 1:
        raise ValueError(f"{name}: expected 1 or more, got {size!r}")
    return height, width


def checked_window(window: Size, cells: tuple[int, int]) -> tuple[int, int]:
    """The window as (height, width); ``ValueError`` if it is larger than the map."""
    height, width = size_pair(window, "window")
    if height > cells[0] or width > cells[1]:
        raise ValueError(
            f"window: {height} x {width} cells are more than the {cells[0]} x {cells[1]} of the "
            f"evidence, so a patch reaches all of it and nothing is certified; expected a window "
            f"that fits: a smaller patch, or a model that sees less in each cell"
        )
    return height, width


def reached_window(
    patch: Size, *, field: Size, stride: Size, image_size: Size | None = None
) -> tuple[int, int]:
    """How many cells a patch can reach, as (height, width).

    Cell i of an axis sees the pixels ``i * stride`` to ``i * stride + field - 1``, so a patch of p
    pixels reaches at most ``ceil((p + field - 1) / stride)`` cells, all of them neighbours, as in
    PatchGuard. With ``image_size`` every place of the patch inside the image is looked at instead:
    the border may spare it a cell.

    Args:
      patch: its size in pixels, as the model sees it.
      field, stride: receptive field of a cell, and the distance of two cells, in pixels.
      image_size: in pixels; the cells are those whose fields lie inside the image.

    Returns:
      The window, which may be larger than the map where ``image_size`` is not given.

    Raises:
      ValueError: for sizes below 1, or a patch or field that is larger than the image.
    """
    patches, fields = size_pair(patch, "patch"), size_pair(field, "field")
    strides = size_pair(stride, "stride")
    if image_size is None:
        rows, columns = (
            -(-(p + r - 1) // s) for p, r, s in zip(patches, fields, strides, strict=True)
        )
        return rows, columns
    images = size_pair(image_size, "image_size")
    for name, sizes in (("patch", patches), ("field", fields)):
        if any(size > image for size, image in zip(sizes, images, strict=True)):
            raise ValueError(f"{name}: {sizes} pixels do not fit into the image, {images}")
    reached = []
    for p, r, s, n in zip(patches, fields, strides, images, strict=True):
        cells = np.arange((n - r) // s + 1) * s
        places = np.arange(n - p + 1)[:, None]
        meets = (cells < places + p) & (cells + r > places)
        reached.append(max(1, int(meets.sum(axis=1).max())))
    return reached[0], reached[1]


@functools.partial(jax.jit, static_argnames=("window", "wrap"))
def window_sums(units: Array, window: tuple[int, int], *, wrap: bool) -> Array:
    """Sums over all windows: ``int32[H, W, ...]`` to ``int32[rows, columns, ...]``.

    Sums of 1, 2, 4, ... neighbours, added up to the window: a few additions a cell on each axis,
    and nothing is subtracted.
    """
    for axis, size in enumerate(window):
        if wrap and size > 1:
            first = lax.slice_in_dim(units, 0, size - 1, axis=axis)
            units = jnp.concatenate([units, first], axis=axis)
        count = units.shape[axis] - size + 1
        power, done, sums = 1, 0, None
        while done < size:
            if size & power:
                part = lax.slice_in_dim(units, done, done + count, axis=axis)
                sums = part if sums is None else sums + part
                done += power
            if done < size:
                short = units.shape[axis] - power
                units = lax.slice_in_dim(units, 0, short, axis=axis) + lax.slice_in_dim(
                    units, power, power + short, axis=axis
                )
                power *= 2
        assert sums is not None
        units = sums
    return units


@functools.partial(jax.jit, static_argnames=("window", "wrap"))
def kept_of_windows(units: Array, window: tuple[int, int], *, wrap: bool) -> Array:
    """``SUM_v((1 - w) u)`` for all windows w and v: ``int32[H, W]`` to ``int32[windows, windows]``.

    What is left in v when w is taken out of the map. The cells that two windows share are
    intervals of each axis, one or, on a cycle, two; their sums come from prefix sums.
    """
    sums = window_sums(units, window, wrap=wrap)
    shared = units
    for axis, size in enumerate(window):
        start, length = _shared_cells(units.shape[axis], size, wrap)
        doubled = jnp.concatenate([shared, shared], axis=axis) if wrap else shared
        prefix = _prefix(doubled, axis)
        parts = jnp.take(prefix, start + length, axis=axis) - jnp.take(prefix, start, axis=axis)
        shared = parts.sum(axis=axis, dtype=jnp.int32)  # of the one or two intervals
        shared = shared.reshape(*shared.shape[:axis], -1, *shared.shape[axis + 2 :])
    rows, columns = sums.shape
    overlap = shared.reshape(rows, rows, columns, columns).transpose(0, 2, 1, 3)
    return (sums[None, None] - overlap).reshape(rows * columns, rows * columns)


@functools.partial(jax.jit, static_argnames=("window",))
def most_kept(units: Array, window: tuple[int, int]) -> tuple[Array, Array]:
    """The most of ``kept_of_windows`` among windows that meet each one, and among the others.

    ``int32[H, W]``, at least 0 and no cycle, to ``int32[windows]`` twice. No pair of windows is
    kept: those that meet are looked at offset by offset, and of those apart it is enough to know
    the largest sum above, below, left and right. Where none is apart the second is below 0.
    """
    (height, width), sums = window, window_sums(units, window, wrap=False)
    rows, columns = sums.shape
    around = ((height - 1, height - 1), (width - 1, width - 1))
    others = jnp.pad(sums, around, constant_values=_NONE)
    down = jnp.pad(_prefix(units, 0), ((0, height), (0, 0)))

    def at_row(most: Array, offset: Array) -> tuple[Array, None]:
        first = jnp.maximum(offset, 0)
        last = first + height - jnp.abs(offset)
        strips = lax.dynamic_slice_in_dim(down, last, rows) - lax.dynamic_slice_in_dim(
            down, first, rows
        )
        across = jnp.pad(_prefix(strips, 1), ((0, 0), (0, width)))
        level = lax.dynamic_slice_in_dim(others, offset + height - 1, rows)

        def at_column(most: Array, offset: Array) -> tuple[Array, None]:
            first = jnp.maximum(offset, 0)
            last = first + width - jnp.abs(offset)
            shared = lax.dynamic_slice_in_dim(across, last, columns, axis=1)
            shared -= lax.dynamic_slice_in_dim(across, first, columns, axis=1)
            other = lax.dynamic_slice_in_dim(level, offset + width - 1, columns, axis=1)
            kept = jnp.where(other == _NONE, _NONE, other - shared)
            return jnp.maximum(most, kept), None

        return lax.scan(at_column, most, jnp.arange(1 - width, width), unroll=8)

    meeting_most = lax.scan(at_row, jnp.zeros_like(sums), jnp.arange(1 - height, height))[0]
    apart = jnp.maximum(
        _beyond(sums.max(axis=1), height)[:, None], _beyond(sums.max(axis=0), width)[None, :]
    )
    return meeting_most.ravel(), apart.ravel()


def meeting(
    cells: tuple[int, int], window: tuple[int, int], *, wrap: bool, seam: bool = True
) -> NDArray[np.bool_]:
    """``bool[windows, windows]``: which windows have a cell in common.

    Args:
      cells, window, wrap: the map.
      seam: whether windows count that only have cells in common beyond the end of an axis.
    """
    axes = []
    for size, reach in zip(cells, window, strict=True):
        start = np.arange(size if wrap else size - reach + 1)
        apart = np.abs(start[:, None] - start[None, :])
        axes.append((apart < reach) | ((size - apart < reach) & wrap & seam))
    rows, columns = axes
    both = rows[:, None, :, None] & columns[None, :, None, :]
    return both.reshape(both.shape[0] * both.shape[1], -1)


def _beyond(line: Array, reach: int) -> Array:
    """The largest entry at least ``reach`` before or behind each one; ``_NONE`` without any."""
    none = jnp.full(reach, _NONE, line.dtype)
    before = jnp.concatenate([none, lax.cummax(line)])[: len(line)]
    behind = jnp.concatenate([lax.cummax(line, reverse=True), none])[reach:]
    return jnp.maximum(before, behind)


def _prefix(units: Array, axis: int) -> Array:
    """Sums of the first 0, 1, ... entries along an axis, modulo 2**32."""
    before = [(0, 0)] * units.ndim
    before[axis] = (1, 0)
    return jnp.pad(jnp.cumsum(units, axis=axis, dtype=jnp.int32), before)


def _shared_cells(cells: int, size: int, wrap: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and length of what two windows share, ``[intervals, windows, windows]``."""
    first = np.arange(cells if wrap else cells - size + 1)
    one, other = first[:, None], first[None, :]
    if not wrap:
        length = np.maximum(size - np.abs(one - other), 0)
        return np.maximum(one, other)[None], length[None]
    after = (other - one) % cells  # how far the other begins behind the one
    ahead = np.maximum(size - after, 0)  # the other's beginning lies in the one
    behind = np.where(after > 0, np.maximum(size - (cells - after), 0), 0)
    start = np.broadcast_arrays(other, one)
    return np.stack(start), np.stack([ahead, behind])
