"""Every builder of mask sets in one flat list; their bodies are in ``masks``."""

from certmask_jax.masks.bands import blocks, column_bands, row_and_column_bands, row_bands
from certmask_jax.masks.grids import budgeted_grid, stretches, tight_grid
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.tilings import (
    Coverage,
    exact_k_fold,
    factor_coverage,
    offset,
    repeated,
    replicated,
)

__all__ = [
    "Coverage",
    "CoverageError",
    "MaskSet",
    "blocks",
    "budgeted_grid",
    "column_bands",
    "exact_k_fold",
    "factor_coverage",
    "offset",
    "repeated",
    "replicated",
    "row_and_column_bands",
    "row_bands",
    "stretches",
    "tight_grid",
]
