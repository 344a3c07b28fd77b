"""Measures what the engine does, as ratios in one run: ``certmask benchmark``.

What is compared runs in turn, A B A B ..., so that a machine whose speed drifts does not decide;
medians are reported with their range. Memory and start-up are those of whole child processes.
With ``--compile-for`` nothing is run: it says what XLA's compiler makes of the model for an
accelerator that is not here, and what speed to expect.
Writes one JSON file and prints one table.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from certmask_jax.files import fingerprint, whole_files
from certmask_jax.programs import chosen_model, program, runtime
from certmask_jax.programs.command_line import CommandLine, named
from certmask_jax.programs.measurements import (
    absent_devices,
    analysis,
    attack_steps,
    benchmark_options,
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
from certmask_jax.programs.measurements.benchmark_options import (
    MEASUREMENTS,
    USES,
    Config,
    read_config,
)
from certmask_jax.programs.measurements.subjects import Subject, check_job, of_job, of_noise

_COMPILED = "compiled"  # what is said of --compile-for


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(prog=program.command("benchmark"), description=__doc__)
    benchmark_options.add(parse)
    return parse


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


def _check_backend(config: Config) -> None:
    """``ValueError`` before any work for cuDNN's attention on a machine without a GPU."""
    job = None if config.job is None else check_job(config.job)
    attention = config.attention if job is None else job.model.attention
    backend = jax.default_backend()
    if attention == "cudnn" and backend != "gpu":
        raise ValueError(
            f"--attention: expected xla on {backend}, got cudnn, which runs on NVIDIA GPUs alone"
        )


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
        compiles or "model" in {o for m in config.measurements for o in USES[m]}
    ):
        with named("--model"):
            chosen_model.named_model(config.model, **_of_vit(config))
    if config.evidence is not None:
        with named("--evidence"):
            analysis.read(config.evidence)
    if config.out.is_dir():
        raise FileExistsError(f"--out {config.out}: expected a file to write, got a folder")
    if compiles:
        absent_devices.begin()
    runtime.start(config.runtime)
    _check_backend(config)
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
