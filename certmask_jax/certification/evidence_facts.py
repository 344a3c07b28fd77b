"""What tells a run on evidence from others, and what is kept beside what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from certmask_jax.certification.evidence_opened import OpenedEvidence
from certmask_jax.certification.run_facts import facts_of_images
from certmask_jax.files import fingerprint
from certmask_jax.inference.devices import compiler_facts


def facts_of_evidence(opened: OpenedEvidence, known: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able facts: runs of the same facts find the same.

    Args:
      opened: the run.
      known: what the caller knows, and ``weights_sha256``; see ``run_facts.known_of``.
    """
    guard = opened.margin_guard
    return {
        **facts_of_images(opened.run_images, opened.first),
        **fingerprint.of_environment(),
        "preprocessing": opened.preprocessing.facts(),
        "num_images": len(opened.run_images),
        "batch": opened.work.images,
        "images_per_block": opened.images_per_block,
        "defenses": [defense.facts for defense in opened.defenses],
        **opened.work.facts(),
        **compiler_facts(opened.mesh),
        **({} if opened.kept is None else {"keep_evidence": True}),
        **({"margin_guard": guard} if guard else {}),
        **known,
    }


def about_evidence(
    opened: OpenedEvidence, provenance: Mapping[str, Any], keeps_bits: bool | None
) -> dict[str, Any]:
    """JSON-able facts that decide no number, and the columns of what is kept.

    Args:
      opened: the run.
      provenance: what the caller knows.
      keeps_bits: whether cells keep their bits; None where no defense is on cells.
    """
    began, local = opened.run_images.began, opened.local
    of_local: dict[str, Any] = {}
    if local is not None:
        of_local = {"field": local.field, "stride": local.stride}
        if opened.preprocessing.resize_to is not None:
            of_local["seen_size"] = list(opened.preprocessing.resize_to)
    guarded = bool(opened.margin_guard)
    return {
        "provenance": {
            **fingerprint.environment(),
            **provenance,
            **opened.work.facts(),
            **({} if keeps_bits is None else {"cells_keep_bits": keeps_bits}),
            **({"local_logits": of_local} if of_local else {}),
            "num_images": len(opened.run_images),
        },
        "images": None if began is None else began._asdict(),
        "image_size": list(opened.first.shape[1:3]),
        "verdicts": [1 + len(defense.condition_names) + guarded for defense in opened.defenses],
        "places": [list(defense.kept_places) for defense in opened.defenses],
        "passes_each": opened.work.passes,
        **({} if opened.kept is None else {"kept": opened.kept}),
    }
