"""Writes a guarded classifier as one file that JAX runs anywhere: ``certmask export FILE``.

FILE ends in .stablehlo. It holds the model, its weights, the preprocessing and the defense: images
go in, labels and alerts come out. A manifest (.json) beside it says what it is. Options are those
of ``certmask certify``, with one --defense: the guard is the classifier that is certified there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certmask_jax.inference import exported_guard, guard_graph
from certmask_jax.programs import certification_options, paths, program
from certmask_jax.programs.certification_job import Job, opened
from certmask_jax.programs.command_line import CommandLine, as_options, check_not_typed

_OTHERWISE = (
    *("list", "from_tables", "dry_run", "out", "max_minutes", "margin_guard", "shard", "chunk"),
    *("decide", "whole_images", "format", "patched", "distributed"),
)
"""Options of certify that say nothing about what is exported."""
_FACTS = (
    *("model", "model_options", "weights", "weights_sha256", "weights_source", "data_config"),
    *("precision", "fill", "views", "dataset", "class_names", "class_mapping", "patch_lives"),
    *("threats",),
)


def parser() -> CommandLine:
    """The command line: that of certify without what is no use here."""
    parse = certification_options.parser()
    parse.prog = program.command("export")
    parse.description, parse.epilog = __doc__, None
    for action in parse._actions:
        if action.dest in _OTHERWISE:
            action.help = argparse.SUPPRESS
    parse.add_argument(
        "file", type=paths.local_path, metavar="FILE", help="what is written, .stablehlo"
    )
    group = parse.add_argument_group("what is written")
    group.add_argument(
        "--platforms",
        default=",".join(exported_guard.PLATFORMS),
        metavar="NAME[,NAME]",
        help="what it runs on: cpu, cuda, tpu; none of them has to be here (default: %(default)s)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that are there (default: refuse)",
    )
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    check_not_typed(arguments, _OTHERWISE, "in a guard")
    file = exported_guard.check_path(arguments.file, overwrite=arguments.overwrite)
    platforms = tuple(name.strip() for name in arguments.platforms.split(","))
    with as_options("platforms"):
        exported_guard.check_platforms(platforms)
    given = arguments.defense or []
    if len(given) != 1:
        raise ValueError(f"--defense: expected one, which the guard answers by, got {len(given)}")
    config = certification_options.read_config(arguments)
    job = opened(config, program.typed("export", list(argv or sys.argv[1:])))
    if len(job.defenses) != 1:
        raise ValueError(
            f"--patch: expected one attack, which the guard is for, got {len(job.defenses)}"
        )
    manifest = _written(job, file, platforms, overwrite=arguments.overwrite)
    print(
        f"{file}: {manifest['bytes'] / 1e6:,.1f} MB for {', '.join(platforms)}, and "
        f"{exported_guard.manifest_of(file).name}\n{manifest['defense']}"
    )
    return 0


def _written(job: Job, file: Path, platforms: Sequence[str], *, overwrite: bool) -> dict[str, Any]:
    (defense,) = job.defenses
    guard = guard_graph.guard_program(
        job.model.apply_fn,
        job.params,
        defense,
        num_classes=job.model.num_classes,
        preprocessing=job.preprocessing,
    )
    height, width = defense.mask_set.image_size
    about = {
        "defense": str(defense),
        "spec": job.identity["defense"][0],
        "guarantee": str(defense.guarantee),
        "num_classes": job.model.num_classes,
        **{name: job.provenance[name] for name in _FACTS if name in job.provenance},
    }
    return exported_guard.write(
        file,
        guard,
        (height, width, job.model.data_config.channels),
        about=about,
        platforms=platforms,
        overwrite=overwrite,
    )
