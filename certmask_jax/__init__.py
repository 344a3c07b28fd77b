"""certmask_jax: certified defence of image classifiers against adversarial patches.

A patch that may be anywhere -> a set of masks that hides it wherever it is -> the predictions on
all masked images (one table) -> a rule that turns the table into a prediction, and proofs about
that rule.
"""

from certmask_jax import (
    adversary,
    combined_sets,
    defenses,
    geometry,
    mask_sets,
    masked_images,
    pair_covers,
    rectangles,
)
from certmask_jax._version import __version__
from certmask_jax.defenses import ALERT, Defense, Guarantee
from certmask_jax.forward import masked_forward
from certmask_jax.mask_sets import CoverageError, MaskSet
from certmask_jax.masked_images import MaskedImages
from certmask_jax.prediction import predict
from certmask_jax.prediction_table import NO_LABEL, PredictionTable
from certmask_jax.predictor import defended
from certmask_jax.preprocessing import Preprocessing
from certmask_jax.threats import Threat

__all__ = [
    "ALERT",
    "NO_LABEL",
    "CoverageError",
    "Defense",
    "Guarantee",
    "MaskSet",
    "MaskedImages",
    "PredictionTable",
    "Preprocessing",
    "Threat",
    "__version__",
    "adversary",
    "combined_sets",
    "defended",
    "defenses",
    "geometry",
    "mask_sets",
    "masked_forward",
    "masked_images",
    "pair_covers",
    "predict",
    "rectangles",
]
