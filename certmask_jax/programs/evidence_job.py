"""What ``certify`` does of defenses on evidence: what it refuses, and the run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification import kept_sources
from certmask_jax.certification.evidence_batches import passes_of, sources_of
from certmask_jax.certification.evidence_run import evaluate_evidence
from certmask_jax.certification.run_hooks import EvidenceHooks
from certmask_jax.data import Dataset
from certmask_jax.defenses.evidence_defense import EvidenceDefense, check_guarded
from certmask_jax.files import processes
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference import views
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.masks.threats import Threat
from certmask_jax.models import Model
from certmask_jax.programs import evidence_entries
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.run_defenses import build_on_evidence
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
    defenses = build_on_evidence(named, attacks, local, resized)
    try:
        check_guarded(defenses, config.margin_guard)
    except ValueError as error:  # which begins with the spec
        raise ValueError(f"--defense {error}") from error
    return EvidenceJob(
        defenses,
        local,
        model.apply_fn,
        tuple(evidence_entries.is_on_evidence(spec) for _ in attacks for spec in specs),
    )


class EvidenceWork:
    """Evaluates the defenses on evidence of a run.

    Attributes:
      is_new: whether any image was evaluated in this session.
      stopped: whether there was no time for all blocks.
      passes: of this session, the useful ones, and the places for passes that they took.

    Args:
      deadline: in seconds of ``time.monotonic``; no block is begun after it.
      say: told of progress and warnings in lines.
    """

    def __init__(self, deadline: float | None, say: Callable[[str], None]) -> None:
        self.is_new = False
        self.stopped = False
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
        """See ``evaluate_evidence``, whose keywords are ``how``; None for a share too."""
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
        if not processes.is_first():
            return
        if done == total or time.monotonic() - self._shown > _EVERY:
            self._shown = time.monotonic()
            self._say(f"evidence: {done} of {counted(total, 'image')}")

    def _stop(self) -> bool:
        self.stopped = self._deadline is not None and time.monotonic() > self._deadline
        return self.stopped


def kept_line(job: EvidenceJob, num_images: int, classes: int) -> str:
    """How much evidence is kept, where it is asked for."""
    return kept_sources.said(kept_sources.kept_of(job.defenses, classes), num_images)


def images_of_share(num_images: int, shard: tuple[int, int]) -> int:
    """About how many images a share has, of whole blocks."""
    return -(-num_images // shard[1])


def plan_of(
    job: EvidenceJob, num_images: int, *, shard: tuple[int, int] = (0, 1), kept: int | None = None
) -> list[str]:
    """What a share takes, in lines for ``--dry-run``; ``kept``: classes, where evidence is kept."""
    count = len(job.defenses)
    num_images = images_of_share(num_images, shard)
    share = "" if shard[1] == 1 else f" (about; share {shard[0]} of {shard[1]})"
    each = passes_of(sources_of(job.defenses, job.local, job.apply_fn))
    return [
        f"{counted(num_images, 'image')}{share}, {counted(count, 'defense')} on evidence",
        f"forward passes: {each * num_images:,}, {'one' if each == 1 else each} an image for all "
        "of these",
        *([] if kept is None else [kept_line(job, num_images, kept)]),
    ]
