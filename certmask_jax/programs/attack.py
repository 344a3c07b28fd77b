"""Attacks what was certified: real patches on real pixels, aimed at each defense.

    certmask certify
    certmask attack RUN_FOLDER

searches a patch for every image of a run and every defense of it, writes the patched images, and
says what share each defense still answers rightly, between its clean accuracy and its worst case.
Without RUN_FOLDER it takes the options of certify. An attack that was stopped goes on when the
same command is given again. A certificate that an attack contradicts is a defect of this program:
the exit status is then 4.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from certmask_jax.files import fingerprint
from certmask_jax.programs import certification_config, printing, program, runtime
from certmask_jax.programs.attacking import (
    attack_audit,
    attack_command_line,
    attack_options,
    attack_summary,
    attacked_job,
    clean_verdicts,
    given_patch_job,
    given_patch_options,
    given_patch_table,
    given_patches,
    opened_attacks,
    universal_options,
    universal_table,
)
from certmask_jax.programs.attacking.attack_folder import AttackFolder
from certmask_jax.programs.attacking.attacked_run import AttackedRun, read_run
from certmask_jax.programs.attacking.given_places import check_place
from certmask_jax.programs.attacking.universal_job import UniversalJob
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.command_line import CommandLine, check_not_typed

STOPPED = 3
"""Exit status of an attack that ended as it had no more time."""

CONTRADICTED = attack_audit.CONTRADICTED


def parser() -> CommandLine:
    """The command line."""
    return attack_command_line.parser(description=__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status.

    0: done; 2: bad input, or images that do not give what the run recorded of them; 3: stopped by
    ``--max-minutes``, and the same command goes on; 4: a certificate was contradicted; 130:
    interrupted.
    """
    return program.run(
        lambda: _run(argv), interrupted="interrupted; give the same command again to go on"
    )


def _run(argv: Sequence[str] | None) -> int:
    started = time.monotonic()
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    check_not_typed(arguments, attack_command_line.OTHERWISE, "in an attack")
    options = attack_options.read(arguments)
    given = given_patch_options.read(arguments)
    universal = universal_options.read(arguments)
    patches = () if given is None else given_patches.read(given.patches)
    run: AttackedRun | None = None
    if arguments.run is not None:
        run = read_run(arguments.run)
        config = attack_command_line.config_of(run, arguments)
    else:
        config = certification_config.read_config(arguments)
    runtime.start(config.runtime)
    command = program.typed("attack", words)
    by_asking = given is not None or options.black_box is not None
    with contextlib.nullcontext() if run is None else run.files_found():
        job = opened_attacks.opened_job(config, command, needs_gradients=not by_asking)
    if run is not None:
        run.check_same(job, fewer="num_images" in arguments.typed)
        run.check_threats(job)
    for line in job.notes:
        program.say(line)
    minutes = arguments.max_minutes
    deadline = None if minutes is None else started + 60 * minutes
    if universal is not None and run is not None:
        out = attack_command_line.out_of(arguments, job, "universal")
        return _universal(job, run, options, universal, out, deadline, command)
    if given is None or run is None:
        out = attack_command_line.out_of(arguments, job, "attack")
        return _searched(job, run, options, out, deadline, command)
    fitted = given_patches.fitted(
        patches, attacked_job.threat_of(job), job.model.data_config.channels, scale=given.scale
    )
    if options.place is not None:
        for patch in fitted:
            check_place(patch.size, attacked_job.threat_of(job), options.place)
    facts = given_patch_job.facts(fitted, options, scaled=given.scale)
    out = attack_command_line.out_of(arguments, job, "patches")
    with opened_attacks.folder_of(job, out, facts) as folder:
        test = given_patch_job.PatchTest(job, run.claims(), fitted, folder, options)
        finished = _attacked(test, deadline)
        results = given_patch_table.summary(folder.lines, test.specs(), fitted, run.claims())
        text = given_patch_table.text_of(results, printing.width_of(sys.stdout))
        return _told(job, folder, {"attack": facts, "results": results}, text, command, finished)


