"""From what is kept of a run on evidence to a report, alone or beside one of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax._settings import SettingError
from certmask_jax.certification import kept_sources
from certmask_jax.certification.defense_results import result_of
from certmask_jax.certification.report import DefenseResult, Report, notices, wilson_interval
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.files import fingerprint
from certmask_jax.tables.evidence_store import SavedEvidence


def certify_evidence(saved: SavedEvidence, defenses: Sequence[EvidenceDefense]) -> Report:
    """The report of a run on evidence.

    Args:
      saved: a finished run; images that are left out count nowhere.
      defenses: any of those that it was evaluated for; with evidence that was kept, any others on
        the same cells or bands, which are evaluated here.

    Raises:
      ValueError: for a defense that it was not evaluated for, or when no image counts.
    """
    counted, rows = saved.counted, saved.rows
    count = int(counted.sum())
    if not count:
        raise ValueError(f"expected an image that counts, but all {len(counted)} are left out")
    labels, undefended = rows.labels[counted], rows.undefended[counted]
    margins = rows.margins[counted]
    ids = tuple(one for one, counts in zip(rows.rows.ids, counted, strict=True) if counts)
    accuracy = float((undefended == labels).mean())
    provenance = saved.about["provenance"]
    passes = count * int(saved.about.get("passes_each", 1))
    return Report(
        num_images=count,
        forward_passes={"made": passes, "full_table": passes},
        undefended_accuracy=accuracy,
        intervals={"undefended_accuracy": wilson_interval(accuracy, count)},
        defenses=tuple(_result(defense, saved) for defense in defenses),
        non_finite_images=tuple(ids[i] for i in np.flatnonzero(np.isnan(margins))),
        provenance=provenance,
        notices=notices.recorded(provenance),
        class_names=tuple(provenance.get("class_names") or ()),
        left_out={rows.rows.ids[row]: why for row, why in sorted(rows.rows.left_out.items())},
        ids=ids,
        per_image={"label": labels, "undefended": undefended, "smallest_margin": margins},
    )


def beside(table: Report, evidence: Report, on_evidence: Sequence[bool]) -> Report:
    """One report of two of the same images.

    Args:
      table: of defenses that mask images; what is said of the run is what it says.
      evidence: of defenses on evidence.
      on_evidence: of all results in their order, whether the next one is on evidence.

    Raises:
      ValueError: for reports of other images than each other's.
    """
    if tuple(table.ids) != tuple(evidence.ids):
        raise ValueError(
            "expected a table and evidence of the same images, but others are left out; give the "
            "command again with the images as they were"
        )
    first, second = iter(table.defenses), iter(evidence.defenses)
    passes = {
        **table.forward_passes,
        **{key: table.forward_passes[key] + number
           for key, number in evidence.forward_passes.items()},
    }  # fmt: skip
    non_finite = dict.fromkeys([*table.non_finite_images, *evidence.non_finite_images])
    return dataclasses.replace(
        table,
        forward_passes=passes,
        non_finite_images=tuple(non_finite),
        defenses=tuple(next(second if one else first) for one in on_evidence),
        provenance={**evidence.provenance, **table.provenance},
    )


def _found(
    defense: EvidenceDefense, saved: SavedEvidence
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Answers and verdicts of the images that count: as of the run, or on evidence it kept."""
    known = saved.fingerprint["defenses"]
    wanted = fingerprint.plain(defense.facts)
    if wanted in known:
        place = known.index(wanted)
        widths = [int(number) for number in saved.about["verdicts"]]
        start = sum(widths[:place])
        counted = saved.counted
        verdicts = saved.rows.verdicts[counted, start : start + widths[place]]
        return saved.rows.answers[counted, place], verdicts
    answers_and_verdicts = kept_sources.verdicts_of(defense, saved)
    if answers_and_verdicts is None:
        is_kept = "kept" in saved.about
        raise SettingError(
            lambda say: (
                f"{defense.name}: expected a defense that the run was evaluated for, got "
                f"{defense!r}; "
                + (
                    "evidence is of other cells or bands, so evaluate with it"
                    if is_kept
                    else f"evidence is not kept, so evaluate with it, and with {say('keep', True)} "
                    "where others are to follow"
                )
            )
        )
    return answers_and_verdicts


def _result(defense: EvidenceDefense, saved: SavedEvidence) -> DefenseResult:
    counted = saved.counted
    labels = saved.rows.labels[counted]
    answer, verdicts = _found(defense, saved)
    names = ("worst_case", *defense.condition_names)
    proved = {name: verdicts[:, i] for i, name in enumerate(names)}
    proved = {"worst_case": proved["worst_case"], "certificate": proved["worst_case"], **proved}
    per_image = {"answer": answer, **proved, "smallest_margin": saved.rows.margins[counted]}
    return result_of(defense, per_image, labels)
