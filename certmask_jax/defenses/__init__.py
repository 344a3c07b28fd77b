"""Defenses: frozen values, from a mask set and the hyper-parameters of a paper.

Each has a class, and by its paper's name in small letters a constructor, which is the class. Five
names are modules of functions on arrays instead: ``patchguard`` (whose classes are ``PatchGuard``
and ``PatchGuardDetection``), ``clipped_bagnet`` (``ClippedBagNet``), ``bagcert`` (``BagCert``),
``derandomized_smoothing`` (``DerandomizedSmoothing``, ``SmoothedViT`` and ``MaskDS``) and
``crosscert`` (``CrossCert``).
"""

from certmask_jax.defenses import (
    bagcert,
    clipped_bagnet,
    crosscert,
    derandomized_smoothing,
    patchguard,
)
from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.certmask_votes import CertMask, CertMaskDetection
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.crosscert_detection import CrossCert
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee, certificate, rule, worst_case
from certmask_jax.defenses.interval_bounds_recovery import IntervalBounds
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.minority_reports_detector import MinorityReports
from certmask_jax.defenses.mrcert_recovery import MRCert
from certmask_jax.defenses.over_tables import Row
from certmask_jax.defenses.pair_cover_recovery import PairCover
from certmask_jax.defenses.patchcleanser_masking import ChallengerMasking, DoubleMasking
from certmask_jax.defenses.patchcure_masking import PatchCURE
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.defenses.vot_recovery import VOT
from certmask_jax.defenses.vote_scores import (
    MinimumExplanation,
    Plurality,
    RobustMasking,
    Scored,
    Votes,
    votes,
)

double_masking = DoubleMasking
challenger_masking = ChallengerMasking
minority_reports = MinorityReports
certmask = CertMask
certmask_detection = CertMaskDetection
pair_cover = PairCover
mrcert = MRCert
plurality = Plurality
minimum_explanation = MinimumExplanation
robust_masking = RobustMasking
patchcure = PatchCURE
interval_bounds = IntervalBounds
vot = VOT

__all__ = [
    "ALERT",
    "VOT",
    "BagCert",
    "CertMask",
    "CertMaskDetection",
    "ChallengerMasking",
    "ClippedBagNet",
    "CrossCert",
    "Defense",
    "DerandomizedSmoothing",
    "DoubleMasking",
    "Guarantee",
    "IntervalBounds",
    "MRCert",
    "MaskDS",
    "MinimumExplanation",
    "MinorityReports",
    "PairCover",
    "PatchCURE",
    "PatchGuard",
    "PatchGuardDetection",
    "Plurality",
    "RobustMasking",
    "Row",
    "Scored",
    "Seen",
    "SmoothedViT",
    "Votes",
    "bagcert",
    "certificate",
    "certmask",
    "certmask_detection",
    "challenger_masking",
    "clipped_bagnet",
    "crosscert",
    "derandomized_smoothing",
    "double_masking",
    "interval_bounds",
    "minimum_explanation",
    "minority_reports",
    "mrcert",
    "pair_cover",
    "patchcure",
    "patchguard",
    "plurality",
    "robust_masking",
    "rule",
    "vot",
    "votes",
    "worst_case",
]
