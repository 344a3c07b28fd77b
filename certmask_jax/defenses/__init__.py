"""Defenses: one paper a file, each a function from a mask set to a ``Defense`` value."""

from certmask_jax.defenses.certmask import certmask, certmask_detection
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee, Row
from certmask_jax.defenses.minority_reports import minority_reports
from certmask_jax.defenses.mrcert import mrcert
from certmask_jax.defenses.pair_cover import pair_cover
from certmask_jax.defenses.patchcleanser import challenger_masking, double_masking
from certmask_jax.defenses.votes import minimum_explanation, plurality, robust_masking, votes

__all__ = [
    "ALERT",
    "Defense",
    "Guarantee",
    "Row",
    "certmask",
    "certmask_detection",
    "challenger_masking",
    "double_masking",
    "minimum_explanation",
    "minority_reports",
    "mrcert",
    "pair_cover",
    "plurality",
    "robust_masking",
    "votes",
]
