"""A model whose logits are sums of whole numbers: every engine has the same bits of it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from certmask_jax import defenses, mask_sets

SIZE, CLASSES = (8, 8), 4
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, *SIZE, 1), dtype=np.uint8)
WEIGHTS = RNG.integers(-9, 10, (*SIZE, 1, CLASSES)).astype(np.float32)
MASKS = mask_sets.budgeted_grid(SIZE, 1, masks_per_axis=3)
DEFENSE = defenses.double_masking(MASKS)


def exact(params, x):
    """Sums of whole numbers: as float32 holds them, in whatever order."""
    return jnp.einsum("bhwc,hwck->bk", jnp.round(x * 255), params)
