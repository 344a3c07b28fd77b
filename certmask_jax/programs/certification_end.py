"""What is done with a run of certification that has ended: its files, its page, and the screen."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from certmask_jax._later import Later
from certmask_jax._text import counted
from certmask_jax.certification import precision_check, report
from certmask_jax.files.storage import AnyPath
from certmask_jax.programs import earlier_images, page_options, printing, program
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.evidence_job import EvidenceWork
from certmask_jax.programs.page_options import Shown
from certmask_jax.programs.run_folder import is_written, write_report, written
from certmask_jax.tables import saved_table
from certmask_jax.tables.evidence_store import SavedEvidence

if TYPE_CHECKING:
    from certmask_jax.programs import page_of_run
else:  # what draws takes a tenth of a second
    page_of_run = Later("certmask_jax.programs.page_of_run")


def say_share(
    part: str, done: int, count: int, run_folder: AnyPath, out: AnyPath, words: TextIO
) -> int:
    """Says what comes after a share."""
    print(f"share {part} is done, {done} of {counted(count, 'image')}, in {out}", file=words)
    print(f"when all are: {program.typed('merge', [str(run_folder)])}", file=words)
    return 0


def reported_on_evidence(
    config: Config,
    job: Job,
    result: report.Report,
    saved_evidence: SavedEvidence,
    out: AnyPath,
    started: float,
    work: EvidenceWork,
    shown: Shown,
) -> int:
    """Reports a run whose defenses are all on evidence."""
    was_complete = not work.is_new and is_written(result, out, "highest")
    seconds = round(time.monotonic() - started, 2)
    useful, slots = work.passes
    facts = {
        "seconds": {"evaluation": seconds, "all": seconds},
        "passes": {"useful": useful, "slots": slots},
    }
    facts_too = result.with_facts(facts)
    return reported(config, job, facts_too, None, saved_evidence, out, was_complete, seconds, shown)


def reported(
    config: Config,
    job: Job,
    result: report.Report,
    saved: saved_table.SavedTable | None,
    saved_evidence: SavedEvidence | None,
    out: AnyPath,
    was_complete: bool,
    seconds: float,
    shown: Shown,
) -> int:
    """Writes a report unless it was complete before, and prints it."""
    words = printing.words_to(config.format)
    files = () if was_complete else write_report(result, out, program.say)
    if config.page and not was_complete:
        page = page_of_run.try_page(
            result,
            saved,
            _images(job, result),
            out,
            evidence=saved_evidence,
            beside=lambda of: page_options.after(shown, of, job.dataset),
        )
        files = (*files, *page)
    if words is sys.stdout:
        print()
    print(printing.text_of(result, config.format))
    if was_complete:
        end = f"this run was complete already: printed again from {out}, nothing computed"
    else:
        folders = [name for name in ("tables", "evidence") if (out / name).is_dir()]
        end = f"results in {out}: {', '.join([*files, *folders])} ({seconds:.0f} s)"
    print(f"\n{end}", file=words)
    return 0


def _images(job: Job, result: report.Report) -> page_of_run.Images:
    """The images of a job, for a page of its report."""
    return lambda rows: earlier_images.given(job.dataset, result, rows)


def flips_of(
    config: Config, job: Job, saved: saved_table.SavedTable, complete: AnyPath | None
) -> dict[str, Any] | None:
    """What a lower precision changed: as it was written, or computed."""
    if config.precision == "highest":
        return None
    if complete is not None:
        recorded = (
            (written(complete) or {}).get("provenance", {}).get("label_flips_against_float32")
        )
        return None if recorded is None else dict(recorded)
    compared = precision_check.label_flips(
        saved,
        job.dataset,
        job.model.apply_fn,
        job.params,
        preprocessing=job.preprocessing,
        dropping=job.dropping,
        chunk=config.chunk,
    )
    return dataclasses.asdict(compared)
