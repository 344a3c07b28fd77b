"""Every builder of mask sets in one flat list; their bodies are in ``masks``."""

from certmask_jax.masks.mask_sets import (
    Coverage,
    CoverageError,
    MaskSet,
    budgeted_grid,
    exact_k_fold,
    factor_coverage,
    offset,
    repeated,
    replicated,
    stretches,
    tight_grid,
)

__all__ = [
    "Coverage",
    "CoverageError",
    "MaskSet",
    "budgeted_grid",
    "exact_k_fold",
    "factor_coverage",
    "offset",
    "repeated",
    "replicated",
    "stretches",
    "tight_grid",
]
