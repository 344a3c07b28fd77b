"""How long a guard in one file takes to answer, against PatchCleanser's loop over a plain model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses import DoubleMasking
from certmask_jax.inference.exported_guard import read_guard
from certmask_jax.inference.exporting import export_guard
from certmask_jax.inference.masked_pass import computed_with, masked_logits
from certmask_jax.programs.measurements.subjects import Subject

_BATCHES = (1, 8)
Images = NDArray[np.uint8]
Answer = Callable[[Images], NDArray[np.int32]]


def measure(subject: Subject, calls: int, chunk: int | None) -> dict[str, Any]:
    """Milliseconds a call, one and eight images at once, of the job's first double masking.

    The two answer the same images in turn; where their labels differ, it is counted. ``chunk`` is
    the guard's ``masks_at_once``.
    """
    defense = next((d for d in subject.defenses if type(d) is DoubleMasking), None)
    if defense is None or defense.second_set is not None:
        raise ValueError(
            "serving: expected a job with double masking of one mask set, which PatchCleanser's "
            f"loop is for, got {', '.join(d.name for d in subject.defenses)}"
        )
    images = subject.test_set.read(0, min(calls, len(subject.test_set))).images
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "guard.stablehlo"
        started = time.perf_counter()
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        manifest = export_guard(
            file,
            subject.apply_fn,
            subject.params,
            defense,
            channels=subject.image_shape[2],
            preprocessing=subject.preprocessing,
            platforms=(platform,),
            masks_at_once=chunk or 16,
        )
        exported = time.perf_counter() - started
        guard = read_guard(file)
    loop = patchcleanser_loop(subject, defense)
    record: dict[str, Any] = {
        "subject": subject.name,
        "defense": str(defense),
        "calls": calls,
        "masks at once, at most": manifest["masks_at_once"],
        "seconds to export": exported,
        "megabytes": manifest["bytes"] / 1e6,
    }
    for batch in _BATCHES:
        record[f"milliseconds, {batch} at once"] = _compared(
            {"guard in one file": lambda x: guard(x)[0], "loop": loop}, images, batch, calls
        )
    return record


def patchcleanser_loop(subject: Subject, defense: DoubleMasking) -> Answer:
    """Double masking as it is published: the model is called for one mask after another.

    The first round sees the whole batch under each mask; of an image whose labels differ, each mask
    that disagrees is tried against second masks, until one refutes it.
    """
    held = computed_with(subject.params, subject.preprocessing)

    @jax.jit
    def labelled(params: Any, images: Any, boxes: Any) -> Any:
        everywhere = jnp.broadcast_to(boxes[None], (images.shape[0], *boxes.shape))
        how = subject.preprocessing
        logits = masked_logits(subject.apply_fn, params, images, everywhere, preprocessing=how)
        return logits.argmax(axis=1)

    boxes, rounds = defense.masked_images.boxes, defense.rounds

    def says(images: Images, column: int) -> NDArray[np.int32]:
        return np.asarray(labelled(held, images, boxes[column]))

    def answer(images: Images) -> NDArray[np.int32]:
        first = np.stack([says(images, column) for column in rounds.single], axis=1)
        answers = np.zeros(len(images), np.int32)
        for i, labels in enumerate(first):
            values, counts = np.unique(labels, return_counts=True)
            answers[i] = values[counts == counts.max()][-1 if defense.ties == "largest" else 0]
            for mask in np.flatnonzero(labels != answers[i]):
                one = images[i : i + 1]
                if all(says(one, column)[0] == labels[mask] for column in rounds.pair[mask]):
                    answers[i] = labels[mask]
                    break
        return answers

    return answer


def _compared(
    ways: dict[str, Answer], images: Images, batch: int, calls: int
) -> dict[str, float | int]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    differ = 0
    for call in range(-1, calls):  # the first compiles, and is not counted
        chosen = images[np.arange(call * batch, (call + 1) * batch) % len(images)]
        said = []
        for name, way in ways.items():
            started = time.perf_counter()
            said.append(way(chosen))
            seconds[name] += [time.perf_counter() - started] if call >= 0 else []
        differ += int((said[0] != said[1]).sum()) if call >= 0 else 0
    figures: dict[str, float | int] = {}
    for name, each in seconds.items():
        p50, p99 = np.percentile(each, [50, 99])
        figures |= {f"{name}, p50": 1e3 * float(p50), f"{name}, p99": 1e3 * float(p99)}
    return {**figures, "labels that differ": differ}
