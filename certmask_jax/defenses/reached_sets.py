"""Sets of cells that a patch reaches, beside the windows that a rule takes away.

A rule takes windows of one size, as large as the most that any patch reaches. Where patches have
several shapes, stay in a region, or do not go round as the windows do, what one of them reaches is
a set that is smaller than a window, and only some windows contain any. What is proved of an attack
on a window holds for an attack on a set inside it (soundness, 12.7).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray


def checked_sets(reached: NDArray[np.bool_], cells: tuple[int, int]) -> NDArray[np.bool_]:
    """``bool[G, H, W]``, G at least 1; ``ValueError`` for sets of another map, or of numbers."""
    sets = np.asarray(reached)
    if sets.dtype != np.bool_ or sets.ndim != 3 or sets.shape[1:] != cells or not len(sets):
        raise ValueError(
            f"reached: expected bool[sets, {cells[0]}, {cells[1]}], at least one, got "
            f"{sets.dtype}{list(sets.shape)}"
        )
    return sets


def windows_around(
    sets: NDArray[np.bool_], window: tuple[int, int], *, wrap: bool
) -> NDArray[np.bool_]:
    """Which windows contain which sets: ``bool[G, windows]``, windows in the order of sums.

    Args:
      sets: ``bool[G, H, W]``.
      window: (height, width) in cells, which fits into the map.
      wrap: whether windows wrap around both ends of each axis.
    """
    inside = []
    for size, cells in zip(window, sets.shape[1:], strict=True):
        starts = np.arange(cells if wrap else cells - size + 1)
        inside.append((np.arange(cells)[None, :] - starts[:, None]) % cells < size)
    rows, columns = inside  # bool[starts, cells] of each axis
    beyond_rows = sets.any(axis=2).astype(np.int32) @ ~rows.T  # how many of a set lie elsewhere
    beyond_columns = sets.any(axis=1).astype(np.int32) @ ~columns.T
    both = (beyond_rows == 0)[:, :, None] & (beyond_columns == 0)[:, None, :]
    return both.reshape(len(sets), -1)


@jax.jit
def of_sets(of_windows: Array, around: NDArray[np.bool_]) -> Array:
    """Whether some window around a set has what ``bool[T, windows]`` says: ``bool[T, G]``."""
    return (of_windows.astype(jnp.float32) @ jnp.asarray(around.T, jnp.float32)) > 0
