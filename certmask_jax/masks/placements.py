"""Placements: which masks hide what an attacker may place, up to what matters for a proof.

Placements that the same masks hide are one *group*, and only minimal groups are kept: whatever an
attacker can do where a set of masks hides the patches, they can do where a strict subset hides
them. Several patches are hidden by the masks that hide each of them, so their groups are the
intersections of groups of one patch, and minimal ones come from minimal ones alone.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import edge_grids, geometry
from certmask_jax.masks.threats import Shape, Threat

# Intersections are made and compared in blocks of about this many bytes.
_BYTES_AT_ONCE = 1 << 26
_MOST_ENTRIES = 1 << 31
_FIRST_MEMBERS = 1024


class Groups(NamedTuple):
    """Minimal groups of placements, and for each the first placement that was met of it."""

    hidden: NDArray[np.bool_]  # [G, N] by which masks
    example: NDArray[np.int64]  # [G, K, 4] of each patch: height, width, row, column


def groups(boxes: NDArray[np.int32], threat: Threat) -> Groups:
    """The minimal groups of all placements of ``threat`` under masks ``boxes int32[N, R, 4]``.

    Raises:
      ValueError: with the estimate, where the groups of several patches would not fit memory.
    """
    alone = {shapes: _of_one_patch(boxes, threat, shapes) for shapes in set(threat.patches)}
    first, *others = (alone[shapes] for shapes in threat.patches)
    for other in others:
        first = _together(first, other)
    return first


def least_hidden(boxes: NDArray[np.int32], threat: Threat) -> tuple[int, NDArray[np.int64]]:
    """How many masks hide the placement that fewest hide, and that placement.

    Args:
      boxes: ``int32[N, R, 4]``; a mask that is listed twice counts twice.
      threat: on the image of the masks.

    Returns:
      The count, and ``int64[K, 4]``: height, width, row and column of each patch.
    """
    if len(threat) > 1:
        held = np.ascontiguousarray(boxes, np.int32)
        hiding, example = _least_hidden_of_several(held.tobytes(), held.shape, threat)
        return hiding, example.copy()
    worst: tuple[int, list[int]] | None = None
    for shape in threat.patches[0]:
        covered = geometry.coverage(boxes, threat.image_size, shape)
        covered = np.where(threat.allowed(shape), covered, len(boxes) + 1)
        row, col = np.unravel_index(covered.argmin(), covered.shape)
        if worst is None or covered[row, col] < worst[0]:
            worst = int(covered[row, col]), [*shape, int(row), int(col)]
    assert worst is not None
    return worst[0], np.array([worst[1]], dtype=np.int64)


@functools.lru_cache(maxsize=4)
def _least_hidden_of_several(
    boxes: bytes, shape: tuple[int, ...], threat: Threat
) -> tuple[int, NDArray[np.int64]]:
    """``least_hidden`` of several patches; kept, as a set asks again what its builder asked."""
    masks = np.frombuffer(boxes, np.int32).reshape(shape)
    alone = {shapes: _of_one_patch(masks, threat, shapes) for shapes in set(threat.patches)}
    first, *middle, last = (alone[shapes] for shapes in threat.patches)
    for other in middle:
        first = _together(first, other)
    counts = first.hidden.astype(np.float32) @ last.hidden.T.astype(np.float32)  # exact
    i, j = np.unravel_index(counts.argmin(), counts.shape)
    return int(counts[i, j]), np.concatenate([first.example[i], last.example[j]])


def any_hidden(boxes: NDArray[np.int32], threat: Threat) -> NDArray[np.bool_]:
    """``bool[N]``: which masks hide some placement of ``threat``.

    A mask that can hide one patch of each kind can hide them together, wherever that is.
    """
    of_all = np.ones(len(boxes), dtype=np.bool_)
    for shapes in set(threat.patches):
        some = np.zeros(len(boxes), dtype=np.bool_)
        for shape in shapes:
            hidden, _, allowed = _on_grid(boxes, threat, shape)
            some |= hidden[:, allowed].any(axis=1)
        of_all &= some
    return of_all


def described(example: NDArray[np.int64]) -> str:
    """``"5x5 patch at row 3, column 0"``, for each patch of a placement ``int[K, 4]``."""
    return " with the ".join(f"{h}x{w} patch at row {r}, column {c}" for h, w, r, c in example)


def _of_one_patch(boxes: NDArray[np.int32], threat: Threat, shapes: tuple[Shape, ...]) -> Groups:
    hidden, examples = [], []
    for shape in shapes:
        hides, places = _hidden_at(boxes, threat, shape)
        packed, first = _distinct(np.packbits(hides, axis=1))
        hidden.append(packed)
        examples.append(np.column_stack([np.tile(shape, (len(first), 1)), places[first]]))
    return _minimal(np.concatenate(hidden), np.concatenate(examples)[:, None], len(boxes))


def _hidden_at(
    boxes: NDArray[np.int32], threat: Threat, shape: Shape
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The masks at allowed locations, ``bool[L, N]``, and these locations, ``int64[L, 2]``.

    One of each stretch, within which neither what is hidden nor what is allowed changes, and only
    of stretches that may be minimal.
    """
    hidden, grid, allowed = _on_grid(boxes, threat, shape)
    wanted = _locally_minimal(hidden, allowed)
    rows, cols = np.nonzero(wanted)
    return hidden[:, wanted].T, np.column_stack([grid.rows[rows], grid.cols[cols]])


