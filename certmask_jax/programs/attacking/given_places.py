"""Places that are given, or drawn for a patch that may be smaller than what a threat allows.

A patch of any size is allowed wherever it lies wholly inside one of the threat's: the attacker may
leave the rest of it as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks.threats import Shape, Threat

At = tuple[int, int]
"""Row and column of a patch's top left pixel."""


def read_place(text: str) -> At:
    """``"3,17"`` -> (3, 17)."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"expected ROW,COLUMN in pixels, such as 3,17, got {text!r}")
    return int(parts[0]), int(parts[1])


def place_of(
    size: Shape, threat: Threat, random: np.random.Generator, at: At | None = None
) -> NDArray[np.int64]:
    """Where a given patch is put on an image: as many times as the threat has patches.

    Args:
      size: height and width of the patch, which the threat allows.
      threat: what is allowed.
      random: draws the place.
      at: in the place of a random one; see ``check_place``.

    Returns:
      ``int64[K, 4]``: height, width, row and column of each.
    """
    height, width = size
    if at is not None:
        return np.asarray([[height, width, *at]], np.int64)
    made = []
    for shapes in threat.patches:
        around = hosts(size, shapes)
        host = around[random.integers(len(around))]
        rows, columns = np.nonzero(threat.allowed(host))
        place = random.integers(len(rows))
        row = rows[place] + random.integers(host[0] - height + 1)
        column = columns[place] + random.integers(host[1] - width + 1)
        made.append([height, width, row, column])
    return np.asarray(made, np.int64)


def check_place(size: Shape, threat: Threat, at: At) -> None:
    """Refuses a place for a patch of this size that the threat does not allow; ``ValueError``."""
    (height, width), (row, column) = size, at
    if len(threat) != 1:
        raise ValueError(f"--place: expected a threat of one patch, got {threat}; leave it out")
    for host in hosts(size, threat.shapes):
        allowed = threat.allowed(host)
        first = max(0, row - host[0] + height), max(0, column - host[1] + width)
        around = allowed[first[0] : row + 1, first[1] : column + 1]
        inside = row + height <= threat.image_size[0] and column + width <= threat.image_size[1]
        if inside and around.any():
            return
    raise _outside(size, threat, at)


def places_at(threat: Threat, at: At) -> NDArray[np.int64]:
    """The patches of a threat at a place, one of each of its shapes that is allowed there.

    Returns:
      ``int64[P, 1, 4]``, P at least 1.

    Raises:
      ValueError: for a place where none is, or a threat of several patches.
    """
    if len(threat) != 1:
        raise ValueError(f"--place: expected a threat of one patch, got {threat}; leave it out")
    made = []
    for shape in threat.shapes:
        allowed = threat.allowed(shape)
        if at[0] < allowed.shape[0] and at[1] < allowed.shape[1] and allowed[at]:
            made.append([[*shape, *at]])
    if not made:
        raise _outside(threat.shapes[0], threat, at)
    return np.asarray(made, np.int64)


def hosts(size: Shape, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that a patch of this size is inside of."""
    return [shape for shape in shapes if shape[0] >= size[0] and shape[1] >= size[1]]


def _outside(size: Shape, threat: Threat, at: At) -> ValueError:
    return ValueError(
        f"--place {at[0]},{at[1]}: expected a place inside what the threat allows ({threat}), but "
        f"a patch of {size[0]}x{size[1]} pixels is not wholly inside it there"
    )
