"""The command line of ``certmask attack``: that of certify, or the folder of a run, and its own.

Beside the folder of a run nothing is typed that would make another run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from certmask_jax.programs import certification_options, page_options, paths, program, runtime
from certmask_jax.programs.attacking import attack_options, given_patch_options, universal_options
from certmask_jax.programs.attacking.attacked_run import AttackedRun
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.command_line import CommandLine

OTHERWISE = (
    *("list", "from_tables", "dry_run", "margin_guard", "shard", "chunk"),
    *("decide", "whole_images", "format", "patched", "distributed", "sizes", "page"),
    "keep_evidence",
    *page_options.DESTINATIONS,
)
"""Options of certify that say nothing about an attack."""

_OF_THE_RUN = ("data_dir", "weights", "num_images")
_WITH_A_RUN = (*_OF_THE_RUN, "out", "max_minutes", "cpu_devices", "compilation_cache")
"""Options of certify that go beside the folder of a run."""


def parser(*, description: str | None) -> CommandLine:
    """The command line: that of certify, and how it attacks."""
    parse = certification_options.parser()
    parse.prog = program.command("attack")
    parse.description, parse.epilog = description, None
    for action in parse._actions:
        if action.dest in OTHERWISE:
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
    _add_own(parse)
    return parse


def _add_own(parse: argparse.ArgumentParser) -> None:
    """Adds the options that certify does not have."""
    group = parse.add_argument_group("how it attacks")
    attack_options.add(group)
    attack_options.add_place(group)
    given_patch_options.add(parse.add_argument_group("patches that are given"))
    universal_options.add(parse.add_argument_group("one patch for many images"))


def config_of(run: AttackedRun, arguments: argparse.Namespace) -> Config:
    """The config of a run; ``ValueError`` for options that another run would have."""
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
    names = [name for name in _OF_THE_RUN if name in arguments.typed]
    given = {name: getattr(arguments, name) for name in names}
    return run.config(given, arguments.typed, runtime.read(arguments))


def _own_destinations() -> set[str]:
    parse = argparse.ArgumentParser()
    _add_own(parse)
    return {action.dest for action in parse._actions}


def out_of(arguments: argparse.Namespace, job: Job, name: str) -> Path:
    """Where the attack goes: as ``--out`` says, or by its name in the folder of the run."""
    if arguments.out is not None:
        if not isinstance(arguments.out, Path):
            raise ValueError(f"--out {arguments.out}: expected a local folder")
        return arguments.out
    if arguments.run is not None:
        return Path(arguments.run) / name
    return Path("runs") / f"{job.name}-{name}"
