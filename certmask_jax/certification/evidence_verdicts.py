"""From what is kept of a run on evidence to a report, alone or beside one of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._settings import SettingError
from certmask_jax.certification import kept_sources
from certmask_jax.certification.defense_results import result_of
from certmask_jax.certification.report import DefenseResult, Report, notices, wilson_interval
from certmask_jax.defenses.evidence_defense import EvidenceDefense, check_guarded
from certmask_jax.defenses.guarded_evidence import checked_guard
from certmask_jax.files import fingerprint
from certmask_jax.tables.evidence_store import SavedEvidence


def certify_evidence(
    saved: SavedEvidence, defenses: Sequence[EvidenceDefense], *, margin_guard: float = 0.0
) -> Report:
    """The report of a run on evidence.

    Args:
      saved: a finished run; images that are left out count nowhere.
      defenses: any of those that it was evaluated for; with evidence that was kept, any others on
        the same cells or bands, which are evaluated here.
      margin_guard: an image is certified only if its worst case holds for all evidence less than
        half of that away (soundness, section 15). None, or that of the run; with evidence that was
        kept, any.

    Raises:
      ValueError: for a defense or a guard that it was not evaluated for, or when no image counts.
    """
    check_guarded(defenses, checked_guard(margin_guard))
    check_guard_of(saved.fingerprint, margin_guard)
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
        defenses=tuple(_result(defense, saved, margin_guard) for defense in defenses),
        margin_guard=margin_guard,
        non_finite_images=tuple(ids[i] for i in np.flatnonzero(np.isnan(margins))),
        provenance=provenance,
        notices=notices.recorded(provenance),
        class_names=tuple(provenance.get("class_names") or ()),
        left_out={rows.rows.ids[row]: why for row, why in sorted(rows.rows.left_out.items())},
        ids=ids,
        per_image={"label": labels, "undefended": undefended, "smallest_margin": margins},
    )


def check_guard_of(facts: Mapping[str, Any], margin_guard: float) -> None:
    """``ValueError`` for a margin guard that a run cannot tell of.

    Args:
      facts: its fingerprint.
      margin_guard: none, or that of the run, can be told; of a run that kept its evidence any.
    """
    of_run = facts.get("margin_guard", 0.0)
    if margin_guard in (0.0, of_run) or facts.get("keep_evidence"):
        return
    guards = " or ".join(f"{one:g}" for one in sorted({0.0, of_run}))
    raise SettingError(
        lambda say: (
            f"margin guard: expected {guards}, which the run on evidence was evaluated with, got "
            f"{margin_guard:g}; evidence is not kept, so evaluate with it into another folder, and "
            f"with {say('keep', True)} where others are to follow"
        )
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
    defense: EvidenceDefense, saved: SavedEvidence, margin_guard: float
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Answers and verdicts of the images that count: as of the run, or on evidence it kept."""
    known, of_run = saved.fingerprint["defenses"], saved.fingerprint.get("margin_guard", 0.0)
    wanted = fingerprint.plain(defense.facts)
    if wanted in known and margin_guard in (0, of_run):
        place = known.index(wanted)
        widths = [int(number) for number in saved.about["verdicts"]]
        start = sum(widths[:place])
        counted = saved.counted
        verdicts = saved.rows.verdicts[counted, start : start + widths[place]]
        if margin_guard:
            verdicts[:, 0] = verdicts[:, -1]  # a copy: the rows were picked one by one
        return saved.rows.answers[counted, place], verdicts
    answers_and_verdicts = kept_sources.verdicts_of(defense, saved, margin_guard)
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


def _result(defense: EvidenceDefense, saved: SavedEvidence, margin_guard: float) -> DefenseResult:
    counted = saved.counted
    labels = saved.rows.labels[counted]
    answer, verdicts = _found(defense, saved, margin_guard)
    names = ("worst_case", *defense.condition_names)
    proved = {name: verdicts[:, i] for i, name in enumerate(names)}
    proved = {"worst_case": proved["worst_case"], "certificate": proved["worst_case"], **proved}
    per_image = {"answer": answer, **proved, "smallest_margin": saved.rows.margins[counted]}
    return result_of(defense, per_image, labels)
