"""What the evidence of a run tells its page: maps of places, as far as verdicts there were kept."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import counted
from certmask_jax.certification.report import Report
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.evidence_places import NoPlacesError
from certmask_jax.files import fingerprint
from certmask_jax.pages.evidence_maps import EvidenceMaps, maps_on_evidence
from certmask_jax.pages.map_limits import USUAL, MapLimits
from certmask_jax.programs import evidence_entries
from certmask_jax.programs.evidence_of_folder import recorded_local, recorded_seen_size
from certmask_jax.tables import evidence_kept
from certmask_jax.tables.evidence_store import SavedEvidence

GONE = "the evidence of the run is not at hand"
OLD = (
    "the run is from before verdicts at places were kept; certify it again into a new folder to "
    "have maps"
)


def maps_of_run(
    report: Report,
    saved: SavedEvidence | None,
    rows: NDArray[np.intp],
    *,
    limits: MapLimits = USUAL,
) -> tuple[dict[int, EvidenceMaps], dict[int, str]]:
    """Maps of the defenses on evidence of a report, and why others of these have none.

    Args:
      report: with rows of images.
      saved: what the run kept; None where it is not at hand.
      rows: which of its images are shown, ``int[T]``.
      limits: what maps may take.

    Returns:
      Two dictionaries by the number of a defense in the report.

    Raises:
      ValueError: for evidence of other images or labels than the report's.
    """
    numbers = [
        number
        for number, result in enumerate(report.defenses)
        if evidence_entries.is_on_evidence(result.spec)
    ]
    if saved is None or not numbers:
        return {}, dict.fromkeys(numbers, GONE)
    place_of = {one: place for place, one in enumerate(saved.rows.rows.ids)}
    unknown = [report.ids[row] for row in rows.tolist() if report.ids[row] not in place_of]
    if unknown:
        raise ValueError(f"the evidence is of other images than the results ({unknown[0]})")
    places = np.array([place_of[report.ids[row]] for row in rows.tolist()], np.intp)
    if (saved.rows.labels[places] != report.per_image["label"][rows]).any():
        raise ValueError("the evidence has other labels than the results")
    known = saved.fingerprint["defenses"]
    known_of_run = saved.about["provenance"]
    local, seen = recorded_local(known_of_run), recorded_seen_size(known_of_run)
    made: dict[int, EvidenceMaps] = {}
    unseen: dict[int, str] = {}
    cells = 0
    for number in numbers:
        result = report.defenses[number]
        try:
            defense = evidence_entries.build(result.spec, result.threat, local, seen)
            facts = fingerprint.plain(defense.facts)
            kept = saved.at_places(known.index(facts)) if facts in known else None
            if kept is None:
                defense.places  # noqa: B018  # says why, if it has none
                unseen[number] = OLD if facts in known else GONE
                continue
            holds, leads = kept
            evidence_maps = maps_on_evidence(
                defense,
                holds[places],
                None if leads is None else leads[places],
                guarded_out=saved.worst_cases(known.index(facts))[places]
                & ~result.per_image["worst_case"][rows],
                margin_guard=report.margin_guard,
                limits=limits,
            )
            cells += sum(one.states.size for one in evidence_maps.maps)
            if cells > limits.evidence_cells:
                unseen[number] = (
                    f"maps of {counted(len(rows), 'image')} with so many places would make the "
                    "page too large; certmask report RUN --most-images N makes one of fewer images"
                )
                continue
            made[number] = _counted(evidence_maps, saved, known.index(facts), places)
        except NoPlacesError as error:
            unseen[number] = str(error)
    return made, unseen


def _counted(
    evidence_maps: EvidenceMaps, saved: SavedEvidence, number: int, places: NDArray[np.intp]
) -> EvidenceMaps:
    """With the votes of each class, of a defense that counts votes and whose evidence was kept."""
    defense = evidence_maps.defense
    if saved.about.get("kept") is None or not isinstance(
        defense, (DerandomizedSmoothing, SmoothedViT)
    ):
        return evidence_maps
    counts: NDArray[np.int64] | None = None
    try:
        for own, evidence in evidence_kept.some_of_run(saved, number, places):
            votes = np.asarray(defense.votes(jnp.asarray(evidence))).sum(axis=1)
            if counts is None:
                counts = np.zeros((len(places), votes.shape[-1]), np.int64)
            counts[own] = votes
    except ValueError as error:
        return evidence_maps._replace(
            note=f"{evidence_maps.note} Votes are not counted ({error}).".strip()
        )
    return evidence_maps._replace(counts=counts)
