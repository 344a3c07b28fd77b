"""PatchGuard++: detection on local evidence (Xiang and Mittal, 2021), made exact.

``g`` is the mean of the evidence over all cells and ``m_w`` the same with window w taken out. The
rule answers an alert if some ``m_w`` has another label than ``g`` with a confidence above tau, and
the label of ``g`` otherwise. An image is certified, that is, no patch makes the rule answer a wrong
label and the image itself raises no alert, if ``g`` and all ``m_w`` say y, these with a confidence
above tau: an attack on w leaves ``m_w`` what it is, so a wrong answer meets an alert. For unbounded
evidence that is exact (soundness, section 12.6). The paper asks for tau or more, which is one tie
too many.

Labels are those of exact integer sums. A confidence, ``1 / sum_k exp(m_k - max m)``, is the same on
every device too: ``exp`` is read from a table of integers, 4096 steps a unit, so rule and proof
compare the same number with tau.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.defense import ALERT
from certmask_jax.defenses.evidence_places import PlaceVerdicts
from certmask_jax.defenses.evidence_windows import Size, checked_window, window_sums
from certmask_jax.defenses.guarded_evidence import against_label, checked_guard
from certmask_jax.defenses.plain_arrays import as_given, checked_classes
from certmask_jax.defenses.quantised_evidence import (
    Evidence,
    Grid,
    all_finite,
    checked_evidence,
    evidence_grid,
    image_by_image,
    quantised,
    quantised_within,
)
from certmask_jax.defenses.reached_sets import checked_sets, of_sets, windows_around

_STEPS = 4096  # of the table of exp, a unit of logits
_ALL = 2**31 - 1


class _Game(NamedTuple):
    cells: tuple[int, int]
    window: tuple[int, int]
    classes: int
    grid: Grid

    @property
    def entries(self) -> int:
        rows, columns = self.cells
        return 8 * rows * columns * self.classes

    @property
    def one(self) -> int:
        """``exp(0)`` of the table: the sum over all classes is below 2**31."""
        return int(2 ** min(20, 30 - self.classes.bit_length()))

    def odds_above(self, tau: float) -> np.int32:
        """The largest sum of the table's numbers whose confidence is above tau."""
        return np.int32(min(math.ceil(self.one / Fraction(float(tau))) - 1 if tau else _ALL, _ALL))

    def odds_from(self, tau: float) -> np.int32:
        """The same for a confidence of tau or more."""
        return np.int32(min(math.floor(self.one / Fraction(float(tau))) if tau else _ALL, _ALL))


def detection_rule(
    evidence: ArrayLike | Array, *, window: Size, tau: float
) -> Array | NDArray[np.int32]:
    """The label of the mean evidence, or ``ALERT`` if it fails with some window taken out.

    Ties of the mean go to the largest label and those of a masked mean to the smallest, as in the
    published program.

    Args:
      evidence: ``[T, H, W, K]`` logits of cells, clipped to 1024 either way. NumPy gives NumPy.
      window: cells that a patch reaches, an int or (height, width).
      tau: the confidence that an alert has to exceed, 0 or more and less than 1.

    Returns:
      ``int32[T]``. Infinities count as the ends of the range and NaN as the lower end.

    Raises:
      ValueError: for another shape, a window that does not fit, or tau out of range.
    """
    array = checked_evidence(evidence)
    game = _game(array, window, tau)
    with unguarded():
        answers = _answers(jnp.asarray(quantised(array, game.grid)), game.odds_above(tau), game)
        return as_given(answers, array)


