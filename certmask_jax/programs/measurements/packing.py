"""What a run takes beside its useful passes: chunks that are not full, and the work of the host."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from certmask_jax.certification import evaluation, run_hooks
from certmask_jax.defenses import Defense
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.views import passes_each
from certmask_jax.inference.whole_images import WholeImages
from certmask_jax.programs.measurements.subjects import Subject
from certmask_jax.programs.measurements.timing import spread
from certmask_jax.programs.run_defenses import build_defenses
from certmask_jax.tables.image_sets import FirstImages

_COUNTS = (1, 4, 12, 24, 100, 1000)  # images of a run, beside those that are asked for
_DEFENSES = (
    "double_masking:masks_per_axis=3",
    "pair_cover:partition=2x3",
    "mrcert:masks_per_axis=3",
)
_PLAIN_SECONDS = 1.0  # of each size and round, about


def measure(subject: Subject, images: int, repeat: int, chunk: int | None) -> dict[str, Any]:
    """CPU time of runs with early exit, over that of their useful passes at the best chunk size.

    The useful passes are those of the table; a plain pass is the compiled chunk alone, at whichever
    of its sizes takes least for an item. Programs are compiled before; both are of this process,
    all its threads, and are taken in turn.

    There is a run of ``images`` images, or of all that there are if they are fewer, and one of each
    usual number below it.
    """
    threat = subject.defenses[0].mask_set.threat
    record: dict[str, Any] = {"subject": subject.name}
    for defense in build_defenses(_DEFENSES, [threat]):
        for count in counts(min(images, len(subject.test_set))):
            figures = _of_runs(subject, defense, count, repeat, chunk)
            record[f"{defense.name}, {count} images"] = figures
    return record


def counts(most: int) -> list[int]:
    """How many images the runs have: the usual numbers below ``most``, and that."""
    return [*(count for count in _COUNTS if count < most), most]


def _of_runs(
    subject: Subject, defense: Defense, count: int, repeat: int, chunk: int | None
) -> dict[str, Any]:
    part = FirstImages(subject.test_set, count)
    subject = dataclasses.replace(subject, defenses=[defense])
    engine = subject.forward(chunk=chunk).for_masks(defense.masked_images)
    engine = engine.for_blocks(min(count, engine.images_at_once()))
    pixels = part.read(0, min(count, engine.images_at_once())).images
    held = computed_with(subject.params, subject.preprocessing)
    params = jax.device_put(held, NamedSharding(engine.mesh, PartitionSpec()))
    ratios, seconds, passes, slots = [], [], 0, 0
    for number in range(repeat + 1):  # the first compiles
        each = min(_plain(engine, params, pixels, size) for size in engine.chunk_sizes)
        passes, slots, taken = _run(subject, part, defense, chunk)
        if number:
            ratios.append(taken / (passes * each))
            seconds.append(taken)
    return {
        "chunk_sizes": list(engine.chunk_sizes),
        "passes": passes_each(engine.facts()) * passes,
        "slots_over_passes": slots / passes,
        "cpu_seconds": spread(seconds),
        "cpu_time_over_useful_passes": spread(ratios),
    }


def _run(
    subject: Subject, part: FirstImages, defense: Defense, chunk: int | None
) -> tuple[int, int, float]:
    """Passes, slots and CPU seconds of a run onto the disk."""
    steps: list[run_hooks.Step] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        evaluation.evaluate(
            part,
            subject.apply_fn,
            subject.params,
            [defense],
            Path(folder) / "tables",
            preprocessing=subject.preprocessing,
            decide=True,
            chunk=chunk,
            hooks=run_hooks.Hooks(progress=steps.append),
        )
        taken = time.process_time() - started
    return sum(s.evaluated for s in steps), sum(s.slots for s in steps), taken


def _plain(engine: WholeImages, params: Any, pixels: Any, size: int) -> float:
    """CPU seconds of an item in chunks of ``size``: the compiled program alone, called again."""
    uploaded = engine.upload(pixels)
    call = _call(engine, params, uploaded.on_devices, size)
    call()
    started = time.process_time()
    call()
    once = max(time.process_time() - started, 1e-6)
    times = max(1, round(_PLAIN_SECONDS / once))
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / (times * size)


def _call(engine: WholeImages, params: Any, images: jax.Array, size: int) -> Callable[[], object]:
    program = engine.executable(size, len(images))
    boxes = np.zeros((size, engine.boxes_per_mask, 4), np.int32)
    which = np.zeros(size, np.int32)
    given = params, images, *jax.device_put((boxes, which), program.input_shardings[0][2:])
    return lambda: jax.block_until_ready(program(*given))
