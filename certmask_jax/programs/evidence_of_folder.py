"""What the folder of a run holds of defenses on evidence, without a model: certified again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from certmask_jax.certification.evidence_verdicts import beside, certify_evidence
from certmask_jax.certification.report import Report
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.programs import evidence_entries
from certmask_jax.programs.run_defenses import (
    build_on_evidence,
    over_sizes,
    specs_over_sizes,
)
from certmask_jax.programs.threat_options import ThreatOptions, recorded, threats
from certmask_jax.tables import evidence_store


def holds_evidence(folder: AnyPath) -> bool:
    """Whether the folder of a run has evidence."""
    return evidence_store.recorded(folder / evidence_store.FOLDER) is not None


def specs_in(folder: AnyPath) -> tuple[str, ...]:
    """All defenses that a run was begun for which has evidence; none where it has none."""
    record = evidence_store.recorded(folder / evidence_store.FOLDER)
    return () if record is None else tuple(record["about"]["provenance"]["defense"])


class FromFolder(NamedTuple):
    """What the folder of a run holds of defenses on evidence, among all that are asked for."""

    report: Report | None  # of those on evidence; None where there are none
    order: tuple[bool, ...]  # of all results in their order, whether each is on evidence
    others: tuple[str, ...]  # the specs of those that are not
    specs: tuple[str, ...]  # of all
    over_sizes: bool = False  # whether the threats are patch sizes

    def joined(self, others: Report | None) -> Report:
        """The report of all, of which ``others`` is that of those that are not on evidence."""
        assert self.report is not None
        result = self.report if others is None else beside(others, self.report, self.order)
        return over_sizes(result, self.specs) if self.over_sizes else result


def from_folder(
    folder: AnyPath,
    specs: Sequence[str],
    *,
    threat: ThreatOptions | None,
    margin_guard: float = 0.0,
) -> FromFolder:
    """What the folder of a run holds of defenses on evidence.

    Args:
      folder: of a run.
      specs: defenses that are asked for; none: those of the run.
      threat: what is asked for, or None: that of the run.
      margin_guard: as of ``certify_evidence``.

    Raises:
      ValueError: for defenses or threats that the run was not evaluated for.
    """
    record = evidence_store.recorded(folder / evidence_store.FOLDER)
    on_evidence = [spec for spec in specs if evidence_entries.is_on_evidence(spec)]
    if record is None:
        if on_evidence:
            raise ValueError(
                f"{folder}: expected a run on evidence for --defense {on_evidence[0]}, but it has "
                "tables alone; evaluate with it"
            )
        return FromFolder(None, (), tuple(specs), tuple(specs))
    known = record["about"]["provenance"]
    specs = tuple(specs) or tuple(known["defense"])
    if not any(map(evidence_entries.is_on_evidence, specs)):
        return FromFolder(None, (), specs, specs)
    chosen = recorded(known) if threat is None or threat == ThreatOptions() else threat
    if chosen is None:
        raise ValueError(f"{folder}: it does not say which patch it is about; give --patch")
    attacks = threats(chosen, tuple(record["about"]["image_size"]))
    if chosen.sizes:
        specs = specs_over_sizes(specs, attacks)
    on_evidence = [spec for spec in specs if evidence_entries.is_on_evidence(spec)]
    others = tuple(spec for spec in specs if spec not in on_evidence)
    local = recorded_local(known)
    lost = [spec for spec in on_evidence if evidence_entries.is_local(spec) and local is None]
    if lost:
        raise ValueError(
            f"{folder}: expected a run on local logits for --defense {lost[0]}, but it is on bands "
            "alone; evaluate with it"
        )
    built = build_on_evidence(on_evidence, attacks, local, recorded_seen_size(known))
    saved = evidence_store.load_evidence(folder / evidence_store.FOLDER)
    order = tuple(spec in on_evidence for _ in attacks for spec in specs)
    proved = certify_evidence(saved, built, margin_guard=margin_guard)
    return FromFolder(proved, order, others, specs, bool(chosen.sizes))


def recorded_local(provenance: Mapping[str, Any]) -> LocalLogits | None:
    """The cells of the model of a run, without the model; None where it had none."""
    of_cells = provenance.get("local_logits")
    if of_cells is None:
        return None
    return LocalLogits(_no_model, of_cells["field"], of_cells["stride"])


def recorded_seen_size(provenance: Mapping[str, Any]) -> tuple[int, int] | None:
    """What its images were resized to before the model saw them; None where they were not."""
    seen = (provenance.get("local_logits") or {}).get("seen_size")
    return None if seen is None else (int(seen[0]), int(seen[1]))


def _no_model(params: Any, images: Any) -> Any:
    raise NotImplementedError("a folder has no model")
