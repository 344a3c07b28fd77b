"""A run of certification, from its config to the table: what ``certmask certify`` does."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification import evaluation, verdicts
from certmask_jax.certification.evidence_verdicts import beside, certify_evidence
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.files import processes
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference import views
from certmask_jax.programs import (
    dry_run,
    page_options,
    printing,
    runtime,
)
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.certification_end import (
    flips_of,
    reported,
    reported_on_evidence,
    say_share,
)
from certmask_jax.programs.certification_job import Job, opened
from certmask_jax.programs.command_line import refuse
from certmask_jax.programs.evidence_job import (
    EvidenceJob,
    EvidenceWork,
    images_of_share,
    kept_line,
)
from certmask_jax.programs.progress import Progress
from certmask_jax.programs.run_defenses import over_sizes
from certmask_jax.programs.run_folder import (
    check_out,
    is_written,
    share_folder,
    take_shares,
)
from certmask_jax.tables import evidence_store, saved_table, table_writer
from certmask_jax.tables.evidence_store import SavedEvidence

STOPPED = 3
"""Exit status of a run that ended as it had no more time."""


def run(config: Config, command: str) -> int:
    """Certifies, writes the run folder and prints the table; returns the exit status."""
    started = time.monotonic()
    runtime.start(config.runtime)
    job = opened(config, command, evidence=True)
    for option, why in job.without_effect.items():
        refuse([option], why)
    shown = page_options.before(config.shown, job.dataset, job.provenance)
    if config.dry_run:
        for line in job.notes:
            _say(line)
        print(dry_run.plan_text(config, job))
        return 0
    run_folder: AnyPath = config.out or Path("runs") / job.name
    out = share_folder(run_folder, config.shard)
    check_out(out)
    take_shares(run_folder, out, _say)
    on_evidence = () if job.evidence is None else job.evidence.defenses
    for line in (*job.notes, *shown.notes, *map(str, job.defenses), *map(str, on_evidence)):
        _say(line)
    if job.defenses:
        _check_before(config, job, out)
    deadline = None if config.max_minutes is None else started + 60 * config.max_minutes
    part, provenance = f"{config.shard[0]}/{config.shard[1]}", job.provenance
    if out != run_folder:
        whole = re.sub(r" --shard[ =]\S+", "", command)
        provenance = {**provenance, "shard": part, "command_of_all_shares": whole}
    work = EvidenceWork(deadline, _say)
    evidence, saved_evidence = None, None
    if job.evidence is not None:
        if job.defenses and processes.any_says(saved_table.recorded(out / "tables") is None):
            # Begun before evidence is evaluated, for what is refused of it.
            _on_masks(config, job, out, provenance, Hooks(stop=lambda: True))
        saved_evidence = _on_evidence(config, job, job.evidence, work, out, provenance)
        words = printing.words_to(config.format)
        stopped = processes.any_says(work.stopped)
        if not processes.is_first() and (stopped or not job.defenses):
            return STOPPED if stopped else 0
        if stopped or (saved_evidence is None and out == run_folder):
            print(f"stopped: evidence is in {out}; give the same command again", file=words)
            return STOPPED
        if saved_evidence is None and not job.defenses:
            done, count = evidence_store.images_done(out / evidence_store.FOLDER)
            return say_share(part, done, count, run_folder, out, words)
        if saved_evidence is not None:
            evidence = certify_evidence(
                saved_evidence, job.evidence.defenses, margin_guard=config.margin_guard
            )
        if saved_evidence is not None and evidence is not None and not job.defenses:
            if config.threat.sizes:
                evidence = over_sizes(evidence, job.identity["defense"])
            return reported_on_evidence(
                config, job, evidence, saved_evidence, out, started, work, shown
            )
    with Progress(
        job.defenses,
        margin_guard=config.margin_guard,
        deadline=deadline,
        quiet=not processes.is_first(),
        passes_each=views.passes_each(job.identity),
    ) as progress:
        saved = _on_masks(config, job, out, provenance, progress.hooks())
    stopped = processes.any_says(progress.stopped)
    if not processes.is_first():
        return STOPPED if stopped else 0
    words = printing.words_to(config.format)
    if stopped or (saved is None and out == run_folder):
        done, count = saved_table.images_done(out / "tables")
        again = "give the same command again"
        print(f"stopped: {done} of {counted(count, 'image')} done, in {out}; {again}", file=words)
        return STOPPED
    if saved is None:
        done, count = saved_table.images_done(out / "tables")
        return say_share(part, done, count, run_folder, out, words)
    seconds = {"evaluation": round(time.monotonic() - started, 2)}
    result = verdicts.certify(saved, job.defenses, margin_guard=config.margin_guard)
    if job.evidence is not None and evidence is not None:
        result = beside(result, evidence, job.evidence.order)
    if config.threat.sizes:
        result = over_sizes(result, job.identity["defense"])
    nothing_new = not progress.settled_now and not work.is_new
    was_complete = nothing_new and is_written(result, out, config.precision)
    flips = flips_of(config, job, saved, out if was_complete else None)
    seconds["all"] = round(time.monotonic() - started, 2)
    session = {
        "seconds": seconds,
        "masked_images_settled": progress.settled_now,  # evaluated or needless
        # Slots are the places of chunks that they took, with those that were left empty.
        "passes": {
            "useful": progress.passes_now + work.passes[0],
            "slots": progress.slots_now + work.passes[1],
        },
    }
    if progress.stem_slots_now:
        session["stem_passes"] = {"useful": progress.stem_now, "slots": progress.stem_slots_now}
    if flips is not None:
        session["label_flips_against_float32"] = flips
    result = result.with_facts(session)
    return reported(
        config, job, result, saved, saved_evidence, out, was_complete, seconds["all"], shown
    )


def _on_masks(
    config: Config, job: Job, out: AnyPath, provenance: Mapping[str, Any], hooks: Hooks
) -> saved_table.SavedTable | None:
    """Evaluates the defenses that mask images; None for a share, or where the hooks stopped it."""
    return evaluation.evaluate(
        job.dataset,
        job.model.apply_fn,
        job.params,
        job.defenses,
        out / "tables",
        preprocessing=job.preprocessing,
        decide=config.decide,
        local=job.local,
        dropping=job.dropping,
        share=config.shard,
        identity=job.identity,
        provenance=provenance,
        unreadable=job.unreadable,
        skip_unreadable=config.data.on_unreadable == "skip",
        chunk=config.chunk,
        hooks=hooks,
    )


def _on_evidence(
    config: Config,
    job: Job,
    of: EvidenceJob,
    work: EvidenceWork,
    out: AnyPath,
    provenance: Mapping[str, Any],
) -> SavedEvidence | None:
    """Evaluates the defenses on evidence; None for a share, or where there was no more time."""
    if config.keep_evidence:
        images = images_of_share(len(job.dataset), config.shard)
        _say(kept_line(of, images, job.model.num_classes))
    return work.run(
        of,
        job.dataset,
        job.params,
        out,
        preprocessing=job.preprocessing,
        identity=job.identity,
        provenance=provenance,
        unreadable=job.unreadable,
        skip_unreadable=config.data.on_unreadable == "skip",
        share=config.shard,
        keep=config.keep_evidence,
        margin_guard=config.margin_guard,
        chunk=config.chunk,
    )


def _check_before(config: Config, job: Job, out: AnyPath) -> None:
    """Finds what can be found without the model before anything is compiled."""
    try:
        job.preprocessing.check_channels(job.model.data_config.channels)
    except ValueError as error:
        name = str(error).split(":")[0]
        raise ValueError(f"--{error}" if name == "fill" else str(error)) from error
    columns, _ = evaluation.merged(job.defenses)
    table_writer.check_before(
        out / "tables",
        num_images=len(job.dataset) // config.shard[1],
        num_columns=len(columns),
        num_blocks=1,
        known={**job.identity, "image_size": columns.image_size, "masked_images": len(columns)},
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
