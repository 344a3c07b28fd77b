"""Masked features: a mean of local logits without a random window of them.

What PatchGuard's robust masking takes out of the evidence, a model may be trained to do without:
its authors fine-tune BagNets so, and report far more certified images for it (Xiang et al., 2021,
in the leaderboard that they keep; the figures are in the page on PatchGuard).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import Model


def check_window(model: Model, window: int) -> tuple[int, int]:
    """``(Fh, Fw)``, how many local logits an image has.

    Raises:
      ValueError: for a model without local logits, or with no more of them than a window has.
    """
    if model.local is None or not hasattr(model.train_module, "local_logits"):
        raise ValueError(
            "feature_window: expected a model with local logits (bagnet17, cifar_bagnet5, ...), "
            f"got {model.name}"
        )
    grid = model.local.grid(model.data_config.input_size)
    if window >= min(grid):
        raise ValueError(
            f"feature_window: expected fewer cells than {min(grid)}, since {model.name} has "
            f"{grid[0]}x{grid[1]} local logits, got {window}"
        )
    return grid


def random_windows(key: Array, count: int, *, grid: tuple[int, int], window: int) -> Array:
    """What is left of ``count`` maps without a square window each: ``bool[count, Fh, Fw]``.

    Windows lie inside the map, as those of the defense do, and all places are equally likely.
    """

    def inside(key: Array, side: int) -> Array:
        first = jax.random.randint(key, (count, 1), 0, side - window + 1)
        cells = jnp.arange(side, dtype=jnp.int32)[None]
        return (cells >= first) & (cells < first + window)

    of_rows, of_columns = jax.random.split(key)
    rows, columns = inside(of_rows, grid[0]), inside(of_columns, grid[1])
    return ~(rows[:, :, None] & columns[:, None, :])
