"""Writes a guarded classifier as one file that JAX runs anywhere: ``certmask export FILE``.

FILE ends in .stablehlo. It holds the model, its weights, the preprocessing and the defense: images
go in, labels and alerts come out. A manifest (.json) beside it says what it is. Options are those
of ``certmask certify``, with one --defense: the guard is the classifier that is certified there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from certmask_jax import models
from certmask_jax.inference import exporting
from certmask_jax.inference.exported_guard import manifest_of
from certmask_jax.programs import (
    certification_config,
    certification_options,
    model_options,
    paths,
    program,
    runtime,
)
from certmask_jax.programs.certification_job import Job, opened
from certmask_jax.programs.command_line import CommandLine, as_options, check_not_typed
from certmask_jax.programs.number_options import whole

_OTHERWISE = (
    *("list", "from_tables", "dry_run", "out", "max_minutes", "margin_guard", "shard", "chunk"),
    *("decide", "whole_images", "two_parts", "format", "patched", "distributed", "cpu_devices"),
    *("compilation_cache", "num_images", "subset_seed", "on_unreadable", "page", "object_boxes"),
    *("keep_evidence", "sizes"),
)
"""Options of certify that say nothing about what is exported."""
_OF_DATA = ("data_dir", "labels", "split", "class_index", "only_classes", "patch_lives")
_FACTS = (
    *("model", "model_options", "weights", "weights_entry", "weights_sha256", "weights_source"),
    *("data_config", "fill", "patch_lives", "command"),
)
_FACTS_OF_DATA = ("dataset", "class_mapping")


def parser() -> CommandLine:
    """The command line: that of certify without what is no use here."""
    parse = certification_options.parser()
    parse.prog = program.command("export")
    parse.description, parse.epilog = __doc__, None
    for action in parse._actions:
        if action.dest in _OTHERWISE:
            action.help = argparse.SUPPRESS
        elif action.dest == "class_names":
            action.help = (
                "names of the outputs for the manifest, one a line (default: those of --dataset, "
                "of the digits for their model, else none)"
            )
    parse.add_argument(
        "file", type=paths.local_output, metavar="FILE", help="what is written, .stablehlo"
    )
    group = parse.add_argument_group("what is written")
    group.add_argument(
        "--platforms",
        default=",".join(exporting.PLATFORMS),
        metavar="NAME[,NAME]",
        help="what it runs on: cpu, cuda, tpu; none of them has to be here (default: %(default)s)",
    )
    group.add_argument(
        "--masks-at-once",
        type=whole(1, certification_options.MOST_MASKED_IMAGES),
        default=16,
        metavar="N",
        help="masked images of an image in one forward pass, at most (default: %(default)s)",
    )
    group.add_argument(
        "--certified",
        action="store_true",
        help="also give each image's label where it is certified, else -1, which takes the whole "
        "table of every image (default: labels and alerts alone)",
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
    words = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(words)
    check_not_typed(arguments, _OTHERWISE, "in a guard")
    exporting.check_path(arguments.file, overwrite=arguments.overwrite)
    platforms = tuple(name.strip() for name in arguments.platforms.split(","))
    with as_options("platforms"):
        exporting.check_platforms(platforms)
    names = None if arguments.class_names is None else _read_names(arguments.class_names)
    given = arguments.defense or []
    if len(given) != 1:
        raise ValueError(f"--defense: expected one, which the guard answers by, got {len(given)}")
    is_digits = arguments.model == models.DEFAULT or (
        arguments.model is None and not model_options.may_say_model(arguments.weights)
    )
    has_data = is_digits or "dataset" in arguments.typed
    if not has_data:
        check_not_typed(arguments, _OF_DATA, "without --dataset")
    config = certification_config.read_config(arguments)
    runtime.start(dataclasses.replace(config.runtime, cpu_devices=None, compilation_cache=None))
    job = opened(config, program.typed("export", words), with_data=has_data)
    if len(job.defenses) != 1:
        raise ValueError(
            f"--patch: expected one attack, which the guard is for, got {len(job.defenses)}"
        )
    facts: tuple[str, ...] = _FACTS
    if has_data:
        facts = (*_FACTS, *_FACTS_OF_DATA)
        names = names or job.provenance["class_names"]
    about = {name: job.provenance[name] for name in facts if name in job.provenance}
    for line in job.notes:
        program.say(line)
    if config.patch_lives == "native":
        height, width = job.defenses[0].mask_set.image_size
        program.say(
            f"the guard takes images of {height}x{width} pixels alone, the size of the first one"
        )
    manifest = _written(arguments, job, platforms, names, about)
    file = arguments.file
    print(
        f"{file}: {manifest['bytes'] / 1e6:,.1f} MB for {', '.join(platforms)}, and "
        f"{manifest_of(file).name}\n{manifest['defense']}"
    )
    return 0


def _written(
    arguments: argparse.Namespace,
    job: Job,
    platforms: Sequence[str],
    names: Sequence[str] | None,
    about: dict[str, Any],
) -> dict[str, Any]:
    (defense,) = job.defenses
    with as_options("class_names", "certified"):
        return exporting.export_guard(
            arguments.file,
            job.model.apply_fn,
            job.params,
            defense,
            channels=job.model.data_config.channels,
            preprocessing=job.preprocessing,
            dropping=job.dropping,
            class_names=names,
            certified=arguments.certified,
            masks_at_once=arguments.masks_at_once,
            platforms=platforms,
            about={"spec": job.identity["defense"][0], **about},
            overwrite=arguments.overwrite,
        )


def _read_names(file: Path) -> list[str]:
    """The lines of a file; ``ValueError`` unless they are text, and each is a name."""
    try:
        names = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--class-names {file}: expected text in UTF-8 ({error})") from error
    if not names or not all(name.strip() for name in names):
        raise ValueError(f"--class-names {file}: expected a name on every line")
    return [name.strip() for name in names]
