"""How the masked forward pass scales over devices: 1, 2, 4, 8 of those that there are."""

from __future__ import annotations

from typing import Any

import jax

from certmask_jax.inference.devices import device_mesh
from certmask_jax.programs.measurements.subjects import Subject
from certmask_jax.programs.measurements.timing import in_turn, spread

_COUNTS = (1, 2, 4, 8)
_MOST_IMAGES = 8


def measure(subject: Subject, repeat: int) -> dict[str, Any]:
    """Masked images a second by number of devices, each with the same share of a chunk."""
    masks = subject.defenses[0].masked_images
    images = subject.test_set.read(0, min(_MOST_IMAGES, len(subject.test_set))).images
    devices = jax.local_devices()
    counts = [count for count in _COUNTS if count <= len(devices)]
    forwards = {count: subject.forward(mesh=device_mesh(devices[:count])) for count in counts}
    each = min(forward.chunk // count for count, forward in forwards.items())
    forwards = {
        count: subject.forward(mesh=device_mesh(devices[:count]), chunk=each * count)
        for count in counts
    }
    runs = {
        str(count): (lambda forward=forward: forward.for_masks(masks).table(images))
        for count, forward in forwards.items()
    }
    seconds = in_turn(runs, repeat)
    items = len(images) * len(masks)
    return {
        "subject": subject.name,
        "chunk_of_each_device": each,
        "masked_images_per_second": {
            name: spread([items / s for s in taken]) for name, taken in seconds.items()
        },
    }
