"""What a defense comes to on a test set: accuracies and intervals, from columns of verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification import report
from certmask_jax.certification.report import DefenseResult, wilson_interval
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee
from certmask_jax.defenses.evidence_defense import EvidenceDefense


def result_of(
    defense: Defense | EvidenceDefense,
    per_image: Mapping[str, NDArray[Any]],
    labels: NDArray[np.integer],
) -> DefenseResult:
    """The result of a defense, whoever found its verdicts: a table, evidence, or rows of a report.

    Args:
      defense: which gives its name, promise, masks and passes.
      per_image: ``[T]`` each: ``answer``, ``worst_case``, ``certificate``, the conditions of the
        paper, and ``smallest_margin``.
      labels: ``int[T]``, the true ones.
    """
    conditions = conditions_of(defense)
    if isinstance(defense, EvidenceDefense):
        looked_at, masks = defense.parts_and_threat, defense.num_parts
        masked_images, near_ties = defense.masked_images, {}
    else:
        looked_at, masks = defense.masks_and_threat, len(defense.mask_set)
        masked_images, near_ties = len(defense.masked_images), _near_ties(per_image)
    fractions = {
        "clean_accuracy": float((per_image["answer"] == labels).mean()),
        "worst_case_accuracy": float(per_image["worst_case"].mean()),
        "certified_accuracy": float(per_image["certificate"].mean()),
        **{name: float(per_image[name].mean()) for name in conditions},
    }
    if defense.guarantee == Guarantee.DETECTION:
        fractions["false_alert_rate"] = float((per_image["answer"] == ALERT).mean())
    return DefenseResult(
        name=defense.name,
        spec=defense.spec or defense.name,
        options={**defense.options, **_quantised(defense)},
        guarantee=defense.guarantee.value,
        threat=defense.threat,
        mask_set=looked_at,
        masks=masks,
        masked_images=masked_images,
        clean_accuracy=fractions["clean_accuracy"],
        worst_case_accuracy=fractions["worst_case_accuracy"],
        worst_case_exact=defense.exact,
        certified_accuracy=fractions["certified_accuracy"],
        conditions={name: fractions[name] for name in conditions},
        false_alert_rate=fractions.get("false_alert_rate"),
        near_ties=near_ties,
        intervals={name: wilson_interval(one, len(labels)) for name, one in fractions.items()},
        per_image=per_image,
    )


def conditions_of(defense: Defense | EvidenceDefense) -> tuple[str, ...]:
    """The names of the conditions by which the defense's paper calls images certified."""
    if isinstance(defense, EvidenceDefense):
        return tuple(defense.condition_names)
    return tuple(defense.row_conditions)


def _quantised(defense: Defense | EvidenceDefense) -> dict[str, str]:
    words = defense.quantisation if isinstance(defense, EvidenceDefense) else None
    return {} if words is None else {"quantised_evidence": words}


def _near_ties(per_image: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """How many worst cases rest on a margin below each of ``MARGINS``."""
    proved, smallest = per_image["worst_case"], per_image["smallest_margin"]
    return {f"{m:g}": int((proved & (smallest < m)).sum()) for m in report.MARGINS}
