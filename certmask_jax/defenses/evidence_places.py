"""The places of a patch, as a defense on evidence tells them apart, and its verdict at each.

A worst case on evidence asks about each set of cells or bands that a patch can reach, and holds if
it holds on all of them (soundness, 12 and 13). So the verdict on one set is the vulnerability of
the places that reach it, and a map of places is the certificate itself, before it is summed up.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.feature_grid import cells_in, cells_of, reached_boxes
from certmask_jax.defenses.patch_spots import Spots, spots_under
from certmask_jax.masks.threats import Shape, Threat

MOST_PLACES = 4096
"""Sets of one defense that have a verdict of their own, so that what a run keeps stays small."""

Unit = Literal["votes", "evidence"]


class NoPlacesError(ValueError):
    """A defense whose certificate is no sum of verdicts on places of one patch; says why."""


class PlaceVerdicts(NamedTuple):
    """Verdicts on T images and S sets of cells or bands.

    Attributes:
      holds: ``bool[T, S]``: whatever is put into the set, the outcome stays right.
      leads: ``float32[T, S]``, by how much the true class has more there than it needs: above 0 if
        and only if ``holds``. None where the certificate is about more than one number.
    """

    holds: Array
    leads: Array | None


class EvidencePlaces(NamedTuple):
    """Where a patch may be, and the set that each place counts as reaching.

    Attributes:
      spots: of each shape of the patch. Nothing is ``hidden`` by masks here.
      columns: of each shape ``int[spots]``, which of the S sets a spot has.
      reached: ``int[S]``, how many cells or bands are in each set.
      exact: whether a place that fails is lost; else nothing is proved there.
      unit: what leads are counted in; None where there are none.
    """

    spots: tuple[Spots, ...]
    columns: tuple[NDArray[np.intp], ...]
    reached: NDArray[np.intp]
    exact: bool
    unit: Unit | None


@jax.jit
def told_apart(holds: Array, leads: Array) -> PlaceVerdicts:
    """``bool[T, S]`` and ``float[T, S]`` as verdicts and leads, none rounded across 0.

    Neither does the rounding to float16 that a run keeps them in, nor its range.
    """
    least, most = 2.0**-20, 60000.0
    signed = jnp.where(holds, jnp.maximum(leads, least), jnp.minimum(leads, 0))
    return PlaceVerdicts(holds, jnp.clip(signed, -most, most).astype(jnp.float32))


def of_windows(
    threat: Threat,
    *,
    cells: tuple[int, int],
    window: tuple[int, int],
    field: int,
    stride: int,
    exact: bool,
    unit: Unit | None,
) -> EvidencePlaces:
    """Places of one patch, each of which counts as reaching one window of cells.

    That is the window that begins at the first cell which the patch reaches, moved into the map
    where it would stick out. It contains all that the patch reaches, and every window is that of
    some place, so the worst case over all windows holds if and only if it does at every place
    (soundness, 12.8).

    Args:
      threat: one patch of one shape anywhere; of others see ``of_cells``.
      cells: of the map.
      window: in cells, the most that any shape reaches.
      field, stride: of a cell, in pixels.
      exact: whether the worst case is, where all of a window is reached.
      unit: of its leads.

    Raises:
      NoPlacesError: for more windows than ``MOST_PLACES``.
    """
    counts = [size - side + 1 for size, side in zip(cells, window, strict=True)]
    _check_count(counts[0] * counts[1])
    maps = []
    whole = True
    for shape in threat.shapes:
        axes = []
        for image, side, number, reach in zip(threat.image_size, shape, cells, window, strict=True):
            places = np.arange(image - side + 1)
            first = np.maximum(0, (places - field) // stride + 1)
            last = np.minimum(number - 1, (places + side - 1) // stride)
            whole &= bool((last - first + 1 == reach).all())
            axes.append(np.minimum(first, number - reach))
        maps.append(_spots_of_axes(threat.image_size, shape, *axes))
    every = np.arange(counts[0] * counts[1])
    return EvidencePlaces(
        tuple(maps),
        (every,) * len(maps),
        np.full(len(every), window[0] * window[1]),
        exact and whole,
        unit,
    )


def of_cells(
    threat: Threat,
    *,
    field: int,
    stride: int,
    exact: bool,
    unit: Unit | None,
    seen_size: Shape | None = None,
) -> tuple[EvidencePlaces, NDArray[np.bool_]]:
    """Places of one patch by the cells that it reaches, and these cells: ``bool[S, H, W]``.

    Each place has the very cells that are reached from it, so all places hold if and only if the
    worst case over the sets of ``feature_grid.sets_of_cells`` does: those are the largest of these.

    Args:
      threat: one patch, of one or several shapes, anywhere or in a region.
      field, stride: of a cell, in pixels.
      exact: whether what is said of a set is.
      unit: of its leads.
      seen_size: as of ``feature_grid.sets_of_cells``.

    Raises:
      NoPlacesError: for more sets than ``MOST_PLACES``.
    """
    boxes = [
        reached_boxes(threat, shape, field=field, stride=stride, seen_size=seen_size)
        for shape in threat.shapes
    ]
    allowed = [threat.allowed(shape) for shape in threat.shapes]
    at = [one[may] for one, may in zip(boxes, allowed, strict=True)]
    sets, number = np.unique(np.concatenate(at), axis=0, return_inverse=True)
    _check_count(len(sets))
    ends = np.cumsum([len(one) for one in at])
    maps, columns = [], []
    for shape, may, numbers in zip(
        threat.shapes, allowed, np.split(number.ravel(), ends[:-1]), strict=True
    ):
        own, spot = np.unique(numbers, return_inverse=True)
        every = np.full(may.shape, -1, np.int32)
        every[may] = spot
        maps.append(_spots_of_map(threat.image_size, shape, every, len(own)))
        columns.append(own)
    cells = cells_in(sets, cells_of(seen_size or threat.image_size, field=field, stride=stride))
    places = EvidencePlaces(
        tuple(maps), tuple(columns), cells.sum(axis=(1, 2), dtype=np.intp), exact, unit
    )
    return places, cells


def of_bands(
    threat: Threat, boxes: NDArray[np.int32], *, name: str, unit: Unit | None
) -> tuple[EvidencePlaces, NDArray[np.bool_]]:
    """Places of one patch by the bands that it meets, and these bands: ``bool[S, B]``.

    Args:
      threat: one patch, of one or several shapes.
      boxes: ``int32[B, R, 4]``, what is hidden around each band.
      name: of the defense, for errors.
      unit: of its leads.

    Raises:
      NoPlacesError: for several patches at once, or more places than ``MOST_PLACES``.
    """
    if len(threat) != 1:
        raise NoPlacesError("a map is of one patch, and here are several at once")
    try:
        spots = tuple(spots_under(boxes, threat, shape, name=name) for shape in threat.shapes)
    except ValueError as error:
        raise NoPlacesError(f"there are too many places to keep a verdict of each ({error})") from (
            error
        )
    met = np.concatenate([~one.hidden for one in spots])
    _check_count(len(met))
    ends = np.cumsum([len(one.hidden) for one in spots])
    columns = np.split(np.arange(len(met)), ends[:-1])
    bare = tuple(one._replace(hidden=np.zeros((len(one.hidden), 0), np.bool_)) for one in spots)
    return EvidencePlaces(bare, tuple(columns), met.sum(axis=1), True, unit), met


def _check_count(count: int) -> None:
    if count > MOST_PLACES:
        raise NoPlacesError(
            f"there are {count:,} places, more than the {MOST_PLACES:,} of which a verdict is kept"
        )


def _spots_of_map(
    image_size: tuple[int, int], shape: Shape, every: NDArray[np.int32], count: int
) -> Spots:
    """Spots by their number at each location ``int32[rows, columns]``, -1 where none may be."""
    rows, cols = (
        np.flatnonzero(np.append(True, (side[1:] != side[:-1]).any(axis=1)))
        for side in (every, every.T)
    )
    first = np.unique(every, return_index=True)[1][-count:]  # -1, where it is, comes before 0
    return Spots(
        image_size,
        shape,
        rows.astype(np.int64),
        cols.astype(np.int64),
        every[np.ix_(rows, cols)],
        np.zeros((count, 0), np.bool_),
        np.bincount(every[every >= 0], minlength=count).astype(np.int64),
        np.column_stack(np.divmod(first, every.shape[1])).astype(np.int64),
    )


def _spots_of_axes(
    image_size: tuple[int, int], shape: Shape, down: NDArray[np.intp], across: NDArray[np.intp]
) -> Spots:
    """Spots of locations whose row and column alone say which they are, from 0 up by single steps.

    ``down int[rows]`` and ``across int[columns]`` of all locations.
    """
    (rows, heights), (cols, widths) = (
        np.unique(axis, return_index=True, return_counts=True)[1:] for axis in (down, across)
    )
    count = len(rows) * len(cols)
    example = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(count, 2)
    return Spots(
        image_size,
        shape,
        rows.astype(np.int64),
        cols.astype(np.int64),
        np.arange(count, dtype=np.int32).reshape(len(rows), len(cols)),
        np.zeros((count, 0), np.bool_),
        np.outer(heights, widths).ravel().astype(np.int64),
        example.astype(np.int64),
    )
