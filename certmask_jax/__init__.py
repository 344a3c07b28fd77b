"""certmask_jax: certified defence of image classifiers against adversarial patches.

A patch that may be anywhere -> a set of masks that hides it wherever it is -> the predictions on
all masked images (one table) -> a rule that turns the table into a prediction, and proofs about
that rule.

Rooms, from the bottom up: ``files``, ``masks``, ``tables``, ``defenses``, ``inference``,
``models``, ``data``, ``weights``, ``training``, ``certification``, ``attacks``, ``pages``,
``programs``. What is used most stands here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from certmask_jax._version import __version__

if TYPE_CHECKING:
    from certmask_jax import defenses, mask_sets, rules
    from certmask_jax.defenses import (
        ALERT,
        Defense,
        Guarantee,
        adversary,
        certificate,
        rule,
        worst_case,
    )
    from certmask_jax.inference.bounded_model import BoundedModel
    from certmask_jax.inference.defended_model import defended
    from certmask_jax.inference.exported_guard import read_guard
    from certmask_jax.inference.exporting import export_guard
    from certmask_jax.inference.masked_pass import masked_logits
    from certmask_jax.inference.masking import masked_images
    from certmask_jax.inference.preprocessing import Preprocessing
    from certmask_jax.inference.viewed_model import View
    from certmask_jax.inference.views import with_views
    from certmask_jax.inference.whole_images import masked_forward
    from certmask_jax.inference.whole_table import predict
    from certmask_jax.masks import combined_sets, distinct_unions, geometry, pair_covers, rectangles
    from certmask_jax.masks.distinct_unions import MaskedImages
    from certmask_jax.masks.mask_set import CoverageError, MaskSet
    from certmask_jax.masks.threats import Threat
    from certmask_jax.tables.evidence_kept import kept_evidence
    from certmask_jax.tables.prediction_table import NO_LABEL, PredictionTable
    from certmask_jax.weights.loaded_model import LoadedModel, load_model

__all__ = [
    "ALERT",
    "NO_LABEL",
    "BoundedModel",
    "CoverageError",
    "Defense",
    "Guarantee",
    "LoadedModel",
    "MaskSet",
    "MaskedImages",
    "PredictionTable",
    "Preprocessing",
    "Threat",
    "View",
    "__version__",
    "adversary",
    "certificate",
    "combined_sets",
    "defended",
    "defenses",
    "distinct_unions",
    "export_guard",
    "geometry",
    "kept_evidence",
    "load_model",
    "mask_sets",
    "masked_forward",
    "masked_images",
    "masked_logits",
    "pair_covers",
    "predict",
    "read_guard",
    "rectangles",
    "rule",
    "rules",
    "with_views",
    "worst_case",
]

# Imported when they are asked for, so that ``import certmask_jax`` waits for no JAX.
_MODULES = {
    "adversary": "defenses.adversary",
    "combined_sets": "masks.combined_sets",
    "defenses": "defenses",
    "distinct_unions": "masks.distinct_unions",
    "geometry": "masks.geometry",
    "mask_sets": "mask_sets",
    "pair_covers": "masks.pair_covers",
    "rectangles": "masks.rectangles",
    "rules": "rules",
}
_NAMES = {
    "ALERT": "defenses",
    "BoundedModel": "inference.bounded_model",
    "CoverageError": "masks.mask_set",
    "Defense": "defenses",
    "Guarantee": "defenses",
    "LoadedModel": "weights.loaded_model",
    "MaskSet": "masks.mask_set",
    "MaskedImages": "masks.distinct_unions",
    "NO_LABEL": "tables.prediction_table",
    "PredictionTable": "tables.prediction_table",
    "Preprocessing": "inference.preprocessing",
    "Threat": "masks.threats",
    "View": "inference.viewed_model",
    "certificate": "defenses",
    "defended": "inference.defended_model",
    "export_guard": "inference.exporting",
    "kept_evidence": "tables.evidence_kept",
    "load_model": "weights.loaded_model",
    "masked_forward": "inference.whole_images",
    "masked_images": "inference.masking",
    "masked_logits": "inference.masked_pass",
    "predict": "inference.whole_table",
    "read_guard": "inference.exported_guard",
    "rule": "defenses",
    "with_views": "inference.views",
    "worst_case": "defenses",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