def _searched(
    job: Job,
    run: AttackedRun | None,
    options: attack_options.AttackOptions,
    out: Path,
    deadline: float | None,
    command: str,
) -> int:
    """Searches patches, and says what came of them; the exit status."""
    options.given_places(attacked_job.threat_of(job))
    attacked_job.check_target(job, options.target)
    opened_attacks.check_gradients(job, options)
    facts = options.facts()
    claims = None if run is None else run.claims()
    with opened_attacks.folder_of(job, out, facts) as folder:
        attacker = opened_attacks.attacker_of(job, options, folder, claims)
        before = len(folder.lines)
        finished = _attacked(attacker, deadline)
        in_vain = not finished and all(line["broken"] is None for line in folder.lines[before:])
        detects = [attacked_job.detects(job, spec) for spec in attacker.specs()]
        results = attack_summary.summary(folder.lines, attacker.specs(), detects)
        text = attack_summary.text_of(results, printing.width_of(sys.stdout), finished=finished)
        status = _told(job, folder, {"attack": facts, "results": results}, text, command, finished)
    if in_vain:
        program.say(
            "no image was attacked to its end in this time; give more --max-minutes, as the same "
            "command begins with the same images"
        )
    if claims is None:
        return status
    otherwise = clean_verdicts.otherwise(claims, folder.lines)
    otherwise.tell()
    return program.BAD_INPUT if otherwise.others and status != CONTRADICTED else status


def _universal(
    job: Job,
    run: AttackedRun,
    options: attack_options.AttackOptions,
    universal: universal_options.UniversalOptions,
    out: Path,
    deadline: float | None,
    command: str,
) -> int:
    """Makes one patch for many images, and says what it does to all; the exit status."""
    claims = run.claims()
    universal_one = UniversalJob(job, claims, options, universal)
    facts = universal_one.facts()
    options.chosen(list(attacked_job.defenses_of(job)))
    opened_attacks.check_gradients(job, None)
    with opened_attacks.folder_of(job, out, facts) as folder:
        about = {**fingerprint.environment(), **job.provenance, "command": command}
        steps = options.search.steps
        with printing.bar(steps, "step", "searching") as bar:

            def progress(done: int, loss: float) -> None:
                bar.set_postfix_str(f"loss {loss:.3g}", refresh=False)
                bar.update(done - bar.n)

            patch = universal_one.patch(
                folder.folder,
                about,
                stop=lambda: deadline is not None and time.monotonic() > deadline,
                progress=progress,
            )
        if patch is None:
            print(f"\nstopped: the patch is not finished, in {out}; give the same command again")
            return STOPPED
        test = given_patch_job.PatchTest(job, claims, [patch], folder, options)
        finished = _attacked(test, deadline)
        results = universal_table.summary(
            folder.lines, test.specs(), patch, claims, universal_one.halves
        )
        text = universal_table.text_of(results, printing.width_of(sys.stdout))
        return _told(job, folder, {"attack": facts, "results": results}, text, command, finished)


class _Attacks(Protocol):
    """What attacks image by image."""

    def remaining(self) -> int: ...
    def run(
        self, stop: Callable[[], bool], progress: Callable[[int, int, int], None], /
    ) -> bool: ...


def _attacked(attacker: _Attacks, deadline: float | None) -> bool:
    with printing.bar(attacker.remaining(), "image", "attacking") as bar:
        counts = [0, 0]

        def progress(settled: int, tried: int, broken: int) -> None:
            counts[0] += tried
            counts[1] += broken
            bar.set_postfix_str(f"{counts[1]} of {counts[0]} broken", refresh=False)
            bar.update(settled)

        return attacker.run(lambda: deadline is not None and time.monotonic() > deadline, progress)


def _told(
    job: Job,
    folder: AttackFolder,
    summary: Mapping[str, Any],
    text: str,
    command: str,
    finished: bool,
) -> int:
    """Says what came of an attack, and writes it; the exit status."""
    about = {**fingerprint.environment(), **job.provenance, "command": command}
    folder.write_summary({**summary, "provenance": about})
    print(f"\n{text}")
    contradicted = attack_audit.contradictions(job, folder)
    attack_audit.tell(contradicted, folder, about)
    where = f"patched images and attacks.jsonl in {folder.folder}"
    print(f"\n{where}" if finished else f"\nstopped: {where}; give the same command again")
    return attack_audit.status_of(contradicted) or (0 if finished else STOPPED)
