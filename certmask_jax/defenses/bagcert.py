"""BagCert (Metzen and Yatsura, ICLR 2021): votes of regions, and their worst case.

A region, which is a cell of a map of local evidence, scores 1 for each class whose evidence is
above a threshold and else 0, so it may score for several classes or for none. The class with most
scores is the answer, of equals the smallest. A patch at location l reaches the regions R(l), and
can set their scores at will. With ``d = s_y - s_z`` in {-1, 0, 1}, an image is robust if and only
if for all locations l and all classes z other than y

    SUM of d over regions outside of R(l)  >  |R(l)|    (soundness, section 12.10),

where equality is enough if y wins a tie against z. The paper's condition asks for more than |R(l)|
everywhere, so it is a certificate in whatever order equals are taken.

The paper trains its net for these scores, with a sigmoid in the place of the step. Here the scores
are those of any net. Its other aggregation of scores is left out, as no text at hand specifies it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.bounded_sums import (
    TiesOfSums,
    check_ties_of_sums,
    largest_sum,
    worst_leads_of_sums,
)
from certmask_jax.defenses.evidence_places import PlaceVerdicts, told_apart
from certmask_jax.defenses.evidence_windows import Size, checked_window
from certmask_jax.defenses.guarded_evidence import against_label, checked_guard
from certmask_jax.defenses.plain_arrays import as_given, checked_classes
from certmask_jax.defenses.quantised_evidence import CEILING, Evidence, all_finite, checked_evidence
from certmask_jax.defenses.reached_sets import checked_sets

_TINY = float(np.finfo(np.float32).tiny)


def region_scores(
    evidence: ArrayLike | Array, *, threshold: float = 0.0
) -> Array | NDArray[np.bool_]:
    """For which classes each region scores: those whose evidence is above the threshold.

    Compared in float32. What is nearer to 0 than 2**-126 counts as 0, as many devices have it, so
    scores are the same on every device.

    Args:
      evidence: ``[T, H, W, K]`` logits of cells. NumPy gives NumPy; arrays of JAX may be traced.
      threshold: which evidence has to exceed, between -1024 and 1024.

    Returns:
      ``bool[T, H, W, K]``. NaN scores for nothing.

    Raises:
      ValueError: for another shape, or a threshold out of range.
    """
    array = checked_evidence(evidence)
    least = np.float32(checked_threshold(threshold))
    xp: Any = jnp if isinstance(array, Array) else np
    with unguarded(), np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = array.astype(np.float32)
        return xp.where(xp.abs(single) < _TINY, np.float32(0), single) > least


def rule(evidence: ArrayLike | Array, *, threshold: float = 0.0) -> Array | NDArray[np.int32]:
    """The class for which most regions score, of equals the smallest: ``int32[T]``.

    Arguments and errors are those of ``region_scores``.
    """
    units = _units(checked_evidence(evidence), threshold)
    with unguarded():
        return as_given(largest_sum(units), units)


def worst_case(
    evidence: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    window: Size,
    threshold: float = 0.0,
    ties: TiesOfSums = "smallest",
    reached: NDArray[np.bool_] | None = None,
    margin_guard: float = 0.0,
) -> Array | NDArray[np.bool_]:
    """Whether the rule answers the label whatever evidence is put into any one window. Exact.

    Args:
      evidence, threshold: as of ``region_scores``.
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
    truth = checked_classes(labels, array.shape[:1], array.shape[-1])
    guard = checked_guard(margin_guard)
    leads = _leads(array, truth, window, threshold, ties, reached, guard)
    with unguarded():
        return as_given((leads > 0).all(axis=1), array) & all_finite(array)


def every_location_as_published(
    evidence: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    window: Size,
    threshold: float = 0.0,
    reached: NDArray[np.bool_] | None = None,
) -> Array | NDArray[np.bool_]:
    """The paper's condition: at every location more than |R(l)| is left of each difference.

    That is ``worst_case`` with ``ties=None``, and a certificate. Arguments and errors are its.
    """
    return worst_case(
        evidence, labels, window=window, threshold=threshold, ties=None, reached=reached
    )


def at_places(
    evidence: Array,
    labels: Array,
    *,
    window: Size,
    threshold: float = 0.0,
    reached: NDArray[np.bool_] | None = None,
) -> PlaceVerdicts:
    """What ``worst_case`` says of each window, or set of cells; ties as in the rule.

    Args:
      evidence: ``float32[T, H, W, K]``, which may be traced.
      labels: ``int32[T]``.
      window, threshold: as of ``worst_case``.
      reached: ``bool[S, H, W]``, sets of cells in the place of the windows.

    Returns:
      ``[T, windows]``, or ``[T, S]``. Leads are in scores, of which a region has one a class: how
      many more the true class has in the worst case than are needed to win.
    """
    leads = _leads(checked_evidence(evidence), labels, window, threshold, "smallest", reached)
    return told_apart(leads > 0, leads)


def checked_threshold(threshold: float) -> float:
    """The threshold, or 0 where it is nearer to 0 than 2**-126.

    Raises:
      ValueError: unless it is between -1024 and 1024.
    """
    if not -CEILING < threshold < CEILING:
        raise ValueError(
            f"threshold: expected a number between {-CEILING:g} and {CEILING:g}, got {threshold}"
        )
    return 0.0 if abs(threshold) < _TINY else float(threshold)


def _units(array: Evidence, threshold: float) -> Evidence:
    return region_scores(array, threshold=threshold).astype(np.int32)


def _units_against(array: Evidence, truth: Evidence, threshold: float, guard: float) -> Evidence:
    """The scores that are worst for the labels, of evidence within half the guard.

    A region scores for the label if it does so for all such evidence, and for others if it does for
    some. Rounding to float32 keeps the order of numbers, and the threshold is one of them.
    """
    half = np.float32(guard / 2)
    wide = half if float(half) >= guard / 2 else np.nextafter(half, np.float32(np.inf))
    least = np.float32(checked_threshold(threshold))
    xp: Any = jnp if isinstance(array, Array) else np

    def flushed(moved: Any) -> Any:
        return xp.where(xp.abs(moved) < _TINY, np.float32(0), moved)

    with unguarded(), np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = flushed(array.astype(np.float32))
        sure, possible = flushed(single - wide) > least, flushed(single + wide) >= least
        return against_label(sure, possible, truth).astype(np.int32)


def _leads(
    array: Evidence,
    truth: Evidence,
    window: Size,
    threshold: float,
    ties: TiesOfSums,
    reached: NDArray[np.bool_] | None,
    guard: float = 0.0,
) -> Array:
    cells = (array.shape[1], array.shape[2])
    fitting = checked_window(window, cells)
    check_ties_of_sums(ties)
    sets = None if reached is None else checked_sets(reached, cells)
    units = _units_against(array, truth, threshold, guard) if guard else _units(array, threshold)
    with unguarded():
        how: dict[str, Any] = {"window": fitting, "spread": 1, "ties": ties, "reached": sets}
        return worst_leads_of_sums(units, truth, **how)
