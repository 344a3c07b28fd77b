"""What a run on evidence kept of each place: its maps, and why an image holds or does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.by_placement import FAILS, HOLDS
from certmask_jax.defenses.defense import Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.defenses.evidence_places import Unit
from certmask_jax.pages.inspected import GUARDED, PlaceMap
from certmask_jax.pages.map_limits import USUAL, MapLimits
from certmask_jax.pages.mask_words import counted, name_of

_LEAST = 2.0**-21  # leads that hold are larger
LEVELS = {
    "votes": (-8.0, -2.0, 0.0, _LEAST, 3.0, 10.0),
    "evidence": (-1.0, -0.1, -0.01, _LEAST, 0.1, 1.0),
}
"""Where the levels of leads begin, of votes and of mean evidence; the lowest has no beginning."""

_WORDS = {
    "votes": ("below -8", "-8 to -2", "-2 to 0", "0 (lost)", "up to 3", "3 to 10", "10 or more"),
    "evidence": ("below -1", "-1 to -0.1", "-0.1 to -0.01", "-0.01 to 0", "up to 0.1",
                 "0.1 to 1", "1 or more"),
}  # fmt: skip
_COUNTED_IN = {"votes": "in votes", "evidence": "in the mean evidence of a cell"}


class EvidenceMaps(NamedTuple):
    """One defense on the evidence of T images.

    Attributes:
      defense: the value itself.
      maps: a map for each shape of the patch, or for some. Its margins are leads; infinite where
        the certificate has none, NaN where evidence is not finite.
      reached: of each map ``int[S]``, how many cells or bands each place counts as reaching.
      unit: what leads are counted in; None where there are none.
      note: what has to be said beside them; else empty.
      counts: ``int64[T, K]``, votes of each class, where the evidence of votes was kept.
      margin_guard: of the report; it takes images as a whole.
    """

    defense: EvidenceDefense
    maps: tuple[PlaceMap, ...]
    reached: tuple[NDArray[np.intp], ...]
    unit: Unit | None
    note: str
    counts: NDArray[np.int64] | None = None
    margin_guard: float = 0.0


def maps_on_evidence(
    defense: EvidenceDefense,
    holds: NDArray[np.bool_],
    leads: NDArray[np.float16] | None,
    *,
    guarded_out: NDArray[np.bool_] | None = None,
    margin_guard: float = 0.0,
    limits: MapLimits = USUAL,
) -> EvidenceMaps:
    """The maps of T images.

    Args:
      defense: whose certificate has places.
      holds: ``bool[T, S]``, the verdict at each.
      leads: ``float16[T, S]``; None where it has none.
      guarded_out: ``bool[T]``, which images hold at every place, but not within the guard.
      margin_guard: of the report.
      limits: what maps may take.

    Raises:
      NoPlacesError: for a defense without places.
    """
    places = defense.places
    shapes = limits.some_of(defense.threat.shapes)
    note = ""
    if len(shapes) < len(places.spots):
        note = f"{len(shapes)} of the {len(places.spots)} shapes of the patch have a map here."
    if margin_guard:
        note = f"{note} Places are without the margin guard, which takes whole images.".strip()
    maps, reached = [], []
    for spots, columns in zip(places.spots, places.columns, strict=True):
        if spots.shape not in shapes:
            continue
        states = np.where(holds[:, columns], np.int8(HOLDS), np.int8(FAILS))
        if guarded_out is not None:
            states[guarded_out] = GUARDED
        margins = np.full(states.shape, np.inf, np.float32)
        if leads is not None:
            margins = leads[:, columns].astype(np.float32)
        maps.append(PlaceMap(spots, states, margins, places.exact))
        reached.append(places.reached[columns])
    return EvidenceMaps(
        defense,
        tuple(maps),
        tuple(reached),
        places.unit,
        note,
        margin_guard=margin_guard,
    )


def look_of(one: EvidenceMaps) -> dict[str, Any]:
    """How its maps are drawn and called, JSON-able; the maps themselves are ``image_data``'s."""
    defense, unit = one.defense, one.unit
    cells = defense.of_cells
    look: dict[str, Any] = {
        "size": list(defense.threat.image_size),
        "single": [],
        "pair": [],
        "reach": "bands" if cells is None else "cells",
        "marginOf": "Smallest logit margin of the bands and of the image itself"
        if cells is None else "Logit margin of the image itself",
        "note": one.note,
    }  # fmt: skip
    if cells is None:
        look["parts"] = defense.num_parts
    else:
        rows, columns = cells.cells
        look["parts"] = rows * columns
        look["window"] = "x".join(map(str, cells.window))
    if unit is not None:
        look["levels"] = list(_WORDS[unit])
        look["levelsOf"] = f"Lead of the true class in the worst case, {_COUNTED_IN[unit]}"
    return look


def levels_of(leads: NDArray[np.float32], unit: Unit) -> str:
    """The level of each lead, as a digit; ``-`` where it is not finite."""
    levels = np.searchsorted(LEVELS[unit], leads, side="right")
    return "".join(np.where(np.isfinite(leads), levels.astype("U1"), "-").tolist())


def why_on_evidence(
    one: EvidenceMaps,
    row: int,
    label: int,
    answer: int,
    certified: bool,
    class_names: Sequence[str],
) -> str:
    """Why no patch can change the outcome on an image, or where one may.

    Args:
      one: the defense on T images.
      row: which of them.
      label: the true one.
      answer: of the defense without a patch.
      certified: what the report says of the image.
      class_names: of the data.
    """
    detects = one.defense.guarantee == Guarantee.DETECTION
    is_local = one.defense.of_cells is not None
    parts = "window of cells that it reaches is" if is_local else "bands that it meets are"
    if certified:
        outcome = "brings about a wrong answer without an alert" if detects else "changes this"
        return f"No patch at any place {outcome}, whatever the {parts} made to say."
    if answer != label:
        return (
            f"Without any patch the answer is {name_of(answer, class_names)}, not "
            f"{name_of(label, class_names)}."
        )
    if any(np.isnan(each.margins[row]).any() for each in one.maps):
        return "The evidence is not finite, and such images are not certified."
    if any((each.states[row] == GUARDED).any() for each in one.maps):
        return (
            "No patch at any place changes this here, but that is not proved of all evidence less "
            f"than {one.margin_guard / 2:g} away, as the margin guard of {one.margin_guard:g} asks."
        )
    for each, reached in zip(one.maps, one.reached, strict=True):
        failing = np.flatnonzero(each.states[row] == FAILS)
        if not len(failing):
            continue
        leads = each.margins[row, failing]
        spot = int(failing[leads.argmin() if np.isfinite(leads).all() else 0])
        top, left = each.spots.example[spot].tolist()
        size = f"{'x'.join(map(str, each.spots.shape))} " if len(one.maps) > 1 else ""
        where = f"a {size}patch at row {top}, column {left}"
        what = (
            f"{where} could change the answer"
            if each.exact
            else f"nothing is proved against {where}"
        )
        if is_local:
            why = f"what is left without the window of {look_of(one)['window']} cells around it"
        else:
            why = f"what is left without the {counted(int(reached[spot]), 'band')} that it meets"
        return (
            f"{what[0].upper()}{what[1:]}: {why} is too little for {name_of(label, class_names)}."
        )
    return "A patch of a shape that has no map here could change the answer."
