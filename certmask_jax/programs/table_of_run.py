"""What the table of a run tells its page: labels under masks, for each defense that it is of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.report import Report
from certmask_jax.defenses import Defense
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.pages.inspected import Inspected, inspect
from certmask_jax.pages.map_limits import MapLimits
from certmask_jax.programs import defense_specs, evidence_entries
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import PredictionTable
from certmask_jax.tables.saved_table import SavedTable

MOST_DEFENSES = 8
"""Results of which images are looked at one by one; of more the page has the numbers alone."""

_ENTRIES_AT_ONCE = 1 << 22


def inspected_rows(
    report: Report,
    saved: SavedTable,
    rows: NDArray[np.intp],
    unseen: dict[int, str],
    limits: MapLimits,
) -> tuple[dict[int, Inspected], list[str]]:
    """What the table tells of the rows that are shown, for each defense that it is of.

    Of the others ``unseen`` is told why there is no map.
    """
    place_of = {one: place for place, one in enumerate(saved.ids)}
    try:
        places = np.array([place_of[report.ids[row]] for row in rows.tolist()], np.intp)
    except KeyError as error:
        return {}, [f"The table is of other images than the results ({error} is not in it)."]
    labels = report.per_image["label"][rows]
    if (saved.labels[places] != labels).any():
        return {}, ["The table has other labels than the results, so no labels are shown."]
    made: dict[int, Inspected] = {}
    said = []
    left_out = 0
    for number, result in enumerate(report.defenses):
        if evidence_entries.is_on_evidence(result.spec) or not result.masked_images:
            continue
        if len(made) == MOST_DEFENSES:
            left_out += 1
            unseen[number] = f"maps are of the first {MOST_DEFENSES} results that have tables"
            continue
        try:
            defense: Defense = defense_specs.build(
                result.spec, result.threat.image_size, result.threat
            )
            columns = saved.table.columns(defense.masked_images)
        except (ValueError, ImportError) as error:
            said.append(f"{result.spec}: its labels cannot be shown ({error}).")
            unseen[number] = f"its masked images are not in the table ({error})"
            continue
        part = _taken(saved.table, places, columns, defense.masked_images)
        certified = result.per_image["worst_case"][rows]
        made[number] = inspect(
            defense, part, labels, certified, margin_guard=report.margin_guard, limits=limits
        )
    if left_out:
        said.append(
            f"Maps are shown of the first {MOST_DEFENSES} results that have tables; {left_out} "
            "more have their verdicts alone."
        )
    return made, said


def _taken(
    table: PredictionTable,
    places: NDArray[np.intp],
    columns: NDArray[np.intp],
    images: MaskedImages,
) -> PredictionTable:
    """Some rows and columns of a table on the disk, of which only a part is held at a time."""
    at_once = max(1, _ENTRIES_AT_ONCE // max(1, len(columns)))
    parts = []
    for start in range(0, len(table), at_once):
        own = places[(places >= start) & (places < start + at_once)] - start
        if len(own):
            block = table.take(slice(start, start + at_once), columns, images)
            parts.append(block.map(lambda column, own=own: column[own]))  # type: ignore[misc]
    joined = Outputs(*map(np.concatenate, zip(*parts, strict=True)))
    return PredictionTable.of(joined, images, table.num_classes)
