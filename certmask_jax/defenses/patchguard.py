"""PatchGuard: robust masking of local evidence (Xiang et al., USENIX Security 2021), made exact.

Evidence ``u[H, W, K]`` says what each cell of a map finds for each class. A patch reaches one
window of cells and no more. The rule takes, from each class on its own, the window with the largest
sum away, if that is more than T of the class's total, and answers the class with most left.
Mask-BN is the rule on the local logits of a BagNet, clipped at 0; Mask-DS on the confidences of a
model that sees bands, with windows that wrap around (``[T, bands, 1, K]`` and ``wrap=True``).

At T = 0 the worst case is exact, for any clip (soundness, 12.2): the image is robust if and only if
for all windows w and classes z other than the label y

    min over windows v of SUM((1 - v)(1 - w) u_y)  >  SUM((1 - w) u_z).

For 0 < T < 1 the same holds with a larger left side, and B / (1 - T) on the right, where B is the
sum there (12.3); ``exact=True`` finds the right side by a linear program. Evidence is rounded to
integers first, by rule and proofs alike (``quantised_evidence``), so all this holds bit for bit
against any floating-point evidence that a patch may cause.

Ties go to the largest label, as in the published program, and the worst case knows that order. With
``ties=None`` it needs none: equality never certifies.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.evidence_windows import Size, reached_window
from certmask_jax.defenses.guarded_evidence import against_label, checked_guard
from certmask_jax.defenses.patchguard_detection import (
    detection_as_published,
    detection_rule,
    detection_worst_case,
)
from certmask_jax.defenses.patchguard_published import as_published
from certmask_jax.defenses.plain_arrays import as_given, checked_classes
from certmask_jax.defenses.quantised_evidence import (
    all_finite,
    checked_evidence,
    image_by_image,
    image_entries,
    quantised,
    quantised_within,
)
from certmask_jax.defenses.reached_sets import checked_sets
from certmask_jax.defenses.robust_masking_game import Game, beats, game_on, scores
from certmask_jax.defenses.robust_masking_proofs import sides, withstands
from certmask_jax.defenses.unmasked_program import most_unmasked

__all__ = [
    "as_published",
    "detection_as_published",
    "detection_rule",
    "detection_worst_case",
    "reached_window",
    "robust_masking_rule",
    "robust_masking_worst_case",
]


def robust_masking_rule(
    evidence: ArrayLike | Array,
    *,
    window: Size,
    clip: float = math.inf,
    threshold: float = 0.0,
    wrap: bool = False,
) -> Array | NDArray[np.int32]:
    """The label that robust masking answers, ties to the largest (Algorithm 1, each class alone).

    Args:
      evidence: ``[T, H, W, K]`` numbers. NumPy gives NumPy; arrays of JAX may be traced.
      window: cells that a patch reaches, an int or (height, width); see ``reached_window``.
      clip: evidence is clipped to ``[0, clip]``, and to 1024 where that is less.
      threshold: T, the share of a class's sum above which its window is masked; rounded to 1/32768.
      wrap: whether windows wrap around the ends of the map.

    Returns:
      ``int32[T]``. Infinities count as the ends of the range and NaN as 0, for a patch may cause
      them and must not win by it.

    Raises:
      ValueError: for another shape, a window that does not fit, or a parameter out of range.
    """
    array = checked_evidence(evidence)
    game = game_on(_cells(array), window=window, clip=clip, threshold=threshold, wrap=wrap)
    with unguarded():
        answers = _answers(jnp.asarray(quantised(array, game.grid)), game)
        return as_given(answers, array)


def robust_masking_worst_case(
    evidence: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    window: Size,
    clip: float = math.inf,
    threshold: float = 0.0,
    wrap: bool = False,
    ties: Literal["largest"] | None = "largest",
    exact: bool = False,
    reached: NDArray[np.bool_] | None = None,
    margin_guard: float = 0.0,
) -> Array | NDArray[np.bool_]:
    """Whether the rule answers the label whatever evidence is put into any one window.

    Exact at ``threshold=0``. Above it true verdicts are proved, and false ones may be due to the
    bound B / (1 - T); with ``exact`` and without a clip they are exact up to the rounding, for
    evidence far below 1024.

    Args:
      evidence, window, clip, threshold, wrap: as of ``robust_masking_rule``.
      labels: ``[T]``, the true classes.
      ties: ``"largest"``, the order of the rule, or None for a proof that holds however ties are
        broken, so equality never certifies.
      exact: bound the unmasked side by linear programs, on the host: for a few images, and not
        traced. One program for each window and class that is in doubt.
      reached: ``bool[G, H, W]``, the sets of cells of which a patch reaches one, where these are
        not the windows: fewer, smaller, or of any other shape. At a threshold of 0 the verdict is
        exact on them too (soundness, 12.7). Above it one window around each set has to be proved.
      margin_guard: E, for a verdict that holds of all evidence less than E / 2 away in every cell
        and class too, as another device may have it (soundness, section 15).

    Returns:
      ``bool[T]``. False for an image with evidence that is not finite.

    Raises:
      ValueError: as of the rule, for labels that are no classes, a guard below 0, or ``exact``
        while traced or with a guard.
    """
    array = checked_evidence(evidence)
    game = game_on(_cells(array), window=window, clip=clip, threshold=threshold, wrap=wrap)
    truth = checked_classes(labels, array.shape[:1], array.shape[-1])
    if ties not in (None, "largest"):
        raise ValueError(f"ties: expected None or 'largest', got {ties!r}")
    if exact and reached is not None:
        raise ValueError("reached: expected none beside exact, which is about windows")
    sets = None if reached is None else checked_sets(reached, game.cells)
    guard = checked_guard(margin_guard)
    if exact and guard:
        raise ValueError("margin guard: expected 0 beside exact, which is about this evidence")
    if exact and isinstance(array, jax.core.Tracer):
        raise ValueError("exact: expected evidence that is known; leave it out while JAX traces")
    with unguarded():
        least, most = quantised_within(array, game.grid, guard / 2)
        units = jnp.asarray(against_label(least, most, truth) if guard else least)
        above = most if guard else None
        verdicts = withstands(units, jnp.asarray(truth), game, ties, sets=sets, most=above)
        robust = as_given(verdicts, array)
        finite = all_finite(array)
        if exact and game.threshold:
            settled = np.array(robust)
            for image in np.flatnonzero(~settled & np.asarray(finite)):
                settled[image] = _by_program(units[image], int(truth[image]), game, ties)
            robust = jnp.asarray(settled) if isinstance(array, Array) else settled
        return robust & finite


def _cells(evidence: Array | NDArray[np.generic]) -> tuple[int, int]:
    return evidence.shape[1], evidence.shape[2]


@partial(jax.jit, static_argnames=("game",))
def _answers(units: Array, game: Game) -> Array:
    classes = units.shape[-1]

    def one(image: Array) -> Array:
        left = scores(image, game)
        return (classes - 1 - left[::-1].argmax()).astype(jnp.int32)

    return image_by_image(one, 4 * image_entries(units), units)


@partial(jax.jit, static_argnames=("game", "ties"))
def _doubt(image: Array, label: Array, game: Game, ties: str | None) -> tuple[Array, ...]:
    least, outside = sides(image, label, game, ties)
    return least, outside, beats(least, outside, game)


def _by_program(units: Array, label: int, game: Game, ties: str | None) -> bool:
    least, outside, clear = map(np.asarray, _doubt(units, jnp.int32(label), game, ties))
    open_pairs = ~clear
    open_pairs[:, label] = False
    if (least <= outside)[open_pairs].any():
        return False  # lost already where the window is masked
    cells = np.asarray(units)
    return all(
        most_unmasked(cells[..., other], int(attacked), game) < least[attacked, other]
        for attacked, other in np.argwhere(open_pairs)
    )
