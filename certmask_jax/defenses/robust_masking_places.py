"""PatchGuard's certificate place by place: what is proved of each window, or of each set of cells.

The worst case of robust masking holds if and only if it holds on every window that a patch may
reach (soundness, 12.2, 12.3), or on every set of cells (12.7). Here stand the parts of that, and by
how much each holds.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.evidence_places import PlaceVerdicts, told_apart
from certmask_jax.defenses.quantised_evidence import image_by_image, image_entries, quantised
from certmask_jax.defenses.reached_sets import checked_sets, of_sets, windows_around
from certmask_jax.defenses.robust_masking_game import (
    Game,
    beats,
    extremes_on,
    least_of_label,
    outside_windows,
)


def masked_windows(evidence: Array, labels: Array, game: Game) -> PlaceVerdicts:
    """What ``patchguard.robust_masking_worst_case`` says of each window; ties as in the rule.

    Args:
      evidence: ``float32[T, H, W, K]``, which may be traced.
      labels: ``int32[T]``.
      game: the map and the rule.

    Returns:
      ``[T, windows]``. Leads are in the mean evidence of a cell.
    """
    with unguarded():
        holds, leads = _of_windows(quantised(evidence, game.grid), labels, game)
    rows, columns = game.cells
    return told_apart(holds, leads / (rows * columns * 2.0**game.grid.bits))


def masked_sets(
    evidence: Array, labels: Array, game: Game, reached: NDArray[np.bool_], *, shared_by: int = 1
) -> PlaceVerdicts:
    """What it says of each of the sets ``reached bool[S, H, W]``.

    At a threshold of 0 that is exact. Above it a set holds where some window around it does, and
    there are no leads.

    Args:
      evidence, labels, game: as of ``masked_windows``.
      shared_by: leads are in sums of evidence over this: 1 where a vote is 1, and the number of
        cells for the mean evidence of a cell.

    Returns:
      ``[T, S]``.
    """
    if game.threshold:
        around = windows_around(checked_sets(reached, game.cells), game.window, wrap=game.wrap)
        return PlaceVerdicts(of_sets(masked_windows(evidence, labels, game).holds, around), None)
    with unguarded():
        holds, leads = _of_sets(quantised(evidence, game.grid), labels, jnp.asarray(reached), game)
    return told_apart(holds, leads / (shared_by * 2.0**game.grid.bits))


@partial(jax.jit, static_argnames=("game",))
def _of_windows(units: Array, labels: Array, game: Game) -> tuple[Array, Array]:
    threshold = game.threshold / 2.0**15
    full = game.window[0] * game.window[1] * game.grid.high

    def one(image: Array, label: Array) -> tuple[Array, Array]:
        classes = jnp.arange(image.shape[-1], dtype=jnp.int32)
        least = least_of_label(jnp.take(image, label, axis=-1), game)
        least = least[:, None] + (classes < label).astype(jnp.int32)[None, :]
        outside = outside_windows(image, game)
        itself = (classes == label)[None, :]
        holds = (beats(least, outside, game) | itself).all(axis=1)
        around = outside.astype(jnp.float32)
        most = jnp.maximum(around, jnp.minimum(around / (1 - threshold), around + full))
        leads = jnp.where(itself, jnp.inf, least.astype(jnp.float32) - most)
        if not game.threshold:
            leads = jnp.where(itself, jnp.inf, (least - outside).astype(jnp.float32))
        return holds, leads.min(axis=1)

    entries = 4 * image_entries(units) + game.entries()
    return image_by_image(one, entries, units, labels)


@partial(jax.jit, static_argnames=("game",))
def _of_sets(units: Array, labels: Array, sets: Array, game: Game) -> tuple[Array, Array]:
    def one(image: Array, label: Array) -> tuple[Array, Array]:
        classes = jnp.arange(image.shape[-1], dtype=jnp.int32)
        wins = (classes < label).astype(jnp.int32)

        def on(reached: Array) -> Array:
            least, most = extremes_on(image, label, reached, game)
            leads = (least + wins - most).astype(jnp.float32)
            return jnp.where(classes == label, jnp.inf, leads).min()

        leads = jax.lax.map(on, sets)
        return leads > 0, leads

    return image_by_image(one, 4 * image_entries(units), units, labels)
