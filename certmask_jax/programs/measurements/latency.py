"""How long the defended classifier takes to answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.inference.defended_model import defended
from certmask_jax.programs.measurements.subjects import Subject

_BATCHES = (1, 8)


def measure(subject: Subject, calls: int, chunk: int | None) -> dict[str, Any]:
    """Milliseconds a call at the median and the 99th percentile, and passes an image."""
    record: dict[str, Any] = {"subject": subject.name, "calls": calls}
    images = subject.test_set.read(0, min(calls, len(subject.test_set))).images
    for defense in subject.defenses:
        guarded = defended(
            subject.apply_fn,
            subject.params,
            defense,
            channels=subject.image_shape[2],
            preprocessing=subject.preprocessing,
            chunk=chunk,
        )
        answers = guarded(images)
        figures: dict[str, Any] = {
            "chunk": guarded.engine.chunk,
            "chunk_sizes": list(guarded.engine.chunk_sizes),
            "masks": len(defense.mask_set),
            "passes_mean": float(answers.masked_images.mean()),
            "passes_most": int(answers.masked_images.max()),
        }
        for batch in _BATCHES:
            figures[f"milliseconds, {batch} at once"] = _percentiles(guarded, images, batch, calls)
        record[str(defense)] = figures
    return record


def _percentiles(
    guarded: Callable[[NDArray[np.uint8]], object],
    images: NDArray[np.uint8],
    batch: int,
    calls: int,
) -> dict[str, float]:
    seconds = []
    guarded(images[np.arange(batch) % len(images)])  # compiled
    for call in range(calls):
        chosen = np.arange(call * batch, (call + 1) * batch) % len(images)
        started = time.perf_counter()
        guarded(images[chosen])
        seconds.append(time.perf_counter() - started)
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"p50": 1e3 * float(p50), "p99": 1e3 * float(p99)}
