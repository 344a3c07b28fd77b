"""Whether a masked image has the same logits wherever in whatever batch it is evaluated.

The theorems need equal labels for equal masked images (soundness, section 7); a network in floating
point gives equal logits only as far as the compiler's programs for different shapes do.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.masked_pass import masked_logits
from certmask_jax.programs.measurements.subjects import Subject


def measure(subject: Subject, items: int) -> dict[str, Any]:
    """Largest logit difference and label flips against one order, shape and number of devices."""
    defense = subject.defenses[0]
    images = subject.test_set.read(0, min(8, len(subject.test_set))).images
    rng = np.random.default_rng(0)
    mask_of = rng.integers(0, len(defense.masked_images), items)
    image_of = rng.integers(0, len(images), items).astype(np.int32)
    boxes = defense.masked_images.boxes[mask_of]
    devices = jax.local_devices()

    def logits(mesh: Mesh, batch: int, order: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        split = NamedSharding(mesh, PartitionSpec(AXIS))

        def logits_of(params: Any, images: Array, boxes: Array, image_of: Array) -> Array:
            return masked_logits(
                subject.apply_fn,
                params,
                images,
                boxes,
                preprocessing=subject.preprocessing,
                image_of=image_of,
            )

        step = jax.jit(
            jax.shard_map(
                logits_of,
                mesh=mesh,
                in_specs=(
                    PartitionSpec(),
                    PartitionSpec(),
                    PartitionSpec(AXIS),
                    PartitionSpec(AXIS),
                ),
                out_specs=PartitionSpec(AXIS),
                check_vma=False,
            )
        )
        params, on_devices = jax.device_put(
            (subject.params, images), NamedSharding(mesh, PartitionSpec())
        )
        parts = []
        for start in range(0, items, batch):
            chosen = order[start : start + batch]
            full = np.resize(chosen, batch)  # the last one is filled up
            work = jax.device_put((boxes[full], image_of[full]), split)
            parts.append(np.asarray(step(params, on_devices, *work))[: len(chosen)])
        stacked = np.empty((items, parts[0].shape[1]), np.float32)
        stacked[order] = np.concatenate(parts)
        return stacked

    one = device_mesh(devices[:1])
    natural = np.arange(items)
    base = logits(one, 64, natural)
    others = {
        "reversed order": logits(one, 64, natural[::-1]),
        "random order": logits(one, 64, rng.permutation(items)),
    }
    others |= {f"batches of {batch}": logits(one, batch, natural) for batch in (1, 16, 48, 256)}
    for count in (2, 4, 8):
        if count <= len(devices):
            mesh = device_mesh(devices[:count])
            others[f"{count} devices, 64 each"] = logits(mesh, 64 * count, natural)
    return {
        "subject": subject.name,
        "precision": subject.preprocessing.precision,
        "masked_images": items,
        "against": "one device, batches of 64, natural order",
        **{
            name: {
                "largest_logit_difference": float(np.abs(stacked - base).max()),
                "label_flips": int((stacked.argmax(1) != base.argmax(1)).sum()),
            }
            for name, stacked in others.items()
        },
    }
