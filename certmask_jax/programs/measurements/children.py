"""What only a whole process shows: its peak of memory, its start-up, devices of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax import defenses, mask_sets
from certmask_jax.certification import evaluation, verdicts
from certmask_jax.programs.measurements import invariance, scaling
from certmask_jax.programs.measurements.subjects import Noise, Subject

_MASKS, _IMAGES = (36, 1176, 3750), (1000, 10_000, 50_000)
_FEW_MASKS, _FEW_IMAGES = 36, 100


def memory(command: Sequence[str], most_masks: int, most_images: int) -> dict[str, float]:
    """Peak resident memory in MB of whole processes, by masks and by images."""
    cases = [(masks, _FEW_IMAGES) for masks in _MASKS if masks <= most_masks]
    cases += [(_FEW_MASKS, images) for images in _IMAGES if images <= most_images]
    return {
        f"{masks} masks, {images} images": run(command, "memory", masks, images)["megabytes"]
        for masks, images in cases
    }


def start_up(command: Sequence[str]) -> dict[str, Any]:
    """Seconds from the start of a process to its first labels, without and with compiled programs
    on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for name in ("first time", "again"):
            started = time.monotonic()
            phases = run([*command, "--compilation-cache", folder], "start_up")
            seconds[name] = {**phases, "whole process": time.monotonic() - started}
    return seconds


def run(command: Sequence[str], name: str, *numbers: int) -> Any:
    """What a child process says; ``command`` are the options that it is to share."""
    words = [sys.executable, "-m", "certmask_jax", "benchmark", *command, "--child", name]
    result = subprocess.run(
        [*words, *map(str, numbers)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise OSError(f"the child process {name} {numbers} failed: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def answer(subject: Callable[[], Subject], name: str, numbers: Sequence[int]) -> Any:
    """What a child process does."""
    if name == "memory":
        return {"megabytes": _whole_run(subject(), *numbers)}
    if name == "start_up":
        return _start_up(subject)
    wide: Mapping[str, Callable[..., Any]] = {
        "scaling": scaling.measure,
        "invariance": invariance.measure,
    }
    return wide[name](subject(), *numbers)


def _start_up(subject: Callable[[], Subject]) -> dict[str, float]:
    started = time.monotonic()
    chosen = subject()
    opened = time.monotonic()
    chosen.forward().tried(chosen.test_set.read(0, 1).images)
    return {
        "model and data": opened - started,
        "compilation and first chunk": time.monotonic() - opened,
    }


def _whole_run(subject: Subject, masks: int, images: int) -> float:
    """One whole evaluation and its report in this process; its peak memory in MB."""
    size = subject.image_shape[:2]
    patch = subject.defenses[0].mask_set.patch_size
    grid = mask_sets.budgeted_grid(size, patch, masks_per_axis=6)
    if masks > len(grid):  # distinct masks, that many at least: offset tilings have no budget
        grid = mask_sets.MaskSet(_many(size, max(patch), masks), size, patch)
    defense = defenses.certmask(grid)
    with tempfile.TemporaryDirectory() as folder:
        saved = evaluation.evaluate(
            Noise(images, subject.image_shape, subject.num_classes),
            subject.apply_fn,
            subject.params,
            [defense],
            Path(folder) / "tables",
            preprocessing=subject.preprocessing,
        )
        assert saved is not None
        verdicts.certify(saved, [defense])
    return _peak_memory()


def _peak_memory() -> float:
    """MB that this process had resident at most; not ``ru_maxrss``, which a child inherits."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise OSError(f"{status}: memory is measured on Linux only; leave out memory")
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
