"""Clipped BagNet (Zhang et al., 2020): the mean of clipped local evidence, with its worst case.

Each cell's evidence for a class is brought into a bounded range, by ``tanh(0.05 u - 1)`` as in the
paper or by a clip to ``[0, c]``, and the class with the largest mean is the answer. A patch can
move the cells of one window from one end of the range to the other and no more. With v the clipped
evidence in ``[lo, hi]`` an image is robust if and only if for all windows w and *all* classes z
other than y

    SUM((1 - w) v_y) - SUM((1 - w) v_z)  >  |w| (hi - lo)    (soundness, section 12.5).

The published program looks at the runner-up of the clean image only, and lets equality pass.

``tanh`` is read from a table of integers, 256 steps a unit of evidence, so rule and proof see the
same numbers on every device. In it, as in floating point, both ends of the range are reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.bounded_sums import (
    TiesOfSums,
    check_ties_of_sums,
    largest_sum,
    sums_outside,
    worst_leads_of_sums,
)
from certmask_jax.defenses.evidence_places import PlaceVerdicts, told_apart
from certmask_jax.defenses.evidence_windows import Size, checked_window
from certmask_jax.defenses.guarded_evidence import checked_guard, quantised_against
from certmask_jax.defenses.plain_arrays import as_given, checked_classes
from certmask_jax.defenses.quantised_evidence import (
    Evidence,
    Grid,
    all_finite,
    checked_evidence,
    evidence_grid,
    image_by_image,
    image_entries,
    quantised,
)
from certmask_jax.defenses.reached_sets import checked_sets

_TABLE = Grid(bits=8, low=-180 * 256, high=220 * 256)  # tanh is at its ends there


def rule(evidence: ArrayLike | Array, *, clip: float | None = None) -> Array | NDArray[np.int32]:
    """The label of the largest mean of clipped evidence, ties to the smallest.

    Args:
      evidence: ``[T, H, W, K]`` logits of cells. NumPy gives NumPy; arrays of JAX may be traced.
      clip: c of a clip to ``[0, c]``, at most 1024; None is ``tanh(0.05 u - 1)``.

    Returns:
      ``int32[T]``. Infinities count as the ends of the range and NaN as its lower end.

    Raises:
      ValueError: for another shape, or a clip that is not above 0 and finite.
    """
    array = checked_evidence(evidence)
    with unguarded():
        units, _ = _clipped(array, clip)
        return as_given(largest_sum(units), array)


def worst_case(
    evidence: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    window: Size,
    clip: float | None = None,
    ties: TiesOfSums = "smallest",
    reached: NDArray[np.bool_] | None = None,
    margin_guard: float = 0.0,
) -> Array | NDArray[np.bool_]:
    """Whether the rule answers the label whatever evidence is put into any one window. Exact.

    Args:
      evidence, clip: as of ``rule``.
      labels: ``[T]``, the true classes.
      window: cells that a patch reaches, an int or (height, width).
      ties: ``"smallest"``, the order of the rule, or None for a proof that holds however ties are
        broken, so equality never certifies.
      reached: ``bool[G, H, W]``, the sets of cells of which a patch reaches one, where these are
        not the windows: fewer, smaller, or of any other shape. The verdict is exact on them too.
      margin_guard: E, for a verdict that holds of all evidence less than E / 2 away in every cell
        and class too, as another device may have it (soundness, section 15).

    Returns:
      ``bool[T]``. False for an image with evidence that is not finite.

    Raises:
      ValueError: as of the rule, for a window that does not fit, labels that are no classes, sets
        of another map, or a guard below 0.
    """
    array = checked_evidence(evidence)
    cells = (array.shape[1], array.shape[2])
    fitting = checked_window(window, cells)
    truth = checked_classes(labels, array.shape[:1], array.shape[-1])
    check_ties_of_sums(ties)
    sets = None if reached is None else checked_sets(reached, cells)
    guard = checked_guard(margin_guard)
    with unguarded():
        units, spread = _clipped(
            array, clip, partial(quantised_against, labels=truth, margin_guard=guard)
        )
        how: dict[str, Any] = {"window": fitting, "spread": spread, "ties": ties}
        leads = worst_leads_of_sums(units, truth, **how, reached=sets)
        return as_given((leads > 0).all(axis=1), array) & all_finite(array)


def at_places(
    evidence: Array,
    labels: Array,
    *,
    window: Size,
    clip: float | None = None,
    reached: NDArray[np.bool_] | None = None,
) -> PlaceVerdicts:
    """What ``worst_case`` says of each window, or set of cells; ties as in the rule.

    Args:
      evidence: ``float32[T, H, W, K]``, which may be traced.
      labels: ``int32[T]``.
      window, clip: as of ``worst_case``.
      reached: ``bool[S, H, W]``, sets of cells in the place of the windows.

    Returns:
      ``[T, windows]``, or ``[T, S]``. Leads are in the mean clipped evidence of a cell.
    """
    array = checked_evidence(evidence)
    rows, columns = array.shape[1], array.shape[2]
    fitting = checked_window(window, (rows, columns))
    sets = None if reached is None else checked_sets(reached, (rows, columns))
    with unguarded():
        units, spread = _clipped(array, clip)
        how: dict[str, Any] = {"window": fitting, "spread": spread, "ties": "smallest"}
        leads = worst_leads_of_sums(units, labels, **how, reached=sets)
    one = spread / (2 if clip is None else clip)  # units of evidence of 1
    return told_apart(leads > 0, leads / (rows * columns * one))


def runner_up_as_published(
    evidence: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    window: Size,
    clip: float | None = None,
) -> Array | NDArray[np.bool_]:
    """What the published program certifies, true or not: the runner-up alone, equality included.

    The program is that of PatchGuard's authors. Arguments and errors are those of ``worst_case``.
    Not a certificate: another class than the runner-up may have more evidence outside a window.
    """
    array = checked_evidence(evidence)
    fitting = checked_window(window, (array.shape[1], array.shape[2]))
    truth = checked_classes(labels, array.shape[:1], array.shape[-1])
    with unguarded():
        units, spread = _clipped(array, clip)
        holds = _runner_up(jnp.asarray(units), jnp.asarray(truth), fitting, spread)
        return as_given(holds, array)


def _clipped(
    evidence: Evidence,
    clip: float | None,
    rounded: Callable[[Evidence, Grid], Evidence] = quantised,
) -> tuple[Evidence, int]:
    """Evidence in units of a grid, and how many units the range has."""
    cells = evidence.shape[1] * evidence.shape[2]
    if clip is None:
        table = _tanh(2 * cells)  # a bit is kept free: SUM(v_z) + |w| (hi - lo)
        index = rounded(evidence, _TABLE) - np.int32(_TABLE.low)
        xp: Any = jnp if isinstance(index, Array) else np
        return xp.asarray(table)[index], 2 * int(table[-1])
    if not 0 < clip < math.inf:
        raise ValueError(f"clip: expected None or a finite number above 0, got {clip}")
    grid = clipped_grid(cells, clip)
    return rounded(evidence, grid), grid.high


def clipped_grid(cells: int, clip: float | None) -> Grid:
    """The integers that clipped evidence of so many cells is rounded to; see ``rule``."""
    if clip is None:
        return evidence_grid(2 * cells, ceiling=1.0, signed=True)
    return evidence_grid(cells, ceiling=clip)


@lru_cache(maxsize=8)
def _tanh(cells: int) -> NDArray[np.int32]:
    grid = evidence_grid(cells, ceiling=1.0, signed=True)
    at = np.arange(_TABLE.low, _TABLE.high + 1) / 2.0**_TABLE.bits
    return np.rint(np.tanh(0.05 * at - 1) * grid.high).astype(np.int32)


@partial(jax.jit, static_argnames=("window", "spread"))
def _runner_up(units: Array, labels: Array, window: tuple[int, int], spread: int) -> Array:
    reach = jnp.int32(window[0] * window[1] * spread)

    def one(image: Array, label: Array) -> Array:
        number = image.shape[-1]
        # A stable sort's last and last but one, though nothing makes the program's sort stable.
        order = jnp.argsort(image.sum(axis=(0, 1), dtype=jnp.int32), stable=True)
        outside = sums_outside(image, window)
        second = jnp.take(outside, order[max(number - 2, 0)], axis=1)
        own = jnp.take(outside, label, axis=1)
        return (order[-1] == label) & (own >= second + reach).all()

    return image_by_image(one, 4 * image_entries(units), units, labels)
