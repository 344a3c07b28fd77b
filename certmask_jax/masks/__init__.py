"""Who may attack where, and what hides it: exact integer work in NumPy, done once, without JAX.

Builders of bands and blocks can be taken from here, and those of all mask sets from
``certmask_jax.mask_sets``.
"""

from certmask_jax.masks.bands import blocks, column_bands, row_and_column_bands, row_bands

__all__ = ["blocks", "column_bands", "row_and_column_bands", "row_bands"]
