"""PatchGuard's worst case on integers: on windows, on other sets of cells, and within a guard.

Theorems and proofs: soundness, 12.2, 12.3 and 12.7, and 15 for evidence of which only bounds are
known.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.plain_arrays import AnyArray
from certmask_jax.defenses.quantised_evidence import image_by_image, image_entries
from certmask_jax.defenses.reached_sets import of_sets, windows_around
from certmask_jax.defenses.robust_masking_game import (
    Game,
    beats,
    extremes_on,
    least_of_label,
    outside_windows,
)


def withstands(
    units: Array,
    labels: Array,
    game: Game,
    ties: str | None,
    *,
    sets: NDArray[np.bool_] | None = None,
    most: AnyArray | None = None,
) -> Array:
    """Whether no attack changes the answer, of T images.

    Args:
      units: ``int32[T, H, W, K]``; within a guard of the label the least, of others the most.
      labels: ``int32[T]``.
      game: the map and the rule.
      ties: ``"largest"``, the order of the rule, or None: a tie is lost.
      sets: ``bool[G, H, W]``, of which a patch reaches one; None: the windows.
      most: within a guard ``int32[T, H, W, K]``, the most that all evidence may be; above a
        threshold of 0 a class may lose by more of its own.

    Returns:
      ``bool[T]``, exact on sets at a threshold of 0 if ``most`` is None.
    """
    own = None
    if most is not None and game.threshold:
        at = labels.reshape(-1, 1, 1, 1)
        own = jnp.take_along_axis(jnp.asarray(most), at, axis=-1)[..., 0]
    held = _on_windows(units, labels, own, game, ties)
    if sets is None:
        return held.all(axis=1)
    held = of_sets(held, windows_around(sets, game.window, wrap=game.wrap))
    if game.threshold:
        return held.all(axis=1)
    return _on_sets(units, labels, held, jnp.asarray(sets), game, ties)


def sides(
    image: Array, label: Array, game: Game, ties: str | None, *, most: Array | None = None
) -> tuple[Array, Array]:
    """The label's least score, one more where equality is enough, and ``OUT_w`` of all.

    ``int32[H, W, K]`` of an image to ``int32[windows, K]`` twice; ``most`` as of
    ``least_of_label``.
    """
    classes = jnp.arange(image.shape[-1], dtype=jnp.int32)
    least = least_of_label(jnp.take(image, label, axis=-1), game, most=most)
    wins = (classes < label) & (ties == "largest")
    return least[:, None] + wins.astype(jnp.int32)[None, :], outside_windows(image, game)


@partial(jax.jit, static_argnames=("game", "ties"))
def _on_windows(
    units: Array, labels: Array, own: Array | None, game: Game, ties: str | None
) -> Array:
    """``bool[T, windows]``: of which windows an attack is proved to change nothing."""

    def one(image: Array, label: Array, most: Array | None = None) -> Array:
        least, outside = sides(image, label, game, ties, most=most)
        classes = jnp.arange(image.shape[-1], dtype=jnp.int32)
        return (beats(least, outside, game) | (classes == label)[None, :]).all(axis=1)

    entries = 4 * image_entries(units) + game.entries(guarded=own is not None)
    given = (units, labels) if own is None else (units, labels, own)
    return image_by_image(one, entries, *given)


@partial(jax.jit, static_argnames=("game", "ties"))
def _on_sets(
    units: Array, labels: Array, proved: Array, sets: Array, game: Game, ties: str | None
) -> Array:
    """``bool[T]`` at T = 0, exact: of sets that are not ``proved bool[T, G]`` one after another."""

    def one(image: Array, label: Array, known: Array) -> Array:
        classes = jnp.arange(image.shape[-1], dtype=jnp.int32)
        wins = ((classes < label) & (ties == "largest")).astype(jnp.int32)

        def goes_on(state: tuple[Array, Array]) -> Array:
            left, robust = state
            return left.any() & robust

        def next_set(state: tuple[Array, Array]) -> tuple[Array, Array]:
            left, robust = state
            at = left.argmax()
            least, most = extremes_on(image, label, sets[at], game)
            withstands = ((least + wins > most) | (classes == label)).all()
            return left.at[at].set(False), robust & withstands

        return jax.lax.while_loop(goes_on, next_set, (~known, jnp.bool_(True)))[1]

    return image_by_image(one, 4 * image_entries(units), units, labels, proved)
