"""What ``certify`` does of defenses on evidence: what it refuses, the run, a folder's report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from certmask_jax._text import counted
from certmask_jax.certification import kept_sources
from certmask_jax.certification.evidence_batches import passes_of, sources_of
from certmask_jax.certification.evidence_run import EvidenceHooks, evaluate_evidence
from certmask_jax.certification.evidence_verdicts import certify_evidence
from certmask_jax.certification.report import Report
from certmask_jax.data import Dataset
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference import views
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.masks.threats import Threat
from certmask_jax.models import Model
from certmask_jax.programs import evidence_entries
from certmask_jax.programs.certification_options import Config
from certmask_jax.programs.threat_options import ThreatOptions, recorded, threats
from certmask_jax.tables import evidence_store

_EVERY = 10.0  # seconds, between lines of progress


@dataclasses.dataclass(frozen=True, eq=False)
class EvidenceJob:
    """The defenses on evidence of a run.

    Attributes:
      defenses: those, in their order.
      local: what gives local evidence; None where no defense is on it.
      apply_fn: what sees bands.
      order: of all results of the run, whether each is on evidence.
      dropping: how it drops tokens, where it is to see bands without those that are hidden.
    """

    defenses: Sequence[EvidenceDefense]
    local: LocalLogits | None
    apply_fn: ApplyFn
    order: tuple[bool, ...]
    dropping: TokenDropping | None = None


def opened_evidence(
    config: Config, model: Model, dataset: Dataset, specs: Sequence[str], attacks: Sequence[Threat]
) -> EvidenceJob | None:
    """The defenses on evidence among ``specs``; None where there are none.

    Raises:
      ValueError: for a model without local logits where a defense needs them, options that do
        not go with evidence, or defenses that cannot be; before any work.
    """
    named = [spec for spec in specs if evidence_entries.is_on_evidence(spec)]
    if not named:
        return None
    first = f"--defense {named[0]}"
    on_local = [spec for spec in named if evidence_entries.is_local(spec)]
    local = model.local if on_local else None
    if on_local and local is None:
        raise ValueError(
            f"--defense {on_local[0]}: expected a model with local logits, each of which sees a "
            "small field: a BagNet (--list), or a Model of your own with "
            f"local=LocalLogits(...); got {model.name}"
        )
    for option, is_given, why in (
        ("--shard", config.shard[1] != 1, "one job evaluates them"),
        ("--sizes", bool(config.threat.sizes), "certify each --patch in a run of its own"),
        ("--margin-guard", config.margin_guard > 0, "logit margins of their parts are not kept"),
        ("several processes", jax.process_count() > 1, "one process evaluates them"),
    ):
        if is_given:
            raise ValueError(f"{first}: expected no {option} beside defenses on evidence: {why}")
    if on_local and config.views != views.NONE:
        raise ValueError(
            f"--defense {on_local[0]}: expected no --views beside defenses on local logits: a mean "
            "over views has no fields"
        )
    if not model.kind.is_traced:
        raise ValueError(
            f"{first}: expected a model of JAX, which is part of a program with the defense, got a "
            f"NumPy function, {model.name}"
        )
    seen = model.data_config.input_size
    resized = None if dataset.image_size == seen else seen
    return EvidenceJob(
        [
            evidence_entries.build(spec, attack, local, resized)
            for attack in attacks
            for spec in named
        ],
        local,
        model.apply_fn,
        tuple(evidence_entries.is_on_evidence(spec) for _ in attacks for spec in specs),
    )


class EvidenceWork:
    """Evaluates the defenses on evidence of a run.

    Attributes:
      is_new: whether any image was evaluated in this session.
      passes: of this session, the useful ones, and the places for passes that they took.

    Args:
      deadline: in seconds of ``time.monotonic``; no block is begun after it.
      say: told of progress and warnings in lines.
    """

    def __init__(self, deadline: float | None, say: Callable[[str], None]) -> None:
        self.is_new = False
        self.passes = (0, 0)
        self._deadline = deadline
        self._say = say
        self._shown = time.monotonic()

    def run(
        self,
        job: EvidenceJob,
        test_set: Any,
        params: Any,
        out: AnyPath,
        **how: Any,
    ) -> evidence_store.SavedEvidence | None:
        """See ``evaluate_evidence``, whose keywords are ``how``."""
        hooks = EvidenceHooks(self._progress, self._say, self._stop, self._count)
        return evaluate_evidence(
            test_set,
            job.local,
            params,
            job.defenses,
            out / evidence_store.FOLDER,
            apply_fn=job.apply_fn,
            dropping=job.dropping,
            hooks=hooks,
            **how,
        )

    def _count(self, useful: int, slots: int) -> None:
        self.passes = self.passes[0] + useful, self.passes[1] + slots

    def _progress(self, done: int, total: int) -> None:
        self.is_new = True
        if done == total or time.monotonic() - self._shown > _EVERY:
            self._shown = time.monotonic()
            self._say(f"evidence: {done} of {counted(total, 'image')}")

    def _stop(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline


def kept_line(job: EvidenceJob, num_images: int, classes: int) -> str:
    """How much evidence is kept, where it is asked for."""
    return kept_sources.said(kept_sources.kept_of(job.defenses, classes), num_images)


def plan_of(job: EvidenceJob, num_images: int, *, kept: int | None = None) -> list[str]:
    """What it takes, in lines for ``--dry-run``; ``kept``: classes, where evidence is kept."""
    count = len(job.defenses)
    each = passes_of(sources_of(job.defenses, job.local, job.apply_fn))
    return [
        f"{counted(num_images, 'image')}, {counted(count, 'defense')} on evidence",
        f"forward passes: {each * num_images:,}, {'one' if each == 1 else each} an image for all "
        "of these",
        *([] if kept is None else [kept_line(job, num_images, kept)]),
    ]


def holds_evidence(folder: AnyPath) -> bool:
    """Whether the folder of a run has evidence."""
    return evidence_store.recorded(folder / evidence_store.FOLDER) is not None


def specs_in(folder: AnyPath) -> tuple[str, ...]:
    """All defenses that a run was begun for which has evidence; none where it has none."""
    record = evidence_store.recorded(folder / evidence_store.FOLDER)
    return () if record is None else tuple(record["about"]["provenance"]["defense"])


def from_folder(
    folder: AnyPath,
    specs: Sequence[str],
    *,
    threat: ThreatOptions | None,
) -> tuple[Report | None, tuple[bool, ...], tuple[str, ...]]:
    """What the folder of a run holds of defenses on evidence.

    Args:
      folder: of a run.
      specs: defenses that are asked for; none: those of the run.
      threat: what is asked for, or None: that of the run.

    Returns:
      The report of the defenses on evidence, None where there are none; of all results in their
      order, whether each is on evidence; the specs of the others.

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
        return None, (), tuple(specs)
    known = record["about"]["provenance"]
    specs = tuple(specs) or tuple(known["defense"])
    on_evidence = [spec for spec in specs if evidence_entries.is_on_evidence(spec)]
    others = tuple(spec for spec in specs if spec not in on_evidence)
    if not on_evidence:
        return None, (), others
    chosen = recorded(known) if threat is None or threat == ThreatOptions() else threat
    if chosen is None:
        raise ValueError(f"{folder}: it does not say which patch it is about; give --patch")
    attacks = threats(chosen, tuple(record["about"]["image_size"]))
    local = recorded_local(known)
    lost = [spec for spec in on_evidence if evidence_entries.is_local(spec) and local is None]
    if lost:
        raise ValueError(
            f"{folder}: expected a run on local logits for --defense {lost[0]}, but it is on bands "
            "alone; evaluate with it"
        )
    built = [
        evidence_entries.build(spec, attack, local, recorded_seen_size(known))
        for attack in attacks
        for spec in on_evidence
    ]
    saved = evidence_store.load_evidence(folder / evidence_store.FOLDER)
    order = tuple(spec in on_evidence for _ in attacks for spec in specs)
    return certify_evidence(saved, built), order, others


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
