"""Refuses what is no masking defense, where a model is to be asked about masked images."""

from __future__ import annotations

from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.masks.mask_set import MaskSet


def check_masking(defense: object, name: str = "defense") -> None:
    """``ValueError`` unless it is a ``Defense``, which masks images; ``name`` is the argument's.

    A defense on evidence is none: its rule looks at cells or bands, and there is no table of masked
    images that it would answer from.
    """
    if isinstance(defense, Defense):
        return
    build = "build one of masks: cm.defenses.DoubleMasking(masks)"
    match defense:
        case EvidenceDefense():
            got = (
                f"{type(defense).__name__}, which answers from evidence and guards nothing; "
                "certify with it by certification.evidence_run.evaluate_evidence, or give its "
                "results() the evidence"
            )
        case MaskSet():
            got = f"the masks alone; {build}"
        case type():
            got = f"the class {defense.__name__}; {build}"
        case str():
            got = f"the text {defense!r}; {build}"
        case _:
            got = f"{type(defense).__name__}; {build}"
    raise ValueError(f"{name}: expected a defense that masks images (cm.Defense), got {got}")
