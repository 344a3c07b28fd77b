"""The mathematics of the papers, in one flat list: pure functions on plain arrays, of one image.

They are traced by ``jit`` and ``vmap`` like any function of JAX, and know nothing of tables or
defenses. Labels are ``int32``; -1 is no label. Their bodies are beside their papers in
``defenses``, with the papers' symbols.
"""

from certmask_jax.defenses.certmask_votes import certmask_attacked, certmask_rule, k_fold_correct
from certmask_jax.defenses.minority_reports_detector import minority_reports_rule
from certmask_jax.defenses.mrcert_recovery import mrcert_rule, unchanged
from certmask_jax.defenses.pair_cover_recovery import pair_cover_rule, pair_cover_worst_case
from certmask_jax.defenses.patchcleanser_masking import (
    challenger_masking_rule,
    double_masking_rule,
    two_mask_correct,
)
from certmask_jax.defenses.patchcleanser_proofs import double_masking_worst_case, good_rows

certmask = certmask_rule
challenger_masking = challenger_masking_rule
double_masking = double_masking_rule
minority_reports = minority_reports_rule
mrcert = mrcert_rule
pair_cover = pair_cover_rule

__all__ = [
    "certmask",
    "certmask_attacked",
    "challenger_masking",
    "double_masking",
    "double_masking_worst_case",
    "good_rows",
    "k_fold_correct",
    "minority_reports",
    "mrcert",
    "pair_cover",
    "pair_cover_worst_case",
    "two_mask_correct",
    "unchanged",
]
