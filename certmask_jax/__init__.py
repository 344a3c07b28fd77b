"""certmask_jax: certified defence of image classifiers against adversarial patches.

A patch that may be anywhere -> a set of masks that hides it wherever it is -> the predictions on
all masked images (one table) -> a rule that turns the table into a prediction, and proofs about
that rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from certmask_jax.loading import LoadedModel, load_model

__all__ = [
    "ALERT",
    "NO_LABEL",
    "CoverageError",
    "Defense",
    "Guarantee",
    "LoadedModel",
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
    "load_model",
    "mask_sets",
    "masked_forward",
    "masked_images",
    "pair_covers",
    "predict",
    "rectangles",
]

# What needs Flax is imported when it is asked for.
_LOADING = ("LoadedModel", "load_model")


def __getattr__(name: str) -> Any:
    if name in _LOADING:
        from certmask_jax import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOADING})
