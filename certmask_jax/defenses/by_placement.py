"""The worst case place by place: where one patch could change what a defense answers of an image.

A defense's worst case asks about all placements of its threat at once. ``Defense.against`` asks the
same about fewer, so *the worst case against the patch at one place alone* is the vulnerability of
that place, and it holds at every place if and only if the worst case does, as an attacker picks
one placement (soundness, definitions). Nothing here knows a rule: whatever defense can be built
against a smaller threat has a map, and is as exact there as it says (``Defense.exact``). For the
defenses that are asked most, ``places_at_once`` has the same verdicts in one step.

Places that the same masked images hide are one *spot*; all of a spot have one verdict. Unlike the
groups of a proof, no spot is dropped because another one is hidden by fewer masked images: that
tells the worst of all places, and a map tells each.

Of a table that was evaluated only as far as its verdicts needed, a place may stay open. It never
gets a verdict that the missing labels could turn.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.patch_spots import Spots, spots_under
from certmask_jax.defenses.patchcleanser_masking import ChallengerMasking
from certmask_jax.defenses.places_at_once import all_places, by_good_rows, rows_of
from certmask_jax.masks.threats import Shape, Threat
from certmask_jax.tables.outputs import NO_LABEL
from certmask_jax.tables.prediction_table import PredictionTable, check_labels

HOLDS, FAILS, OPEN = 1, 0, -1
"""No patch there changes the outcome; one could; not enough was evaluated to tell."""


def spots_of(defense: Defense, shape: Shape | None = None) -> Spots:
    """The spots of a defense's own threat.

    Args:
      defense: against one patch at a time.
      shape: which of the threat's shapes; may be left out if there is only one.

    Raises:
      ValueError: for a threat of several patches at once, whose placements have no map; for a shape
        that the threat does not have; for more spots than can be looked at one by one
        (``MOST_ENTRIES``).
    """
    threat = defense.threat
    if len(threat) > 1:
        raise ValueError(
            f"{defense.name}: expected one patch at a time, whose places make a map, got {threat}; "
            "by_first_placement has maps of several"
        )
    shape = threat.shapes[0] if shape is None and len(threat.shapes) == 1 else shape
    if shape not in threat.shapes:
        raise ValueError(f"shape: expected one of {list(threat.shapes)}, got {shape!r}")
    return spots_of_one(defense, shape)


def spots_of_one(defense: Defense, shape: Shape) -> Spots:
    """Where one patch of ``shape`` may be, whatever others the threat of a defense has.

    Raises:
      ValueError: for more spots than can be looked at one by one (``MOST_ENTRIES``).
    """
    boxes = defense.masked_images.boxes
    return spots_under(boxes, defense.threat, shape, name=defense.name)


class Places(Protocol):
    """What an attacker may pick, one by one: spots of a patch, or of several at once."""

    @property
    def hidden(self) -> NDArray[np.bool_]: ...  # [S, V]
    def threat_at(self, spot: int) -> Threat: ...


def verdicts_at(
    defense: Defense, table: PredictionTable, labels: ArrayLike, spots: Places
) -> NDArray[np.int8]:
    """The worst case at each spot alone: ``int8[T, S]`` of ``HOLDS``, ``FAILS`` and ``OPEN``.

    Every column is ``dataclasses.replace(defense, against=spots.threat_at(s)).worst_case(...)``,
    so it includes that the image is answered rightly without a patch. Of a defense whose worst case
    is a lower bound, ``FAILS`` means that nothing is proved there.

    Args:
      defense: any that can be built against a part of its threat.
      table: of T images, with the defense's masked images among its columns.
      labels: true labels, ``int[T]``.
      spots: of the same defense.

    Raises:
      ValueError: for labels that are not T classes; for a table that lacks masked images.
    """
    true = check_labels(labels, len(table), table.num_classes)
    own = table.select(defense.masked_images)
    verdicts = np.full((len(own), len(spots.hidden)), OPEN, np.int8)
    if not len(own):
        return verdicts
    by_rows = by_good_rows(defense, spots.hidden)
    if by_rows.any():
        verdicts[:, by_rows] = _of_good_rows(defense, own, true, spots.hidden[by_rows])
    rest = np.flatnonzero(~by_rows)
    if len(rest):
        verdicts[:, rest] = _one_by_one(defense, own, true, spots, rest)
    return verdicts


def _of_good_rows(
    defense: Defense, own: PredictionTable, true: NDArray[np.int32], hidden: NDArray[np.bool_]
) -> NDArray[np.int8]:
    """Verdicts where the worst case holds iff a mask that hides the patch has a good row."""
    single, pair = rows_of(defense)
    known = own.known
    right = known & own.sure & (np.asarray(own.predictions) == true[:, None])
    good, lost = right[:, pair].all(axis=2), (known & ~right)[:, pair].any(axis=2)
    states = np.full((len(own), len(hidden)), OPEN, np.int8)
    for spot, hides in enumerate(hidden[:, single]):
        states[good[:, hides].any(axis=1), spot] = HOLDS
        states[lost[:, hides].all(axis=1), spot] = FAILS
    states[(known & ~own.sure).any(axis=1)] = FAILS  # never certified
    return states


def _one_by_one(
    defense: Defense,
    own: PredictionTable,
    true: NDArray[np.int32],
    spots: Places,
    chosen: NDArray[np.intp],
) -> NDArray[np.int8]:
    known, rows = own.known, np.arange(len(own))
    # What is not known is a label that is wrong for each image (verdicts that stand are not moved
    # by it: see ``Defense.undecided``), and sure, as to be not sure would be known.
    wrong = np.where(true == 0, min(1, own.num_classes - 1), 0)[:, None]
    filled = dataclasses.replace(
        own,
        predictions=np.where(known, own.predictions, wrong).astype(np.int16),
        margins=np.where(known, own.margins, np.float16(1)),
        confidences=np.where(known, own.confidences, np.float16(1)),
    )
    spoiled = (known & ~own.sure).any(axis=1) & defense.needs_all_sure
    settled = np.asarray(known.all(axis=1) | spoiled)
    states = np.full((len(own), len(chosen)), OPEN, np.int8)
    at_once = all_places(defense, filled, true, spots.hidden[chosen])
    tells = type(defense).undecided is not Defense.undecided  # else only all that is known
    for place, spot in enumerate(chosen.tolist()):
        decided = settled.copy()
        if at_once is None or (tells and not settled.all()):
            at = dataclasses.replace(defense, against=spots.threat_at(spot))
            for row in rows[~settled & tells]:
                seen = Seen.in_row(own, row, known[row])
                decided[row] = not at.undecided(seen, int(true[row])).any()
        if at_once is not None:
            proved = at_once[:, place]
        else:
            with jax.disable_jit():  # of as many programs as there are spots none is worth it
                proved = at.worst_case(filled, true)
        states[decided, place] = proved[decided]
    return states


def is_exact(defense: Defense, spots: Places) -> bool:
    """Whether ``FAILS`` means that a patch there can win, at every spot; else nothing is proved.

    A worst case that is exact over all places may be a bound at some: challenger masking's is one
    where several masks hide the patch.
    """
    if isinstance(defense, ChallengerMasking):
        single, _ = rows_of(defense)
        return bool((spots.hidden[:, single].sum(axis=1) == 1).all())
    return defense.exact


def smallest_margins(table: PredictionTable, spots: Spots) -> NDArray[np.float32]:
    """What a verdict at each spot hangs on: ``float32[T, S]``.

    The smallest logit margin among the masked images that hide the patch there and were evaluated;
    infinite where none was, 0 where one has no label.

    Args:
      table: of T images under the V masked images of the spots' defense, in its order.
      spots: of that defense.
    """
    margins = np.asarray(table.margins).astype(np.float32)
    margins = np.where(np.asarray(table.predictions) == NO_LABEL, 0, margins)
    margins = np.where(table.known & ~np.isnan(margins), margins, np.inf)
    parts = [np.where(hidden, margins, np.inf).min(axis=1) for hidden in spots.hidden]
    return np.stack(parts, axis=1).astype(np.float32)
