"""The worst case at each place of the first of several patches, wherever the others are.

With several patches at once what an attacker picks is no point of a map but two or more. For each
place of the first patch this asks of all places of the others, and keeps the worst: a place holds
if no choice of the others wins. So an image is certified iff all places of the first patch hold.

A masked image hides a placement iff it hides each patch of it, and what is hidden by fewer masked
images is worse. So of the others only the minimal groups are looked at (``masks.placements``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.defenses import by_placement, patch_spots
from certmask_jax.defenses.by_placement import FAILS, HOLDS, OPEN
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.patch_spots import Spots
from certmask_jax.masks import placements
from certmask_jax.masks.threats import Shape, Threat
from certmask_jax.tables.prediction_table import PredictionTable

MOST_PAIRS = 1 << 14
"""Places of the first patch times groups of the others: more are refused, if not told otherwise."""


class FirstSpots(NamedTuple):
    """The spots of the first patch, and what the others make of each.

    Attributes:
      first: the spots of the first patch.
      hidden: ``bool[J, V]``, which masked images hide all patches, for J choices of all of them.
      choice: ``int[S, G]``, which of these it is with each group of the others.
      others: ``int64[G, K - 1, 4]``, height, width, row and column of each of the other patches in
        one placement of each group.
      of_choice: ``int[J, 2]``, a spot and a group that make each choice.
    """

    first: Spots
    hidden: NDArray[np.bool_]
    choice: NDArray[np.intp]
    others: NDArray[np.int64]
    of_choice: NDArray[np.intp]

    def threat_at(self, spot: int) -> Threat:
        """The patches of one choice, each where it is.

        They are inside the union of their places. What else fits in there lies inside that union,
        so whatever hides them all hides it too.
        """
        at, group = self.of_choice[spot].tolist()
        boxes = [(*self.first.shape, *self.first.example[at].tolist())]
        boxes += [tuple(other) for other in self.others[group].tolist()]
        return Threat(
            self.first.image_size,
            tuple(((height, width),) for height, width, _, _ in boxes),
            tuple((row, col, row + height, col + width) for height, width, row, col in boxes),
        )


def first_spots_of(
    defense: Defense, shape: Shape | None = None, *, most_pairs: int = MOST_PAIRS
) -> FirstSpots:
    """The spots of the first patch of a defense's own threat.

    Args:
      defense: against two patches at once, or more.
      shape: of the first patch, which is any that may have it; may be left out if the threat has
        only one.
      most_pairs: places of the first patch times groups of the others.

    Raises:
      ValueError: for a threat of one patch; a shape that it does not have; for more choices than
        can be looked at (``most_pairs``, ``patch_spots.MOST_ENTRIES``).
    """
    threat, images = defense.threat, defense.masked_images
    if len(threat) < 2:
        raise ValueError(f"{defense.name}: expected several patches at once, got {threat}")
    shape = threat.shapes[0] if shape is None and len(threat.shapes) == 1 else shape
    which = [number for number, shapes in enumerate(threat.patches) if shape in shapes]
    if shape is None or not which:
        raise ValueError(f"shape: expected one of {list(threat.shapes)}, got {shape!r}")
    # Each patch that may have the shape leaves others beside it.
    rests = dict.fromkeys(threat.patches[:n] + threat.patches[n + 1 :] for n in which)
    first = by_placement.spots_of_one(defense, shape)
    parts = [
        placements.groups(images.boxes, Threat(threat.image_size, rest, threat.region))
        for rest in rests
    ]
    others, example = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    count = len(first.hidden) * len(others)
    if count > most_pairs:
        raise ValueError(
            f"{defense.name}: expected at most {most_pairs:,} places of one patch times groups of "
            f"the others, got {len(first.hidden):,} x {len(others):,}"
        )
    together = first.hidden[:, None, :] & others[None, :, :]
    hidden, at, number = np.unique(
        together.reshape(count, -1), axis=0, return_index=True, return_inverse=True
    )
    if hidden.size > patch_spots.MOST_ENTRIES:
        raise ValueError(
            f"{defense.name}: expected at most {patch_spots.MOST_ENTRIES:,} choices times masked "
            f"images, got {len(hidden):,} x {len(images):,}"
        )
    of_choice = np.stack(np.divmod(at, len(others)), axis=1)
    choice = number.reshape(len(first.hidden), len(others))
    return FirstSpots(first, hidden, choice, example, of_choice)


def verdicts_at_first(
    defense: Defense, table: PredictionTable, labels: ArrayLike, spots: FirstSpots
) -> tuple[NDArray[np.int8], NDArray[np.intp]]:
    """The worst case at each spot of the first patch, wherever the others are.

    Args:
      defense: any that can be built against a part of its threat.
      table: of T images, with the defense's masked images among its columns.
      labels: true labels, ``int[T]``.
      spots: of the same defense.

    Returns:
      ``int8[T, S]`` as of ``by_placement.verdicts_at``; and ``int[T, S]``, where a place fails, a
      group of the others with which it does (else -1).

    Raises:
      ValueError: as ``by_placement.verdicts_at``.
    """
    each = by_placement.verdicts_at(defense, table, labels, spots)
    states = np.full((len(each), len(spots.choice)), HOLDS, np.int8)
    worst = np.full(states.shape, -1, np.intp)
    for spot, choices in enumerate(spots.choice):
        own = each[:, choices]
        states[(own == OPEN).any(axis=1), spot] = OPEN
        fails = (own == FAILS).any(axis=1)
        states[fails, spot] = FAILS
        worst[fails, spot] = (own[fails] == FAILS).argmax(axis=1)
    return states, worst
