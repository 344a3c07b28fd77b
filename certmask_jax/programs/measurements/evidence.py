"""What defenses on local evidence cost: images a second beside the plain pass of the same model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.evidence_program import in_batches, results_program
from certmask_jax.inference.evidence_sources import LocalSource
from certmask_jax.inference.masked_pass import computed_with, masked_logits
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.measurements import timing
from certmask_jax.programs.measurements.subjects import Subject, of_noise

_MODEL = "bagnet17"
_PIXELS = 1 << 19  # a round and a device, and the most at once, as in a run on a CPU
_MOST_AT_ONCE = 64  # images, on a device


def measure(subject: Subject, repeat: int, *, pixels: int = _PIXELS) -> dict[str, Any]:
    """Answers and verdicts of defenses on evidence, in turn with labels of the plain pass.

    Against a patch of 2% of the pixels. Of BagNet-17 with random weights if the subject's model
    has no local logits.
    """
    if subject.local is None:
        subject = of_noise(_MODEL, subject.preprocessing.precision, 16)
    local = subject.local
    assert local is not None
    height, width, _ = subject.image_shape
    threat = Threat.of((height, width), max(1, round((0.02 * height * width) ** 0.5)))
    cells: Any = {"field": local.field, "stride": local.stride}
    alone = PatchGuard(threat, **cells)
    others = PatchGuardDetection(threat, tau=0.5, **cells), ClippedBagNet(threat, **cells)
    mesh = device_mesh()
    in_round = max(1, pixels // (height * width))
    batch = min(_MOST_AT_ONCE, in_round) * mesh.size
    count = -(-in_round * mesh.size // batch) * batch
    sample = subject.test_set.read(0, min(count, len(subject.test_set)))
    again = np.arange(count) % len(sample.images)
    images, labels = sample.images[again], np.asarray(sample.labels, np.int32)[again]
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(computed_with(subject.params, subject.preprocessing), everywhere)
    plain = _plain(subject, mesh)

    def of_defenses(*defenses: EvidenceDefense) -> Any:
        sources = (LocalSource(local),) * len(defenses)
        program = results_program(sources, subject.preprocessing, defenses, mesh, places=True)
        return lambda: in_batches(program, params, images, labels, batch) and None

    def of_model() -> None:
        for start in range(0, count, batch):
            np.asarray(plain(params, jnp.asarray(images[start : start + batch])))

    runs = {
        "plain": of_model,
        "patchguard": of_defenses(alone),
        "all": of_defenses(alone, *others),
    }
    seconds = timing.in_turn(runs, repeat)
    return {
        "subject": subject.name,
        "defense": str(alone),
        "images": count,
        "images_at_once": batch,
        "images_per_second": {
            name: timing.spread([count / s for s in of]) for name, of in seconds.items()
        },
        "patchguard_over_plain": timing.ratio(seconds["plain"], seconds["patchguard"]),
        "three_defenses_over_plain": timing.ratio(seconds["plain"], seconds["all"]),
    }


def _plain(subject: Subject, mesh: Mesh) -> Any:
    """The jitted (params, images) -> labels of whole images."""

    def labels(params: Any, images: Array) -> Array:
        nothing = jnp.zeros((images.shape[0], 1, 4), jnp.int32)
        logits = masked_logits(
            subject.apply_fn, params, images, nothing, preprocessing=subject.preprocessing
        )
        return logits.argmax(axis=1)

    split = PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            labels,
            mesh=mesh,
            in_specs=(PartitionSpec(), split),
            out_specs=split,
            check_vma=False,
        )
    )