def _on_grid(
    boxes: NDArray[np.int32], threat: Threat, shape: Shape
) -> tuple[NDArray[np.bool_], edge_grids.LocationGrid, NDArray[np.bool_]]:
    """``hidden bool[N, rows, cols]`` at every stretch of locations, and which are allowed."""
    image, region = threat.image_size, np.array([threat.region], np.int32).reshape(1, -1, 4)
    edges = np.concatenate([boxes.reshape(-1, 1, 4), region.reshape(-1, 1, 4)])
    grid = edge_grids.location_grid(edges, image, shape)
    hidden = edge_grids.hides_on_grid(boxes, image, shape, grid)
    if not threat.region:
        return hidden, grid, np.ones(hidden.shape[1:], dtype=np.bool_)
    return hidden, grid, edge_grids.hides_on_grid(region, image, shape, grid)[0]


def _locally_minimal(hidden: NDArray[np.bool_], allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Allowed locations of which no allowed neighbour is hidden by a strict subset of the masks.

    ``hidden bool[N, rows, cols]``, ``allowed bool[rows, cols]``. A location that is left out has a
    neighbour hidden by fewer masks, and that one is kept or has such a neighbour in turn.
    """
    packed = np.ascontiguousarray(np.moveaxis(np.packbits(hidden, axis=0), 0, -1))
    keep = allowed.copy()
    for axis in (0, 1):
        cells, kept, may = (np.moveaxis(x, axis, 0) for x in (packed, keep, allowed))
        for at in range(len(cells) - 1):
            here, there = cells[at], cells[at + 1]
            both = may[at] & may[at + 1] & (here != there).any(axis=1)
            kept[at] &= ~(both & ~(there & ~here).any(axis=1))
            kept[at + 1] &= ~(both & ~(here & ~there).any(axis=1))
    return keep


def _together(first: Groups, second: Groups) -> Groups:
    """Groups of the patches of both."""
    count = first.hidden.shape[1]
    check_entries(len(first.hidden), len(second.hidden), count)
    one, two = (np.packbits(g.hidden, axis=1) for g in (first, second))
    block = max(1, _BYTES_AT_ONCE // two.size)
    hidden, examples = [], []
    for start in range(0, len(one), block):
        both = one[start : start + block, None] & two[None]
        packed, at = _distinct(both.reshape(-1, one.shape[1]))
        i, j = np.divmod(at, len(two))
        hidden.append(packed)
        examples.append(np.concatenate([first.example[start + i], second.example[j]], axis=1))
    return _minimal(np.concatenate(hidden), np.concatenate(examples), count)


def check_entries(first: int, second: int, masked: int, *, or_more: bool = False) -> None:
    """Refuses groups of some patches, and of one more, that would not fit memory together.

    Args:
      first, second: how many groups there are.
      masked: of how many masked images.
      or_more: whether there are that many at least.

    Raises:
      ValueError: with the estimate.
    """
    entries = first * second * masked
    if entries > _MOST_ENTRIES:
        more = " or more" if or_more else ""
        raise ValueError(
            f"threat: expected at most {_MOST_ENTRIES:.1e} pairs of location groups and masked "
            f"images, got {first:,} x {second:,} x {masked:,} = {entries:.1e}{more}; use fewer "
            "masks or fewer patches"
        )


def _distinct(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Each row ``uint8[., bytes]`` once, in order, and where it is first."""
    rows = np.ascontiguousarray(packed)
    # As one item a row: fields of their own are hundreds of times slower.
    items = rows.view(np.dtype((np.void, rows.shape[1]))).ravel()
    _, first = np.unique(items, return_index=True)
    return rows[first], first


def _minimal(packed: NDArray[np.uint8], example: NDArray[np.int64], count: int) -> Groups:
    """Drops repeated rows, and rows that are a strict superset of another one, fewest first."""
    packed, first = _distinct(packed)
    hidden = np.unpackbits(packed, axis=1, count=count).astype(np.bool_)
    sizes = hidden.sum(axis=1)
    order = np.argsort(sizes, kind="stable")
    hidden, example, sizes = hidden[order], example[first[order]], sizes[order]
    keep = np.ones(len(hidden), dtype=np.bool_)
    block = max(1, _BYTES_AT_ONCE // (4 * len(hidden)))
    smallest = int(np.searchsorted(sizes, sizes[:1].max(initial=0), "right"))  # contain none
    for start in range(smallest, len(hidden), block):
        part = slice(start, start + block)
        smaller = slice(0, int(np.searchsorted(sizes, sizes[part].max())))
        may = sizes[None, smaller] < sizes[part, None]  # equal ones that differ contain none
        keep[part] = ~_containing(hidden[part], hidden[smaller], may)
    return Groups(hidden[keep], example[keep])


def _containing(
    sets: NDArray[np.bool_], others: NDArray[np.bool_], may: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """``bool[P]``: which of ``sets [P, N]`` contain some of ``others [Q, N]``.

    ``may bool[P, Q]`` are the pairs that are looked at; it is written to. A few members, drawn at
    random, tell most pairs apart. Of those that are left one for each set is looked at whole, and
    then more members.
    """
    contains = np.zeros(len(sets), dtype=np.bool_)
    members = np.random.default_rng(0).permutation(sets.shape[1])
    most = max(1, _BYTES_AT_ONCE // (4 * max(1, *may.shape)))
    at, step = 0, min(_FIRST_MEMBERS, most)
    while len(rows := np.flatnonzero(may.any(axis=1) & ~contains)):
        columns = np.flatnonzero(may[rows].any(axis=0))
        some = members[at : at + step]
        # lacking[g, o] = members of o that g lacks; o is inside g when there are none.
        lacks = ~sets[np.ix_(rows, some)]
        asked = others[np.ix_(columns, some)]
        lacking = lacks.astype(np.float32) @ asked.T.astype(np.float32)
        may[np.ix_(rows, columns)] &= lacking == 0  # exact: counts below 2**24
        at, step = at + step, min(2 * step, most)
        left = rows[may[rows].any(axis=1)]
        one = may[left].argmax(axis=1)
        inside = np.array(
            [not (others[o] & ~sets[g]).any() for g, o in zip(left, one, strict=True)]
        )
        contains[left] = inside
    return contains
