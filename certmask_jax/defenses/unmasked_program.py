"""The most that a class can score while none of its windows is masked: a linear program.

For T > 0 an attack on a window w may stay below the threshold. With a = (1 - w) u_z and B its sum
the class then scores B + E, where E is the most of SUM(e) over evidence e on w with

    SUM_v(a + e) <= T (B + E)    for all windows v    (soundness, section 12.3).

The solver works in floating point, so its optimum proves nothing. Its dual solution does: rounded
to fractions and mended, any dual point bounds the program from above, in exact arithmetic.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.robust_masking_game import THRESHOLD_BITS, Game

_PENALTY = 1e4  # of breaking a constraint: the program may have no solution


def most_unmasked(
    units: NDArray[np.int32], attacked: int, game: Game, *, denominator: int = 10**6
) -> int:
    """An upper bound, in units, of an unmasked score under an attack on one window.

    Tight up to the rounding of the dual solution. Below the sum outside the window where no attack
    stays below the threshold.

    Args:
      units: ``[H, W]``, the class's evidence.
      attacked: the window, by its number.
      game: the map and its parameters.
      denominator: the largest of the fractions that the dual solution is rounded to.
    """
    from scipy.optimize import linprog  # comes with JAX, and is slow to import

    covers = _window_cells(game)
    free = covers[attacked]
    around = np.where(free, 0, units.ravel()).astype(np.int64)
    share = Fraction(game.threshold, 2**THRESHOLD_BITS)
    total = int(around.sum())
    sums = covers @ around
    scale = float(2.0**game.grid.bits)

    reach = covers[:, free].astype(np.float64)  # [windows, cells of w]
    inside = np.concatenate([reach - float(share), -np.ones((len(reach), 1))], axis=1)
    result = linprog(
        np.concatenate([-np.ones(reach.shape[1]), [_PENALTY]]),
        A_ub=inside,
        b_ub=(float(share) * total - sums) / scale,
        method="highs",
    )
    if result.x is None:
        return 2**31
    weights = [
        Fraction(max(0.0, -float(marginal))).limit_denominator(denominator)
        for marginal in result.ineqlin.marginals
    ]
    used = [number for number, weight in enumerate(weights) if weight]
    all_weights = sum((weights[v] for v in used), Fraction(0))
    bound = total + sum((weights[v] * (share * total - int(sums[v])) for v in used), Fraction(0))
    for cell in np.flatnonzero(free):
        price = sum((weights[v] for v in used if covers[v, cell]), Fraction(0))
        missing = 1 - (price - share * all_weights)
        if missing > 0:  # paid by the cell's own upper end
            bound += missing * game.grid.high
    return math.floor(bound)


def _window_cells(game: Game) -> NDArray[np.bool_]:
    """``bool[windows, cells]``: which cells each window has."""
    axes = []
    for cells, size in zip(game.cells, game.window, strict=True):
        start = np.arange(cells if game.wrap else cells - size + 1)[:, None]
        axes.append((np.arange(cells)[None, :] - start) % cells < size)
    rows, columns = axes
    both = rows[:, None, :, None] & columns[None, :, None, :]
    return both.reshape(both.shape[0] * both.shape[1], -1)
