"""What evidence a run keeps on request, how much that is, and other defenses on it afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax._text import counted
from certmask_jax.defenses.evidence_defense import EvidenceDefense, EvidenceResults
from certmask_jax.files import disk_room, fingerprint
from certmask_jax.files.storage import AnyPath
from certmask_jax.tables import evidence_kept
from certmask_jax.tables.evidence_kept import KeptFiles
from certmask_jax.tables.evidence_store import SavedEvidence

_AT_ONCE = 64  # images
_BLOCK_BYTES = 1 << 28  # of what is kept of a block, which is held at once


def source_of(defense: EvidenceDefense) -> dict[str, Any]:
    """What tells the evidence of a defense from that of others, of one model: JSON-able."""
    source: dict[str, Any] = {"image_size": list(defense.threat.image_size)}
    if defense.of_bands is not None:
        source["bands_sha256"] = fingerprint.of_arrays(defense.of_bands.boxes)
    if defense.of_cells is not None:
        field, stride, seen_size, *_ = defense.of_cells
        resized = {} if seen_size is None else {"seen_size": list(seen_size)}
        source["local_logits"] = {"field": field, "stride": stride, **resized}
    return source


def _parts(defense: EvidenceDefense) -> tuple[int, ...]:
    """How many cells there are, each way, or bands."""
    return (defense.num_parts,) if defense.of_cells is None else defense.of_cells.cells


def kept_of(defenses: Sequence[EvidenceDefense], classes: int) -> dict[str, Any]:
    """The record of what is kept: ``sources``, equal ones once, and ``of`` each defense which."""
    sources: list[dict[str, Any]] = []
    of = []
    for defense in defenses:
        source = {**source_of(defense), "shape": [*_parts(defense), classes]}
        if source not in sources:
            sources.append(source)
        of.append(sources.index(source))
    return {"sources": sources, "of": of}


def said(kept: Mapping[str, Any], num_images: int) -> str:
    """What is kept and how large that is, in a line: ``evidence kept: 27.0 MB, ...``."""
    shapes = [" x ".join(map(str, source["shape"])) for source in kept["sources"]]
    size = KeptFiles(Path(), kept["sources"]).bytes_an_image * num_images
    return (
        f"evidence kept: {size / 1e6:,.1f} MB, {' and '.join(shapes)} numbers of 4 bytes for each "
        f"of {counted(num_images, 'image')}"
    )


def images_a_block(kept: Mapping[str, Any], images: int, batch: int) -> int:
    """At most ``images``, a multiple of ``batch``, so that what is kept of a block is not much."""
    each = KeptFiles(Path(), kept["sources"]).bytes_an_image * batch
    return batch * max(1, min(images // batch, _BLOCK_BYTES // each))


def check_room(
    folder: AnyPath, kept: Mapping[str, Any], spans: Mapping[int, tuple[int, int]]
) -> None:
    """``OSError`` (no space left) unless what is still to be kept fits the disk of ``folder``.

    ``spans`` are the images of each block that is to be there.
    """
    if not isinstance(folder, Path):
        return
    files = KeptFiles(folder, kept["sources"])
    left = [span for number, span in spans.items() if not files.is_there(number)]
    if left:
        images = sum(stop - start for start, stop in left)
        needed = images * files.bytes_an_image + disk_room.SPARE_BYTES
        needed += len(left) * (1 + len(kept["sources"])) * disk_room.SPARE_BYTES_A_FILE
        disk_room.check_room(folder, needed, what=f"evidence of {counted(images, 'image')}")


def verdicts_of(
    defense: EvidenceDefense, saved: SavedEvidence, margin_guard: float = 0.0
) -> tuple[NDArray[np.int32], NDArray[np.bool_]] | None:
    """What a defense answers and proves on kept evidence, that the run was not evaluated for.

    With a margin guard the worst case is the one within it.

    Returns:
      Answers ``int32[T]``, and the worst case and then its conditions, ``bool[T, 1 + C]``, of the
      images that count; None where the run kept no evidence that is the defense's.

    Raises:
      ValueError: for a file that is missing or damaged.
    """
    wanted = source_of(defense)
    sources = saved.about.get("kept", {}).get("sources", ())
    same = [n for n, one in enumerate(sources) if {**one, **wanted} == one]
    if not same:
        return None
    kept = evidence_kept.of_run(saved, same[0])

    @jax.jit
    def results(evidence: Array, labels: Array) -> tuple[EvidenceResults, Array]:
        said = defense.results(evidence, labels)
        if not margin_guard:
            return said, said.worst_case
        within = defense.guarded(evidence, labels, margin_guard=margin_guard)
        return said, said.worst_case & within

    answers, verdicts = [], []
    for start in range(0, len(kept.labels), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        evidence, labels = kept.evidence[some], kept.labels[some]
        with unguarded():
            outcome, robust = jax.device_get(results(jnp.asarray(evidence), jnp.asarray(labels)))
        finite = np.isfinite(evidence.reshape(len(evidence), -1)).all(axis=1)
        conditions = (outcome.conditions[name] for name in defense.condition_names)
        proved = [one & finite for one in (robust, *conditions)]
        answers.append(outcome.answer)
        verdicts.append(np.stack(proved, axis=1))
    return np.concatenate(answers), np.concatenate(verdicts)
