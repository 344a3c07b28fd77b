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

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from certmask_jax.files import fingerprint
from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.programs import (
    attack_audit,
    attack_job,
    attack_options,
    attack_summary,
    certification_options,
    earlier_command,
    paths,
    printing,
    program,
    runtime,
)
from certmask_jax.programs.attack_folder import AttackFolder
from certmask_jax.programs.certification_job import Job, opened
from certmask_jax.programs.certification_options import Config
from certmask_jax.programs.command_line import CommandLine, check_not_typed

STOPPED = 3
"""Exit status of an attack that ended as it had no more time."""

CONTRADICTED = 4
"""Exit status of an attack that broke an image whose worst case is certified."""

_OTHERWISE = (
    *("list", "from_tables", "dry_run", "margin_guard", "shard", "chunk"),
    *("decide", "whole_images", "format", "patched", "distributed", "sizes", "page"),
)
"""Options of certify that say nothing about an attack."""
_WITH_A_RUN = (
    *("data_dir", "weights", "num_images"),
    *("out", "max_minutes", "cpu_devices", "compilation_cache"),
)
"""Options of certify that go beside the folder of a run."""


def parser() -> CommandLine:
    """The command line: that of certify, and how it attacks."""
    parse = certification_options.parser()
    parse.prog = program.command("attack")
    parse.description, parse.epilog = __doc__, None
    for action in parse._actions:
        if action.dest in _OTHERWISE:
            action.help = argparse.SUPPRESS
        elif action.dest == "out":
            action.help = (
                "folder for the patched images and what came of them, new or of this same attack, "
                "which then goes on (default: RUN_FOLDER/attack, or runs/DATASET-MODEL-HASH-attack)"
            )
    parse.add_argument(
        "run",
        nargs="?",
        type=paths.local_path,
        metavar="RUN_FOLDER",
        help="the folder of a run of certify: its data, model, patch and defenses are attacked; "
        "--data-dir and --weights say where they are now, --num-images takes fewer (default: what "
        "the options say)",
    )
    attack_options.add(parse.add_argument_group("how it attacks"))
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status.

    0: done; 2: bad input; 3: stopped by ``--max-minutes``, to be gone on with; 4: a certificate was
    contradicted; 130: interrupted.
    """
    return program.run(
        lambda: _run(argv), interrupted="interrupted; give the same command again to go on"
    )


def _run(argv: Sequence[str] | None) -> int:
    started = time.monotonic()
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    check_not_typed(arguments, _OTHERWISE, "in an attack")
    options = attack_options.read(arguments)
    known: dict[str, Any] | None = None
    if arguments.run is not None:
        config, known = _config_of(arguments.run, arguments)
    else:
        config = certification_options.read_config(arguments)
    runtime.start(config.runtime)
    command = program.typed("attack", words)
    job = opened(config, command, evidence=True)
    if known is not None:
        _check_same(arguments.run, job, known)
    if isinstance(job.model.apply_fn, NumpyFunction):
        raise ValueError(
            f"--model: expected a model of JAX, whose gradients an attack follows, got "
            f"{job.model.name}, a function that has none"
        )
    attack_job.threat_of(job)
    out = _out(arguments, config, job)
    folder = AttackFolder(out, {**_settings(job), "attack": options.facts()})
    attacker = attack_job.Attacker(job, options, folder)
    for line in job.notes:
        program.say(line)
    minutes = arguments.max_minutes
    deadline = None if minutes is None else started + 60 * minutes
    finished = _attacked(attacker, deadline)
    return _told(job, options, folder, attacker.specs(), command, finished=finished)


def _attacked(attacker: attack_job.Attacker, deadline: float | None) -> bool:
    with tqdm(
        total=attacker.remaining(), unit="image", desc="attacking", mininterval=1, file=sys.stderr
    ) as bar:
        counts = [0, 0]

        def progress(settled: int, tried: int, broken: int) -> None:
            counts[0] += tried
            counts[1] += broken
            bar.set_postfix_str(f"{counts[1]} of {counts[0]} broken", refresh=False)
            bar.update(settled)

        return attacker.run(lambda: deadline is not None and time.monotonic() > deadline, progress)


def _told(
    job: Job,
    options: attack_options.AttackOptions,
    folder: AttackFolder,
    specs: Sequence[str],
    command: str,
    *,
    finished: bool,
) -> int:
    detects = [attack_job.detects(job, spec) for spec in specs]
    summary = attack_summary.summary(folder.lines, specs, detects)
    text = attack_summary.text_of(summary, printing.width_of(sys.stdout))
    about = {**fingerprint.environment(), **job.provenance, "command": command}
    folder.write_summary({"attack": options.facts(), "results": summary, "provenance": about})
    print(f"\n{text}")
    contradicted = attack_audit.contradictions(job, folder)
    for found in contradicted:
        program.say(f"error: {found.said}")
    if contradicted:
        program.say(f"please report this, with what is in {folder.folder}")
    where = f"patched images and attacks.jsonl in {folder.folder}"
    if not finished:
        print(f"\nstopped: {where}; give the same command again")
        return CONTRADICTED if contradicted else STOPPED
    print(f"\n{where}")
    return CONTRADICTED if contradicted else 0


def _config_of(run: Path, arguments: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The config of a run, and what its results say of it.

    Raises:
      ValueError: for a folder without results, or options that another run would have.
    """
    useless = [
        option
        for dest, option in arguments.typed.items()
        if dest not in (*_WITH_A_RUN, *_own_destinations())
    ]
    if useless:
        raise ValueError(
            f"{', '.join(useless)}: expected nothing that makes another run beside RUN_FOLDER; "
            "leave it out, or give all options and no folder"
        )
    try:
        results = json.loads((run / "results.json").read_bytes())
        known = dict(results["provenance"])
        words = earlier_command.words_of(earlier_command.of_run(known))
    except FileNotFoundError as error:
        raise ValueError(
            f"{run}: expected the folder of a run of certify, with results.json, got one without"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run / 'results.json'}: cannot be read ({error})") from error
    typed = certification_options.parser().parse_args(words)
    for name in ("data_dir", "weights", "num_images"):
        if name in arguments.typed:
            setattr(typed, name, getattr(arguments, name))
            typed.typed[name] = arguments.typed[name]
    config = certification_options.read_config(typed)
    return (
        dataclasses.replace(
            config, runtime=runtime.read(arguments), out=None, shard=(0, 1), dry_run=False
        ),
        known,
    )


def _own_destinations() -> set[str]:
    group = argparse.ArgumentParser()
    attack_options.add(group.add_argument_group("own"))
    return {action.dest for action in group._actions}


def _check_same(run: Path, job: Job, known: dict[str, Any]) -> None:
    """Refuses data or weights that are others than those of the run."""
    names = ("weights_sha256", "dataset", "split", "model", "classes", "model_options")
    there = {name: known[name] for name in names if name in known}
    now = fingerprint.plain({name: job.identity[name] for name in there if name in job.identity})
    differences = fingerprint.differences({name: there[name] for name in now}, now)
    if differences:
        raise ValueError(
            f"{run}: expected the data and the weights of that run, but {'; '.join(differences)}"
        )


def _settings(job: Job) -> dict[str, Any]:
    left_out = ("decide", "distinct_fields")
    return {name: value for name, value in job.identity.items() if name not in left_out}


def _out(arguments: argparse.Namespace, config: Config, job: Job) -> Path:
    if arguments.out is not None:
        if not isinstance(arguments.out, Path):
            raise ValueError(f"--out {arguments.out}: expected a local folder")
        return arguments.out
    if arguments.run is not None:
        return Path(arguments.run) / "attack"
    return Path("runs") / f"{job.name}-attack"
