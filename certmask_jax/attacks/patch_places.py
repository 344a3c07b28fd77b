"""Where a patch is put: everywhere in steps, at random, where the table says so, by gradients.

Each gives placements ``int64[P, K, 4]`` (height, width, row and column of each patch), all of them
allowed by the threat.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.patched_pixels import Placement
from certmask_jax.masks import placements
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.threats import Shape, Threat

_MOST = 1 << 20


def places_on_grid(threat: Threat, *, stride: int) -> NDArray[np.int64]:
    """All placements whose rows and columns are multiples of ``stride``, and the last ones.

    Several patches are put everywhere independently; patches of several shapes in each of them.

    Raises:
      ValueError: for a stride below 1, more than a million placements, or none: those of a region
        may lie between.
    """
    if stride < 1:
        raise ValueError(f"stride: expected at least 1 pixel, got {stride}")
    each = [_of_one_patch(threat, shapes, stride) for shapes in threat.patches]
    count = math.prod(len(some) for some in each)
    if not count:
        raise ValueError(
            f"stride: expected one at which {threat} allows a patch, got {stride}; take a smaller "
            "stride"
        )
    if count > _MOST:
        raise ValueError(
            f"stride: expected at most {_MOST:,} placements, got {count:,}; take a larger stride"
        )
    if len(each) == 1:
        return np.stack(each[0])[:, None]
    return np.asarray([np.stack(some) for some in itertools.product(*each)])


def random_places(threat: Threat, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """``count`` placements, each patch of a random shape at a random allowed place."""
    made = []
    for _ in range(count):
        patches = []
        for shapes in threat.patches:
            shape = shapes[random.integers(len(shapes))]
            rows, columns = np.nonzero(threat.allowed(shape))
            at = random.integers(len(rows))
            patches.append([*shape, rows[at], columns[at]])
        made.append(patches)
    return np.asarray(made, np.int64).reshape(count, len(threat), 4)


def weakest_places(images: MaskedImages, threat: Threat) -> NDArray[np.int64]:
    """A placement for every set of masks that alone hides it, none of them a superset of another.

    Whatever an attacker can do anywhere in a table, they can do at one of these.
    """
    return placements.groups(images.boxes, threat).example


def places_by_gradient(mass: NDArray[np.floating], threat: Threat, count: int) -> Placement:
    """The placements that hold most of ``mass``, which do not overlap much, the first one first.

    Args:
      mass: ``float[h, w]``, how much each pixel matters, such as the size of a gradient.
      threat: one patch, of one or several shapes; each gives its own placements in turn.
      count: how many.

    Returns:
      ``int64[P, 1, 4]``, P at most ``count``: of two that are closer than half a patch on both
      axes, the one with more is kept.

    Raises:
      ValueError: for several patches at once, or mass of another size.
    """
    if len(threat) != 1:
        raise ValueError(f"threat: expected one patch, got {threat}")
    if np.shape(mass) != threat.image_size:
        raise ValueError(f"mass: expected {list(threat.image_size)}, got {list(np.shape(mass))}")
    sums = np.pad(np.asarray(mass, np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    candidates: list[tuple[float, Shape, int, int]] = []
    for height, width in threat.shapes:
        inside = sums[height:, width:] - sums[:-height, width:]
        inside = inside - sums[height:, :-width] + sums[:-height, :-width]
        inside = np.where(threat.allowed((height, width)), inside, -np.inf)
        for _ in range(count):
            row, column = divmod(int(inside.argmax()), inside.shape[1])
            if inside[row, column] == -np.inf:
                break
            candidates.append(
                (float(inside[row, column]) / (height * width), (height, width), row, column)
            )
            near = (slice(max(0, row - height // 2), row + height // 2 + 1),
                    slice(max(0, column - width // 2), column + width // 2 + 1))  # fmt: skip
            inside[near] = -np.inf
    candidates.sort(key=lambda one: -one[0])
    made = [[[*shape, row, column]] for _, shape, row, column in candidates[:count]]
    return np.asarray(made, np.int64).reshape(-1, 1, 4)


def places_everywhere(threat: Threat, *, most: int) -> NDArray[np.int64]:
    """The placements of the finest grid that has no more than so many, of one patch.

    Raises:
      ValueError: for several patches at once, or fewer than one placement of each shape.
    """
    if len(threat) != 1:
        raise ValueError(f"threat: expected one patch, got {threat}")
    if most < len(threat.shapes):
        raise ValueError(f"most: expected at least {len(threat.shapes)}, got {most}")
    allowed = sum(int(threat.allowed(shape).sum()) for shape in threat.shapes)
    stride = max(1, math.isqrt(allowed // most))
    while len(places := places_on_grid(threat, stride=stride)) > most:
        stride += 1
        if stride > max(threat.image_size):  # of each shape its first and last rows and columns
            return places[:: -(-len(places) // most)]
    return places


def best_apart(places: NDArray[np.int64], losses: NDArray[np.floating], count: int) -> list[int]:
    """Numbers of the places of least loss, the least first, none of which is near another.

    Args:
      places: ``int64[P, K, 4]``.
      losses: ``float[P]``.
      count: how many, at most.
    """
    chosen: list[int] = []
    for number in np.argsort(losses, kind="stable").tolist():
        if len(chosen) == count:
            break
        if not any(are_near(places[number], places[other]) for other in chosen):
            chosen.append(number)
    return chosen


def are_near(one: Placement, other: Placement) -> bool:
    """Whether every patch is within half its size of the other's."""
    away = np.abs(one[:, 2:] - other[:, 2:])
    return bool((2 * away < one[:, :2]).all())


def _of_one_patch(
    threat: Threat, shapes: tuple[Shape, ...], stride: int
) -> list[NDArray[np.int64]]:
    made = []
    for shape in shapes:
        allowed = threat.allowed(shape)
        wanted = np.zeros_like(allowed)
        rows, columns = (sorted({*range(0, n, stride), n - 1}) for n in allowed.shape)
        wanted[np.ix_(rows, columns)] = True
        made += [np.asarray([*shape, r, c], np.int64) for r, c in np.argwhere(wanted & allowed)]
    return made
