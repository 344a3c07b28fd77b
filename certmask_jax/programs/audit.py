"""Audits what was certified: attacks every defense of a run for so many minutes.

    certmask certify
    certmask audit RUN --minutes 10

holds every certificate of a run against real patches, those with the least margin first. Those
that a paper alone calls certified come next. The time is shared fairly among the defenses of all
RUNs. Then it prints what has to hold in this order:
certified, worst case, under attack, clean. An audit goes on when the command is given again. A
worst case that a patch contradicts is a defect of this program: it is asked about once more, kept
with all that is known of it, and the exit status is 4.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from certmask_jax._text import counted
from certmask_jax.attacks.attacked_images import STEPS_BETWEEN
from certmask_jax.attacks.black_box import QUERIES_BETWEEN
from certmask_jax.files import fingerprint
from certmask_jax.programs import paths, printing, program, runtime
from certmask_jax.programs.attacking import (
    attack_audit,
    attack_options,
    audit_table,
    clean_verdicts,
    opened_attacks,
)
from certmask_jax.programs.attacking.attack_job import Attacker
from certmask_jax.programs.attacking.attack_options import UNDEFENDED, AttackOptions
from certmask_jax.programs.attacking.attacked_run import AttackedRun, read_run
from certmask_jax.programs.attacking.audit_budget import Taken, Watch, spend
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.command_line import CommandLine, check_not_typed
from certmask_jax.programs.number_options import number

_FOLDER = "audit"
_RANKS = {"all": (0, 1, 2), "certified": (0,), "published": (1,), "uncertified": (1, 2)}
"""Of claims, by what ``--images`` says."""


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(prog=program.command("audit"), description=__doc__)
    parse.add_argument(
        "runs",
        nargs="+",
        type=paths.local_path,
        metavar="RUN",
        help="the folder of a run of certify, which is audited into RUN/audit; several are audited "
        "one after another",
    )
    parse.add_argument(
        "--minutes",
        type=number(above=0),
        required=True,
        metavar="N",
        help="how long it takes, all RUNs together",
    )
    group = parse.add_argument_group("where things are")
    group.add_argument(
        "--data-dir",
        type=paths.local_path,
        metavar="DIR",
        help="where the data is now (default: where it was)",
    )
    group.add_argument(
        "--weights",
        type=paths.weights_address,
        metavar="FILE",
        help="where the weights are now (default: where they were)",
    )
    group.add_argument(
        "--out",
        type=paths.local_output,
        metavar="DIR",
        help="folder of the audit of one RUN, new or of this same audit (default: RUN/audit)",
    )
    runtime.add(parse.add_argument_group("how it runs"))
    next(one for one in parse._actions if one.dest == "distributed").help = argparse.SUPPRESS
    attack_options.add(parse.add_argument_group("how it attacks"), undefended=False)
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status.

    0: no certificate was contradicted; 2: bad input, no time for an image of one of the runs,
    or images that do not give what the run recorded of them; 4: a certificate was contradicted,
    whatever became of the other runs; 130: interrupted.
    """
    return program.run(
        lambda: _run(argv), interrupted="interrupted; give the same command again to go on"
    )


def _run(argv: Sequence[str] | None) -> int:
    started = time.monotonic()
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    check_not_typed(arguments, ("distributed",), "in an audit")
    options = attack_options.read(arguments)
    folders: list[Path] = list(dict.fromkeys(arguments.runs))
    if arguments.out is not None and len(folders) > 1:
        raise ValueError("--out: expected one RUN beside it; each of several has its own RUN/audit")
    runs = [read_run(folder) for folder in folders]
    run_with = runtime.read(arguments)
    names = [name for name in ("data_dir", "weights") if name in arguments.typed]
    given = {name: getattr(arguments, name) for name in names}
    configs = [run.config(given, arguments.typed, run_with) for run in runs]
    runtime.start(run_with)
    command = program.typed("audit", words)
    end = started + 60 * arguments.minutes
    shares = [len(run.results["defenses"]) for run in runs]
    status, left_out = 0, False
    for place, (run, config) in enumerate(zip(runs, configs, strict=True)):
        try:
            with run.files_found():
                job = opened_attacks.opened_job(
                    config, command, needs_gradients=options.black_box is None
                )
            run.check_same(job)
            run.check_threats(job)
            now = time.monotonic()
            until = now + (end - now) * shares[place] / sum(shares[place:])
            out = run.folder / _FOLDER if arguments.out is None else arguments.out
            audited = _Audit(run, job, options, out)
            status = max(status, audited.run(until, arguments.minutes, command))
        except _TooSmall as error:  # of this run; another has other images
            program.say(f"error: {program.one_line(str(error))}")
            left_out = True
        except (ValueError, OSError) as error:
            if not status:
                raise
            # What was contradicted before is not to end as if nothing had been.
            program.say(f"error: {program.one_line(program.message(error))}")
    return status or (program.BAD_INPUT if left_out else 0)


