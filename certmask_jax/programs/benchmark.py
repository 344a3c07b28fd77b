"""Measures what the engine does, as ratios in one run: ``certmask benchmark``.

What is compared runs in turn, A B A B ..., so that a machine whose speed drifts does not decide;
medians are reported with their range. Memory and start-up are those of whole child processes.
With ``--compile-for`` nothing is run: it says what XLA's compiler makes of the model for an
accelerator that is not here, and what speed to expect.
Writes one JSON file and prints one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from certmask_jax.files import fingerprint, whole_files
from certmask_jax.programs import model_options, paths, program, runtime
from certmask_jax.programs.certification_options import MOST_MASKED_IMAGES, PRECISIONS
from certmask_jax.programs.command_line import CommandLine, check_uses, named
from certmask_jax.programs.measurements import (
    absent_devices,
    analysis,
    attack_steps,
    children,
    compiled_for,
    evidence,
    fields,
    latency,
    packing,
    passes,
    serving,
    speed,
    storage,
)
from certmask_jax.programs.measurements.subjects import Subject, check_job, of_job, of_noise
from certmask_jax.programs.number_options import whole

MEASUREMENTS = {
    "speed": "plain and masked forward pass, whole job, share of the peak, PyTorch",
    "passes": "forward passes an image, by mode",
    "fields": "the distinct fields of a model with local logits (BagNet), against whole images",
    "evidence": "defenses on local logits (PatchGuard, ...) over the plain pass of the same model",
    "analysis": "PatchGuard's certificate of evidence over a plain loop over windows in NumPy",
    "attack": "steps of the search for a patch, beside PyTorch's, and with few masks",
    "packing": "CPU time of runs of 1 to 1,000 images over that of their useful passes",
    "latency": "of the defended predictor",
    "serving": "of a guard in one file, against PatchCleanser's loop over a plain model",
    "invariance": "logits in other batch positions, shapes and device counts",
    "scaling": "over 1, 2, 4, 8 devices",
    "storage": "tables on disk",
    "start_up": "of a process, with and without compiled programs on disk",
    "memory": "peak, by number of masks and of images",
}

_MODEL = ("model", "precision", "gelu", "attention")  # what is measured without a job
_USES = {
    "speed": ("job", *_MODEL, "images", "repeat", "chunk"),
    "passes": ("job", "precision", "images", "chunk"),
    "fields": ("job", *_MODEL, "repeat"),
    "evidence": ("job", *_MODEL, "repeat"),
    "analysis": ("evidence", "repeat"),
    "attack": ("job", *_MODEL, "repeat"),
    "packing": ("job", *_MODEL, "images", "repeat", "chunk"),
    "latency": ("job", "precision", "repeat", "chunk"),
    "serving": ("job", "precision", "repeat", "chunk"),
    "invariance": ("job", "precision"),
    "scaling": ("job", *_MODEL, "repeat"),
    "storage": ("repeat",),
    "start_up": ("job", *_MODEL),
    "memory": ("job", *_MODEL, "most_masks", "most_images"),
}
_COMPILED = "compiled"  # what is said of --compile-for
_USED_BY_COMPILING = ("job", *_MODEL, "chunk", "compile_for")
_LEAST_MASKS, _LEAST_IMAGES = 36, 1000  # of the least case of memory
_MOST_IMAGES, _MOST_ROUNDS = 1_000_000, 1000
_ALWAYS = ("only", "out", "cpu_devices", "compilation_cache", "distributed", "child")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    job: tuple[str, ...] | None
    model: str
    precision: str
    gelu: str | None
    attention: str | None
    images: int
    repeat: int
    chunk: int | None
    most_masks: int
    most_images: int
    measurements: tuple[str, ...]
    compile_for: str | None
    evidence: Path | None
    runtime: runtime.Runtime
    out: Path


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(prog=program.command("benchmark"), description=__doc__)
    parse.add_argument(
        "--job",
        metavar="OPTIONS",
        help="options of certify, in quotes: its model, images and first defense are "
        "measured (default: --model with random weights on random images; passes, latency and "
        "invariance of the embedded default)",
    )
    parse.add_argument(
        "--model",
        metavar="NAME",
        default="cifar_resnet20",
        help="what is measured without --job (default: %(default)s)",
    )
    parse.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="highest",
        metavar="NAME",
        help="of products, without --job: highest (float32), high, default (the backend's), "
        "bfloat16 (default: %(default)s)",
    )
    for option in _MODEL[2:]:
        model_options.add_of_vit(parse, option)
    parse.add_argument(
        "--images",
        type=whole(1, _MOST_IMAGES),
        default=32,
        metavar="N",
        help="images, of which all masked ones (default: %(default)s)",
    )
    parse.add_argument(
        "--repeat",
        type=whole(1, _MOST_ROUNDS),
        default=5,
        metavar="N",
        help="rounds of each measurement (default: %(default)s)",
    )
    parse.add_argument(
        "--chunk",
        type=whole(1, MOST_MASKED_IMAGES),
        metavar="N",
        help="masked images at once (default: chosen)",
    )
    parse.add_argument(
        "--most-masks",
        type=whole(_LEAST_MASKS),
        default=1176,
        metavar="N",
        help="of memory, in masks, to 3750 (default: %(default)s)",
    )
    parse.add_argument(
        "--most-images",
        type=whole(_LEAST_IMAGES),
        default=10_000,
        metavar="N",
        help="of memory, in images, to 50000 (default: %(default)s)",
    )
    parse.add_argument(
        "--evidence",
        type=paths.local_path,
        metavar="FILE",
        help="for analysis: an .npz file with local_logits [T, H, W, K] and label [T] (default: "
        "random ones, of BagNet-17's shape)",
    )
    parse.add_argument(
        "--only",
        action="append",
        choices=MEASUREMENTS,
        metavar="MEASUREMENT",
        help="; ".join(f"{name}: {about}" for name, about in MEASUREMENTS.items())
        + " (default: all; repeat for several)",
    )
    parse.add_argument(
        "--compile-for",
        choices=absent_devices.TARGETS,
        metavar="DEVICE",
        help="measure nothing: compile for four of a kind of accelerator that is not here (h100 or "
        "tpu-v5e), whose compiler has to be installed, and say what came out and what speed the "
        "compiler lets expect (default: measure)",
    )
    parse.add_argument(
        "--out",
        type=paths.local_path,
        default="runs/benchmark.json",
        metavar="FILE",
        help="JSON file to write (default: %(default)s)",
    )
    runtime.add(parse)
    parse.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parse


def read_config(arguments: argparse.Namespace) -> Config:
    """Arguments -> config; ``ValueError`` for options without use, or a job that is none."""
    names = tuple(dict.fromkeys(arguments.only or MEASUREMENTS))
    if arguments.compile_for:
        names = ()
        used_ones = {*_USED_BY_COMPILING, *_ALWAYS} - {"only"}
        check_uses(arguments, used_ones, "with --compile-for, which runs nothing")
    elif not arguments.child:
        used = {option for name in names for option in _USES[name]}
        check_uses(arguments, {*used, *_ALWAYS}, f"in {', '.join(names)}")
    job = arguments.job
    if job is not None:
        others = set(arguments.typed) - set(_MODEL)
        check_uses(arguments, others, "with --job, which has its own")
        try:
            job = tuple(shlex.split(job))
            check_job(job)
        except ValueError as error:
            raise ValueError(f"--job: {error}") from error
    return Config(
        job,
        arguments.model,
        arguments.precision,
        arguments.gelu,
        arguments.attention,
        arguments.images,
        arguments.repeat,
        arguments.chunk,
        arguments.most_masks,
        arguments.most_images,
        names,
        arguments.compile_for,
        arguments.evidence,
        runtime.read(arguments),
        arguments.out,
    )


def run(config: Config, command: str) -> dict[str, Any]:
    """All measurements, as the record that is written; ``command`` asked for them."""
    subject, verdicts = _subjects(config)
    record: dict[str, Any] = {
        **fingerprint.environment(),
        "command": command,
    }
    if config.job is not None:
        shared = of_verdicts = ["--job", shlex.join(config.job)]
    else:
        shared = ["--model", config.model, "--precision", config.precision]
        for option, value in _of_vit(config).items():
            shared += [f"--{option}", value] if value is not None else []
        of_verdicts = ["--job", shlex.join(_embedded(config))]
    wide = ["--cpu-devices", "8"]
    how: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed.measure(subject(), config.images, config.repeat, config.chunk),
        "passes": lambda: passes.measure(verdicts(), config.images, config.chunk),
        "fields": lambda: fields.measure(subject(), config.repeat),
        "evidence": lambda: evidence.measure(subject(), config.repeat),
        "analysis": lambda: analysis.measure(config.evidence, config.repeat),
        "attack": lambda: attack_steps.measure(subject(), config.repeat),
        "packing": lambda: packing.measure(subject(), config.images, config.repeat, config.chunk),
        "latency": lambda: latency.measure(verdicts(), max(20, 20 * config.repeat), config.chunk),
        "serving": lambda: serving.measure(verdicts(), max(20, 20 * config.repeat), config.chunk),
        "invariance": lambda: children.run([*of_verdicts, *wide], "invariance", 1000),
        "scaling": lambda: children.run([*shared, *wide], "scaling", config.repeat),
        "storage": lambda: storage.measure(config.repeat),
        "start_up": lambda: children.start_up(shared),
        "memory": lambda: children.memory(shared, config.most_masks, config.most_images),
    }
    if config.compile_for is not None:
        target = absent_devices.TARGETS[config.compile_for]
        record[_COMPILED] = compiled_for.measure(subject(), target, config.chunk)
    for name in config.measurements:
        print(f"{name}: {MEASUREMENTS[name]}", file=sys.stderr)
        record[name] = how[name]()
    return record


def as_text(record: dict[str, Any]) -> str:
    """The record as a table to read: one line a number, or a median with its range."""
    devices = record["devices"]
    lines = [f"{devices['count']} x {devices['kind']}, jax {record['versions']['jax']}"]
    for name in (*MEASUREMENTS, _COMPILED):
        if name in record:
            lines += ["", name, *_lines(record[name], "  ")]
    return "\n".join(lines)


def _lines(values: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in values.items():
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, dict) and set(value) == {"median", "least", "most"}:
            median, least, most = (_number(value[k]) for k in ("median", "least", "most"))
            lines.append(f"{label:58}{median:>12}  ({least} to {most})")
        elif isinstance(value, dict):
            lines += [label, *_lines(value, indent + "  ")]
        elif isinstance(value, int | float):
            lines.append(f"{label:58}{_number(value):>12}")
        elif isinstance(value, list):
            lines.append(f"{label}: {'; '.join(map(str, value)) or 'none'}")
        else:
            lines.append(f"{label}: {value}")
    return lines


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1e15:
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _subjects(config: Config) -> tuple[Callable[[], Subject], Callable[[], Subject]]:
    """What speed is measured of, and what verdicts: opened when they are asked for."""
    job = config.job
    if job is not None:
        return (lambda: of_job(job)), (lambda: of_job(job))
    only_shapes = config.compile_for is not None
    return (
        lambda: of_noise(
            config.model,
            config.precision,
            config.images,
            only_shapes=only_shapes,
            **_of_vit(config),
        ),
        lambda: of_job(_embedded(config)),
    )


def _of_vit(config: Config) -> dict[str, str | None]:
    """What was said of a ViT; None for what was not."""
    return {"gelu": config.gelu, "attention": config.attention}


def _embedded(config: Config) -> tuple[str, ...]:
    """The job of the measurements that need verdicts, if no other is given."""
    return ("--precision", config.precision)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    config = read_config(arguments)
    compiles = config.compile_for is not None
    if config.job is None and (
        compiles or "model" in {o for m in config.measurements for o in _USES[m]}
    ):
        with named("--model"):
            model_options.named_model(config.model, **_of_vit(config))
    if config.evidence is not None:
        with named("--evidence"):
            analysis.read(config.evidence)
    if config.out.is_dir():
        raise FileExistsError(f"--out {config.out}: expected a file to write, got a folder")
    if compiles:
        absent_devices.begin()
    runtime.start(config.runtime)
    if arguments.child:
        name, *numbers = arguments.child
        subject = _subjects(config)[0]
        print(json.dumps(children.answer(subject, name, tuple(map(int, numbers)))))
        return 0
    config.out.parent.mkdir(parents=True, exist_ok=True)
    words = sys.argv[1:] if argv is None else argv
    record = run(config, program.typed("benchmark", words))
    whole_files.write_text(config.out, json.dumps(record, indent=1) + "\n")
    print(f"{as_text(record)}\n\nwritten to {config.out}")
    return 0
