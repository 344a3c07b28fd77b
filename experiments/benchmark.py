"""Measures the masked forward pass against the plain one, as ratios in one run.

    python -m experiments.benchmark

What is compared runs in turn, A B A B ..., so that a machine whose speed drifts does not decide;
medians are reported with their range. Peak memory is that of whole child processes. Writes one JSON
file and prints one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax import certification, data, defenses, evaluation, fingerprint, mask_sets, models
from certmask_jax.forward import MaskedForward, masked_forward
from certmask_jax.models import Model
from certmask_jax.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class _Noise:
    """A test set of seeded random images, made when they are read."""

    count: int
    shape: tuple[int, int, int]
    classes: int

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> data.Batch:
        rng = np.random.default_rng(start)
        images = rng.integers(0, 256, (stop - start, *self.shape), dtype=np.uint8)
        labels = rng.integers(0, self.classes, stop - start, dtype=np.int32)
        return data.Batch(images, labels, tuple(map(str, range(start, stop))))


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str
    precision: str
    images: int
    repeat: int
    chunk: int | None
    memory: bool
    out: Path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parse.add_argument("--model", default="cifar_resnet20", help="name (default: %(default)s)")
    parse.add_argument("--precision", default="highest", help="default: %(default)s")
    parse.add_argument(
        "--images", type=int, default=32, help="of which all 666 masked ones (default: %(default)s)"
    )
    parse.add_argument("--repeat", type=int, default=5, help="rounds (default: %(default)s)")
    parse.add_argument("--chunk", type=int, help="masked images at once (default: chosen)")
    parse.add_argument("--no-memory", action="store_true", help="leave out the memory runs")
    parse.add_argument("--out", type=Path, default=Path("runs/benchmark.json"))
    # A child process of the memory measurement: masks per axis, images.
    parse.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    return parse


def run(config: Config) -> dict[str, Any]:
    """All measurements, as the record that is written."""
    model, params, preprocessing = _subject(config)
    size = model.data_config.input_size
    patch = max(1, round(0.16 * size[0]))
    defense = defenses.double_masking(mask_sets.budgeted_grid(size, patch, masks_per_axis=6))
    noise = _Noise(config.images, (*size, model.data_config.channels), model.num_classes)
    images = noise.read(0, config.images).images
    forward = masked_forward(
        model.apply_fn,
        params,
        images.shape[1:],
        preprocessing=preprocessing,
        boxes_per_mask=defense.masked_images.boxes.shape[1],
        chunk=config.chunk,
    )
    items = len(images) * len(defense.masked_images)
    plain = _plain(model, params, preprocessing, forward)

    def masked() -> None:
        forward.table_block(images, defense.masked_images)

    def whole_job() -> None:
        with tempfile.TemporaryDirectory() as folder:
            saved = evaluation.evaluate(
                noise,
                model.apply_fn,
                params,
                [defense],
                Path(folder) / "tables",
                preprocessing=preprocessing,
                chunk=forward.chunk,
            )
            assert saved is not None
            certification.certify(saved, [defense])

    seconds = _in_turn(
        {"plain": lambda: plain(items), "masked": masked, "whole job": whole_job}, config.repeat
    )
    record: dict[str, Any] = {
        **fingerprint.environment(),
        "command": " ".join(["python", "-m", "experiments.benchmark", *sys.argv[1:]]),
        "model": config.model,
        "precision": config.precision,
        "chunk": forward.chunk,
        "masked_images": items,
        "per_second": {name: _spread([items / s for s in seconds[name]]) for name in seconds},
        "masked_over_plain": _spread(
            [p / m for p, m in zip(seconds["plain"], seconds["masked"], strict=True)]
        ),
        "share_outside_model": _spread(
            [1 - p / w for p, w in zip(seconds["plain"], seconds["whole job"], strict=True)]
        ),
    }
    if config.memory:
        record["peak_memory_mb"] = _memory(config)
    return record


def as_text(record: dict[str, Any]) -> str:
    """The record as a table to read."""
    kind, count = record["devices"]["kind"], record["devices"]["count"]
    lines = [
        f"{record['model']}, {record['precision']}, chunk {record['chunk']}, {count} x {kind}, "
        f"{record['masked_images']} masked images a round",
        "",
        f"{'':28}{'median':>10}{'least':>10}{'most':>10}",
    ]

    def row(name: str, values: dict[str, float], digits: int) -> str:
        numbers = (f"{values[key]:10.{digits}f}" for key in ("median", "least", "most"))
        return f"{name:28}{''.join(numbers)}"

    lines += [row(f"{n}, images/s", v, 0) for n, v in record["per_second"].items()]
    lines.append(row("masked / plain", record["masked_over_plain"], 3))
    lines.append(row("share outside the model", record["share_outside_model"], 3))
    for name, peak in record.get("peak_memory_mb", {}).items():
        lines.append(f"{'peak memory, ' + name:45}{peak:10.0f} MB")
    return "\n".join(lines)


def _subject(config: Config) -> tuple[Model, Any, Preprocessing]:
    """The model with random weights: speed does not depend on them."""
    model = models.create(config.model)
    preprocessing = Preprocessing(
        model.data_config.mean,
        model.data_config.std,
        precision=config.precision,  # type: ignore[arg-type]  # checked there
    )
    return model, model.init(jax.random.key(0)), preprocessing


def _plain(
    model: Model, params: Any, preprocessing: Preprocessing, forward: MaskedForward
) -> Callable[[int], None]:
    """The same model, chunk and precision on ordinary images: normalise, classify, argmax."""
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    is_bfloat16 = preprocessing.precision == "bfloat16"
    precision = "default" if is_bfloat16 else preprocessing.precision

    def classify(params: Any, images: jax.Array) -> jax.Array:
        if is_bfloat16:
            params, images = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, images))
        pixels = (images.astype(jnp.float32) / 255 - mean) / std
        with jax.default_matmul_precision(precision):
            return model.apply_fn(params, pixels).argmax(axis=1)

    split = jax.sharding.NamedSharding(forward.mesh, jax.sharding.PartitionSpec("devices"))
    everywhere = jax.sharding.NamedSharding(forward.mesh, jax.sharding.PartitionSpec())
    step = jax.jit(classify, in_shardings=(everywhere, split), out_shardings=split)
    noise = _Noise(forward.chunk, forward.image_shape, model.num_classes)
    images: NDArray[np.uint8] = noise.read(0, forward.chunk).images
    params = jax.device_put(params, everywhere)

    def classify_all(items: int) -> None:
        waiting = None
        for _ in range(0, items, forward.chunk):
            found = step(params, jax.device_put(images, split))
            if waiting is not None:
                np.asarray(waiting)
            waiting = found
        np.asarray(waiting)

    return classify_all


def _in_turn(runs: dict[str, Callable[[], None]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeat + 1):
        for name, function in runs.items():
            start = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _memory(config: Config) -> dict[str, float]:
    """Peak resident memory in MB of whole processes, by masks and by images."""
    found = {}
    for masks, images in ((36, 100), (1176, 100), (36, 1000), (36, 10_000)):
        command = [
            sys.executable, "-m", "experiments.benchmark", "--model", config.model,
            "--precision", config.precision, "--child", str(masks), str(images),
        ]  # fmt: skip
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found[f"{masks} masks, {images} images"] = float(result.stdout.split()[-1])
    return found


def _child(config: Config, masks: int, images: int) -> None:
    """One whole evaluation in this process; prints its peak memory in MB."""
    model, params, preprocessing = _subject(config)
    size = model.data_config.input_size
    patch = max(1, round(0.16 * size[0]))
    grid = mask_sets.budgeted_grid(size, patch, masks_per_axis=6)
    if masks > len(grid):  # distinct masks, that many at least: offset tilings have no budget
        grid = mask_sets.MaskSet(_many(size, patch, masks), size, (patch, patch))
    defense = defenses.certmask(grid)
    noise = _Noise(images, (*size, model.data_config.channels), model.num_classes)
    with tempfile.TemporaryDirectory() as folder:
        saved = evaluation.evaluate(
            noise,
            model.apply_fn,
            params,
            [defense],
            Path(folder) / "tables",
            preprocessing=preprocessing,
            chunk=config.chunk,
        )
        assert saved is not None
        certification.certify(saved, [defense])
    print(_peak_memory())


def _peak_memory() -> float:
    """MB that this process had resident at most; not ``ru_maxrss``, which a child inherits."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise OSError(f"{status}: memory is measured on Linux only; give --no-memory")
    peak = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


def _many(size: tuple[int, int], patch: int, count: int) -> NDArray[np.int32]:
    """``count`` distinct masks that cover: of every place and of growing sizes."""
    boxes = [
        (top, left, top + side, left + side)
        for side in range(patch, min(size) + 1)
        for top in range(size[0] - side + 1)
        for left in range(size[1] - side + 1)
    ]
    return np.array(boxes[:count], dtype=np.int32)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program."""
    arguments = parser().parse_args(argv)
    config = Config(
        arguments.model,
        arguments.precision,
        arguments.images,
        arguments.repeat,
        arguments.chunk,
        not arguments.no_memory,
        arguments.out,
    )
    try:
        if arguments.child:
            _child(config, *arguments.child)
            return 0
        record = run(config)
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{as_text(record)}\n\nwritten to {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
