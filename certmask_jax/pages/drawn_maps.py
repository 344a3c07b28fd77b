"""Maps of places as plain values for the script of a page: their spots, and a sign for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses import by_placement
from certmask_jax.pages.inspected import GUARDED, PlaceMap

MARGIN_LEVELS = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0)
"""Where the levels of margins begin; the lowest is 0."""

_STATES = {
    by_placement.HOLDS: "h",
    by_placement.FAILS: "f",
    by_placement.OPEN: "o",
    GUARDED: "g",
}


def drawn(each: PlaceMap, single: NDArray[np.intp], *, others: int) -> dict[str, Any]:
    """The places of a patch of one shape, and which masks alone hide it there."""
    spots = each.spots
    ends = [size - side + 1 for size, side in zip(spots.image_size, spots.shape, strict=True)]
    return {
        "exact": each.exact,
        "shape": list(spots.shape),
        "others": others,
        "rows": spots.rows.tolist(),
        "cols": spots.cols.tolist(),
        "ends": ends,
        "spot": spots.spot.tolist(),
        "hiding": [
            np.flatnonzero(hidden[single]).tolist() if len(single) else []
            for hidden in spots.hidden
        ],
        **({} if each.others is None else {"second": each.others.tolist()}),
    }


def add_places(entry: dict[str, Any], maps: Sequence[PlaceMap], place: int) -> None:
    """What each map says of an image that is not certified."""
    states = [each.states[place] for each in maps]
    entry["s"] = ["".join(_STATES[int(state)] for state in own) for own in states]
    for key, wanted in (
        ("wide", by_placement.FAILS),
        ("openShare", by_placement.OPEN),
        ("guardShare", GUARDED),
    ):
        entry[key] = [
            round(100 * int(each.spots.sizes[own == wanted].sum()) / int(each.spots.sizes.sum()), 1)
            for each, own in zip(maps, states, strict=True)
        ]
    worst = [[] if each.worst is None else each.worst[place].tolist() for each in maps]
    if any(worst):
        entry["with"] = worst


def level(margin: float) -> str:
    """The level of a margin, as a digit; ``-`` where there is none."""
    if not np.isfinite(margin):
        return "-"
    return str(int(np.searchsorted(MARGIN_LEVELS, margin, side="right")))