class _TooSmall(ValueError):
    """The time does not do for one image of a run."""


class _Audit:
    """One run, and how it is audited."""

    def __init__(self, run: AttackedRun, job: Job, options: AttackOptions, out: Path) -> None:
        self._run, self._job, self._options = run, job, options
        self._claims = run.claims()
        opened_attacks.check_gradients(job, options)
        self._folder = opened_attacks.folder_of(job, out, options.facts())

    def run(self, until: float, minutes: float, command: str) -> int:
        """Attacks until then, and says what came of it; the exit status."""
        with self._folder:
            return self._attacked(until, minutes, command)

    def _attacked(self, until: float, minutes: float, command: str) -> int:
        between = min(STEPS_BETWEEN, self._options.search.steps)
        watch = Watch(until, between if self._options.black_box is None else QUERIES_BETWEEN)
        attacker = opened_attacks.attacker_of(self._job, self._options, self._folder, self._claims)
        waiting = self._waiting(attacker.specs())
        before = len(self._folder.lines)
        with printing.bar(sum(map(len, waiting.values())), "image", "auditing") as bar:
            whole = spend(
                waiting,
                until,
                self._attack_with(attacker, watch, bar),
                least=min(jax.local_device_count(), self._options.at_once),
                most=max(self._options.at_once, jax.local_device_count()),
            )
        if not whole and len(self._folder.lines) == before:
            raise _TooSmall(self._too_small(watch, minutes))
        return self._told(attacker.specs(), command, whole=whole)

    def _waiting(self, specs: Sequence[str]) -> dict[str, list[int]]:
        """What is to be attacked yet, certified ones first, then those of papers, by margins."""
        done = self._folder.done()
        ranks = _RANKS[self._options.images]
        waiting = {}
        for spec in specs:
            wanted = [
                claim
                for claim in self._claims.of[spec]
                if (claim.is_right or claim.is_certified)  # else there is nothing to break
                and (claim.rank in ranks or spec == UNDEFENDED)
                and (spec, claim.number) not in done
            ]
            wanted.sort(key=lambda claim: (claim.rank, claim.margin))
            waiting[spec] = [claim.number for claim in wanted]
        return waiting

    def _attack_with(
        self, attacker: Attacker, watch: Watch, bar: Any
    ) -> Callable[[str, Sequence[int]], Taken]:
        def attack_some(spec: str, numbers: Sequence[int]) -> Taken:
            watch.begin()
            lines = attacker.attack(spec, numbers, watch.is_over, late=watch.is_late)
            for line in lines:
                wanted = self._claims.ids[line["number"]]
                if line["image"] != wanted:
                    raise ValueError(
                        f"{self._run.folder}: expected image {wanted} of that run, but "
                        f"{line['image']} is in its place; --data-dir says where its data is now"
                    )
            tried = [line for line in self._folder.lines if line["broken"] is not None]
            broken = sum(line["broken"] for line in tried)
            bar.set_postfix_str(f"{broken} of {len(tried)} broken", refresh=False)
            bar.update(len(lines))
            return Taken(len(lines), watch.seconds_to_begin)

        return attack_some

    def _too_small(self, watch: Watch, minutes: float) -> str:
        steps, speed = self._options.most_steps, watch.seconds_a_step
        begin = watch.seconds_to_begin / 60
        takes = (
            "longer than that to begin"
            if speed is None
            else f"{begin:.2g} min to begin, and then up to {speed * steps / 60:.2g} min for "
            f"{counted(steps, 'step')} (measured)"
        )
        return (
            f"--minutes {minutes:g}: expected time for an image of {self._run.folder}, which takes "
            f"{takes}; give more minutes, or take fewer steps or --locations"
        )

    def _told(self, specs: Sequence[str], command: str, *, whole: bool) -> int:
        rows = audit_table.rows(self._run, self._claims, self._folder.lines, specs)
        contradicted = attack_audit.contradictions(self._job, self._folder)
        otherwise = clean_verdicts.otherwise(self._claims, self._folder.lines)
        folder, width = self._folder.folder, printing.width_of(sys.stdout)
        print(f"\n{audit_table.text_of(rows, folder, width, finished=whole)}")
        otherwise.tell()
        about = {**fingerprint.environment(), **self._job.provenance, "command": command}
        summary = {"attack": self._options.facts(), "results": rows, "provenance": about}
        self._folder.write_summary(summary)
        attack_audit.tell(contradicted, self._folder, about)
        rest = "" if whole else "; the same command goes on"
        print(f"\npatched images and attacks.jsonl in {self._folder.folder}{rest}")
        status = attack_audit.status_of(contradicted)
        return status or (program.BAD_INPUT if otherwise.others else 0)
