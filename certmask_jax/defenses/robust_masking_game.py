"""Robust masking on integers: scores of the rule, and both sides of its worst case, for one image.

Notation and proofs: soundness, section 12. ``OUT_w(u)`` is the sum outside a window w.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import Array

from certmask_jax.defenses.evidence_windows import (
    Size,
    checked_window,
    kept_of_windows,
    meeting,
    most_kept,
    window_sums,
)
from certmask_jax.defenses.quantised_evidence import Grid, evidence_grid

THRESHOLD_BITS = 15
"""The threshold T is rounded to a multiple of ``2**-15``, so that shares are compared exactly."""


@dataclasses.dataclass(frozen=True)
class Game:
    """A map, its windows and the rule's parameters, all whole numbers; a static argument of jit.

    Attributes:
      cells, window: sizes of the map and of a window.
      wrap: whether windows wrap around.
      grid: what evidence is rounded to.
      threshold: T times ``2**15``.
    """

    cells: tuple[int, int]
    window: tuple[int, int]
    wrap: bool
    grid: Grid
    threshold: int

    @property
    def windows(self) -> int:
        """How many windows there are."""
        rows, columns = self.cells
        if self.wrap:
            return rows * columns
        return (rows - self.window[0] + 1) * (columns - self.window[1] + 1)

    def entries(self, *, guarded: bool = False) -> int:
        """How many numbers the proofs of an image hold at a time beside its evidence.

        On a cycle, and within a guard, they look at all pairs of windows.
        """
        return (5 if guarded else 3 if self.wrap else 0) * self.windows**2

    def share(self, total: Array) -> Array:
        """``floor(T * total)``, exact, of totals from 0 on: what is above it is above T's share."""
        high, low = total >> 16, total & 0xFFFF
        return ((self.threshold * high) << 1) + ((self.threshold * low) >> THRESHOLD_BITS)


def game_on(
    cells: tuple[int, int], *, window: Size, clip: float, threshold: float, wrap: bool
) -> Game:
    """The game; ``ValueError`` for a window that does not fit, or a parameter out of range."""
    fitting = checked_window(window, cells)
    check_threshold(threshold)
    if math.isnan(clip):
        raise ValueError("clip: expected a number above 0, or infinity, got nan")
    units = min(round(threshold * 2**THRESHOLD_BITS), 2**THRESHOLD_BITS - 1)
    grid = evidence_grid(cells[0] * cells[1], ceiling=clip)
    return Game(cells=cells, window=fitting, wrap=bool(wrap), grid=grid, threshold=units)


def check_threshold(threshold: float) -> None:
    """``ValueError`` unless T is a share below 1."""
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold: expected a number from 0 to below 1, got {threshold}; at 1 no window is "
            "masked and nothing is proved"
        )


def scores(units: Array, game: Game) -> Array:
    """What the rule compares: ``int32[H, W, K]`` to ``int32[K]``, each class masked on its own."""
    total = units.sum(axis=(0, 1), dtype=jnp.int32)
    largest = window_sums(units, game.window, wrap=game.wrap).max(axis=(0, 1))
    return total - jnp.where(largest > game.share(total), largest, 0)


def outside_windows(units: Array, game: Game) -> Array:
    """``OUT_w(u)`` of every class: ``int32[H, W, K]`` to ``int32[windows, K]``."""
    inside = window_sums(units, game.window, wrap=game.wrap).reshape(-1, units.shape[-1])
    return units.sum(axis=(0, 1), dtype=jnp.int32)[None, :] - inside


def least_of_label(units: Array, game: Game, *, most: Array | None = None) -> Array:
    """The least score that an attack on each window leaves a class (theorem 2; at T = 0, 1).

    ``int32[H, W]`` of that class to ``int32[windows]``. A window that meets the attacked one can be
    made the largest, and be masked. One that does not is masked if its share exceeds T without
    any evidence in the attacked window. With ``most``, where evidence may be all from ``units`` to
    that, its share is the largest that it may be, and what it leaves is the least (soundness, 15).
    """
    outside = units.sum(dtype=jnp.int32) - window_sums(units, game.window, wrap=game.wrap).ravel()
    if most is None:
        near, apart = _most_kept(units, game)
        largest = jnp.maximum(near, apart)
        masked = jnp.where(largest > game.share(outside), largest, 0)
    else:
        kept = kept_of_windows(units, game.window, wrap=game.wrap)
        above = kept_of_windows(most, game.window, wrap=game.wrap)
        total = outside[:, None] - kept + above
        masked = jnp.where(above > game.share(total), kept, 0).max(axis=1)
        meets = meeting(game.cells, game.window, wrap=game.wrap)
        near = jnp.where(meets, kept, 0).max(axis=1)
    return outside - jnp.maximum(masked, near)


def _most_kept(units: Array, game: Game) -> tuple[Array, Array]:
    """The most that an attack on each window leaves in one that meets it, and in one apart."""
    if not game.wrap:
        return most_kept(units, game.window)
    kept = kept_of_windows(units, game.window, wrap=True)
    meets = meeting(game.cells, game.window, wrap=True)
    return jnp.where(meets, kept, 0).max(axis=1), jnp.where(meets, 0, kept).max(axis=1)


def extremes_on(units: Array, label: Array, reached: Array, game: Game) -> tuple[Array, Array]:
    """At T = 0 the least score of a label, and the most of every class, under attacks on a set.

    ``int32[H, W, K]`` and a set of cells ``bool[H, W]`` to a number and ``int32[K]``. Scores never
    fall where evidence rises, so they are those of nothing, and of the ceiling, in the whole set.
    """
    own = jnp.where(reached, 0, jnp.take(units, label, axis=-1))
    most = scores(jnp.where(reached[..., None], game.grid.high, units), game)
    return scores(own[..., None], game)[0], most


def beats(least: Array, outside: Array, game: Game, *, capped: bool = True) -> Array:
    """Whether a score is above all that an attack can give a class with ``outside`` around it.

    That is B, the sum outside, if its window is masked, and else at most B / (1 - T), and with
    ``capped`` at most B and a full window. Integers that broadcast, at least 0 where it matters.
    """
    gain = least - outside
    unmasked = gain > game.share(jnp.maximum(least, 0))  # least > B / (1 - T)
    if capped:
        unmasked |= gain > game.window[0] * game.window[1] * game.grid.high
    return (gain > 0) & unmasked
