"""Measures what the engine does, as ratios in one run: ``python -m experiments.benchmark``.

What is compared runs in turn, A B A B ..., so that a machine whose speed drifts does not decide;
medians are reported with their range. Memory and start-up are those of whole child processes.
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

from certmask_jax import fingerprint, whole_files
from certmask_jax.text import encodable
from experiments import paths, program, runtime
from experiments.measurements import children, fields, latency, passes, speed, storage
from experiments.measurements.subjects import Subject, of_job, of_noise

MEASUREMENTS = {
    "speed": "plain and masked forward pass, whole job, share of the peak, PyTorch",
    "passes": "forward passes an image, by mode",
    "fields": "the distinct fields of a model with local logits (BagNet), against whole images",
    "latency": "of the defended predictor",
    "invariance": "logits in other batch positions, shapes and device counts",
    "scaling": "over 1, 2, 4, 8 devices",
    "storage": "tables on disk",
    "start_up": "of a process, with and without compiled programs on disk",
    "memory": "peak, by number of masks and of images",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    job: tuple[str, ...] | None
    model: str
    precision: str
    images: int
    repeat: int
    chunk: int | None
    most_masks: int
    most_images: int
    measurements: tuple[str, ...]
    runtime: runtime.Runtime
    out: Path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parse.add_argument(
        "--job",
        help="options of experiments.certify, in quotes: its model, images and first defense are "
        "measured (default: --model with random weights on random images; passes, latency and "
        "invariance of the embedded default)",
    )
    parse.add_argument("--model", default="cifar_resnet20", help="default: %(default)s")
    parse.add_argument("--precision", default="highest", help="of --model (default: %(default)s)")
    parse.add_argument(
        "--images", type=int, default=32, help="of which all masked ones (default: %(default)s)"
    )
    parse.add_argument("--repeat", type=int, default=5, help="rounds (default: %(default)s)")
    parse.add_argument("--chunk", type=int, help="masked images at once (default: chosen)")
    parse.add_argument(
        "--most-masks", type=int, default=1176, help="of memory, to 3750 (default: %(default)s)"
    )
    parse.add_argument(
        "--most-images", type=int, default=10_000, help="of memory, to 50000 (default: %(default)s)"
    )
    parse.add_argument(
        "--only",
        action="append",
        choices=MEASUREMENTS,
        help="; ".join(f"{name}: {about}" for name, about in MEASUREMENTS.items())
        + " (default: all; repeat for several)",
    )
    parse.add_argument("--out", type=paths.local_path, default="runs/benchmark.json")
    runtime.add(parse)
    parse.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parse


def run(config: Config) -> dict[str, Any]:
    """All measurements, as the record that is written."""
    subject, verdicts = _subjects(config)
    record: dict[str, Any] = {
        **fingerprint.environment(),
        "command": encodable(shlex.join(["python", "-m", "experiments.benchmark", *sys.argv[1:]])),
    }
    shared = ["--model", config.model, "--precision", config.precision]
    if config.job is not None:
        shared += ["--job", shlex.join(config.job)]
    wide = [*shared, "--cpu-devices", "8"]
    of_verdicts = [] if config.job is not None else ["--job", ""]
    how: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed.measure(subject(), config.images, config.repeat, config.chunk),
        "passes": lambda: passes.measure(verdicts(), config.images, config.chunk),
        "fields": lambda: fields.measure(subject(), config.repeat),
        "latency": lambda: latency.measure(verdicts(), max(20, 20 * config.repeat), config.chunk),
        "invariance": lambda: children.run([*wide, *of_verdicts], "invariance", 1000),
        "scaling": lambda: children.run(wide, "scaling", config.repeat),
        "storage": lambda: storage.measure(config.repeat),
        "start_up": lambda: children.start_up(shared),
        "memory": lambda: children.memory(shared, config.most_masks, config.most_images),
    }
    for name in config.measurements:
        print(f"{name}: {MEASUREMENTS[name]}", file=sys.stderr)
        record[name] = how[name]()
    return record


def as_text(record: dict[str, Any]) -> str:
    """The record as a table to read: one line a number, or a median with its range."""
    devices = record["devices"]
    lines = [f"{devices['count']} x {devices['kind']}, jax {record['versions']['jax']}"]
    for name in MEASUREMENTS:
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
    return (
        lambda: of_noise(config.model, config.precision, config.images),
        lambda: of_job(("--precision", config.precision)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = program.parsed(parser(), argv)
    for name in ("images", "repeat", "most_masks", "most_images"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1")
    config = Config(
        None if arguments.job is None else tuple(shlex.split(arguments.job)),
        arguments.model,
        arguments.precision,
        arguments.images,
        arguments.repeat,
        arguments.chunk,
        arguments.most_masks,
        arguments.most_images,
        tuple(arguments.only or MEASUREMENTS),
        runtime.read(arguments),
        arguments.out,
    )
    if config.out.is_dir():
        raise FileExistsError(f"--out {config.out}: expected a file to write, got a folder")
    runtime.start(config.runtime)
    if arguments.child:
        name, *numbers = arguments.child
        subject = _subjects(config)[0]
        print(json.dumps(children.answer(subject, name, tuple(map(int, numbers)))))
        return 0
    config.out.parent.mkdir(parents=True, exist_ok=True)
    record = run(config)
    whole_files.write_text(config.out, json.dumps(record, indent=1) + "\n")
    print(f"{as_text(record)}\n\nwritten to {config.out}")
    return 0


if __name__ == "__main__":
    program.leave(main)