def detection_worst_case(
    evidence: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    window: Size,
    tau: float,
    reached: NDArray[np.bool_] | None = None,
    margin_guard: float = 0.0,
) -> Array | NDArray[np.bool_]:
    """Whether the rule answers the label or an alert whatever is put into any one window.

    The image as it is has to raise no alert. Ties never certify, so it holds however they are
    broken.

    Args:
      evidence, window, tau: as of ``detection_rule``.
      labels: ``[T]``, the true classes.
      reached: ``bool[G, H, W]``, the sets of cells of which a patch reaches one, where these are
        not the windows. One sure window around each is enough, and the others may be unsure.
      margin_guard: E, for a verdict that holds of all evidence less than E / 2 away in every cell
        and class too, as another device may have it (soundness, section 15).

    Returns:
      ``bool[T]``. False for an image with evidence that is not finite.

    Raises:
      ValueError: as of the rule, and for labels that are no classes, sets of another map, or a
        guard below 0.
    """
    array = checked_evidence(evidence)
    game = _game(array, window, tau)
    truth = checked_classes(labels, array.shape[:1], array.shape[-1])
    sets = None if reached is None else checked_sets(reached, game.cells)
    guard, odds = checked_guard(margin_guard), game.odds_above(tau)
    with unguarded():
        least, most = quantised_within(array, game.grid, guard / 2)
        units = jnp.asarray(against_label(least, most, truth) if guard else least)
        first, still, sure = _proofs(units, jnp.asarray(truth), odds, game, False)
        if sets is None:
            robust = first & (still & sure).all(axis=1)
        else:
            around = windows_around(sets, game.window, wrap=False)
            if guard:
                sure_of_any = _ever_sure(jnp.asarray(least), jnp.asarray(most), odds, game)
                no_alert = (still | ~sure_of_any).all(axis=1)
            else:
                no_alert = (still | ~sure).all(axis=1)
            robust = first & no_alert & of_sets(still & sure, around).all(axis=1)
        return as_given(robust, array) & all_finite(array)


def detection_at_places(
    evidence: Array,
    labels: Array,
    *,
    window: Size,
    tau: float,
    reached: NDArray[np.bool_] | None = None,
) -> PlaceVerdicts:
    """What ``detection_worst_case`` says of each window, or set of cells; there is no one lead.

    Args:
      evidence: ``float32[T, H, W, K]``, which may be traced.
      labels: ``int32[T]``.
      window, tau: as of ``detection_rule``.
      reached: ``bool[S, H, W]``, sets of cells in the place of the windows.

    Returns:
      ``[T, windows]``, or ``[T, S]``: whether the image is answered rightly without an alert, and
      the mean without the window too, with confidence; of a set, without some window around it.
    """
    array = checked_evidence(evidence)
    game = _game(array, window, tau)
    with unguarded():
        units = jnp.asarray(quantised(array, game.grid))
        first, still, sure = _proofs(units, labels, game.odds_above(tau), game, False)
        if reached is None:
            return PlaceVerdicts(first[:, None] & still & sure, None)
        around = windows_around(checked_sets(reached, game.cells), game.window, wrap=False)
        unattacked = first & (still | ~sure).all(axis=1)
        return PlaceVerdicts(unattacked[:, None] & of_sets(still & sure, around), None)


def detection_as_published(
    evidence: ArrayLike | Array, labels: ArrayLike | Array, *, window: Size, tau: float
) -> Array | NDArray[np.bool_]:
    """The paper's condition: a confidence of tau *or more*, and ties as the program breaks them.

    At equality it is no certificate. Arguments and errors are those of ``detection_worst_case``.
    """
    array = checked_evidence(evidence)
    game = _game(array, window, tau)
    truth = checked_classes(labels, array.shape[:1], array.shape[-1])
    with unguarded():
        units = jnp.asarray(quantised(array, game.grid))
        first, still, sure = _proofs(units, jnp.asarray(truth), game.odds_from(tau), game, True)
        return as_given(first & (still & sure).all(axis=1), array)


def _game(evidence: Evidence, window: Size, tau: float) -> _Game:
    cells = (evidence.shape[1], evidence.shape[2])
    if not 0 <= tau < 1:
        raise ValueError(f"tau: expected a confidence from 0 to less than 1, got {tau}")
    return _Game(cells, checked_window(window, cells), evidence.shape[3], detection_grid(cells))


def detection_grid(cells: tuple[int, int]) -> Grid:
    """The integers that evidence of (height, width) cells is rounded to.

    Differences of two sums have to fit as well: a bit is kept free.
    """
    return evidence_grid(2 * cells[0] * cells[1], signed=True)


@lru_cache(maxsize=8)
def _exponentials(game: _Game) -> tuple[NDArray[np.int32], int]:
    """``exp(-d)`` times ``one`` for distances d of two sums, and how many units a step is."""
    unit = 1 / (game.cells[0] * game.cells[1] * 2.0**game.grid.bits)
    step = max(1, math.floor(1 / (unit * _STEPS)))
    count = math.ceil(math.log(2.0 * game.one) / (unit * step)) + 1
    table = np.rint(np.exp(-np.arange(count) * (unit * step)) * game.one).astype(np.int32)
    table[-1] = 0
    return table, step


@partial(jax.jit, static_argnames=("game",))
def _ever_sure(least: Array, most: Array, odds: Array, game: _Game) -> Array:
    """``bool[T, windows]``: whether some evidence between the two may be sure of any class.

    A class is at most as far below the best one as its least is below the most of all, and the
    best one, whichever it is, has no distance.
    """
    table, step = _exponentials(game)

    def one(low: Array, high: Array) -> Array:
        best = _without_windows(high, game).max(axis=1, keepdims=True)
        distance = best - _without_windows(low, game)
        steps = jnp.minimum(distance // step, len(table) - 1)
        shares = jnp.asarray(table)[steps]
        least = shares.sum(axis=1, dtype=jnp.int32) - shares.max(axis=1) + jnp.int32(game.one)
        return least <= odds

    return image_by_image(one, 2 * game.entries, least, most)


def _without_windows(image: Array, game: _Game) -> Array:
    """The sums of all classes without each window, ``int32[windows, K]``."""
    inside = window_sums(image, game.window, wrap=False).reshape(-1, game.classes)
    return image.sum(axis=(0, 1), dtype=jnp.int32)[None, :] - inside


class _Said(NamedTuple):
    total: Array  # int32[K]
    masked: Array  # int32[windows, K]
    odds: Array  # int32[windows]: the sum whose inverse is the confidence


def _said(image: Array, game: _Game) -> _Said:
    total = image.sum(axis=(0, 1), dtype=jnp.int32)
    masked = _without_windows(image, game)
    table, step = _exponentials(game)
    distance = masked.max(axis=1, keepdims=True) - masked
    steps = jnp.minimum(distance // step, len(table) - 1)
    return _Said(total, masked, jnp.asarray(table)[steps].sum(axis=1, dtype=jnp.int32))


@partial(jax.jit, static_argnames=("game",))
def _answers(units: Array, most: Array, game: _Game) -> Array:
    def one(image: Array) -> Array:
        total, masked, odds = _said(image, game)
        label = (game.classes - 1 - total[::-1].argmax()).astype(jnp.int32)
        differs = masked.argmax(axis=1).astype(jnp.int32) != label
        return jnp.where((differs & (odds <= most)).any(), jnp.int32(ALERT), label)

    return image_by_image(one, game.entries, units)


@partial(jax.jit, static_argnames=("game", "published"))
def _proofs(
    units: Array, labels: Array, most: Array, game: _Game, published: bool
) -> tuple[Array, Array, Array]:
    """Whether all evidence says the label, ``bool[T]``; and of each window, ``bool[T, windows]``,
    whether the rest does, and whether it is sure enough.
    """

    def one(image: Array, label: Array) -> tuple[Array, Array, Array]:
        total, masked, odds = _said(image, game)
        classes = jnp.arange(game.classes, dtype=jnp.int32)
        own = jnp.take(masked, label, axis=1)[:, None]
        first = (total < total[label]) | (classes == label)
        still = (masked < own) | (classes == label)[None, :]
        if published:
            first |= (total == total[label]) & (classes < label)
            still |= (masked == own) & (classes > label)[None, :]
        return first.all(), still.all(axis=1), odds <= most

    return image_by_image(one, game.entries, units, labels)
