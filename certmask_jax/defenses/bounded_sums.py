"""The class of the largest sum over cells, where what a cell says is in a bounded range.

Of integers ``v`` in ``[lo, hi]`` for each cell and class a patch can move those of the cells that
it reaches from one end to the other, those of each class apart. Sums are linear, so the answer y
stays if and only if for each set w of cells that a patch may reach and *all* classes z other than y

    SUM((1 - w) v_y) - SUM((1 - w) v_z)  >  |w| (hi - lo)    (soundness, section 12.5),

where equality is enough if y wins a tie against z. In ``clipped_bagnet`` v is clipped evidence, in
``bagcert`` the vote of a cell.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.evidence_windows import window_sums
from certmask_jax.defenses.plain_arrays import AnyArray
from certmask_jax.defenses.quantised_evidence import image_by_image, image_entries

TiesOfSums = Literal["smallest"] | None
"""The order of a rule that takes the smallest of equals, or None, where a tie is lost."""


def check_ties_of_sums(ties: TiesOfSums) -> None:
    """``ValueError`` for anything else than ``"smallest"`` or None."""
    if ties not in (None, "smallest"):
        raise ValueError(f"ties: expected None or 'smallest', got {ties!r}")


@jax.jit
def largest_sum(units: AnyArray) -> Array:
    """The class of the largest, of equals the smallest: ``int32[T, H, W, K]`` -> ``int32[T]``."""
    return units.sum(axis=(1, 2), dtype=jnp.int32).argmax(axis=-1).astype(jnp.int32)


def worst_leads_of_sums(
    units: AnyArray,
    labels: AnyArray,
    *,
    window: tuple[int, int],
    spread: int,
    ties: TiesOfSums,
    reached: NDArray[np.bool_] | None,
) -> Array:
    """By how much the label leads all others, whatever is put into each set of cells.

    Args:
      units: ``int32[T, H, W, K]``, whose sums over cells fit ``int32``.
      labels: ``int32[T]``.
      window: (height, width) of the windows that a patch reaches.
      spread: hi - lo, at least 1.
      ties: as of ``TiesOfSums``.
      reached: ``bool[S, H, W]``, sets of cells in the place of the windows, or None.

    Returns:
      ``float32[T, windows]``, or ``[T, S]``: above 0 where no attack changes the answer.
    """
    if reached is None:
        return _on_windows(jnp.asarray(units), jnp.asarray(labels), window, spread, ties)
    sets = jnp.asarray(reached)
    return _on_sets(jnp.asarray(units), jnp.asarray(labels), sets, spread, ties)


def sums_outside(image: Array, window: tuple[int, int]) -> Array:
    """``SUM((1 - w) v)`` for all windows w: ``int32[H, W, K]`` -> ``int32[windows, K]``."""
    inside = window_sums(image, window, wrap=False).reshape(-1, image.shape[-1])
    return image.sum(axis=(0, 1), dtype=jnp.int32)[None, :] - inside


@partial(jax.jit, static_argnames=("window", "spread", "ties"))
def _on_windows(
    units: Array, labels: Array, window: tuple[int, int], spread: int, ties: TiesOfSums
) -> Array:
    reach = jnp.int32(window[0] * window[1] * spread)

    def one(image: Array, label: Array) -> Array:
        return _least_lead(sums_outside(image, window), reach, label, ties)

    return image_by_image(one, 4 * image_entries(units), units, labels)


@partial(jax.jit, static_argnames=("spread", "ties"))
def _on_sets(units: Array, labels: Array, sets: Array, spread: int, ties: TiesOfSums) -> Array:
    def one(image: Array, label: Array) -> Array:
        def on(reached: Array) -> Array:
            outside = jnp.where(reached[..., None], 0, image).sum(axis=(0, 1), dtype=jnp.int32)
            reach = reached.sum(dtype=jnp.int32) * spread
            return _least_lead(outside[None], reach, label, ties)[0]

        return jax.lax.map(on, sets)

    return image_by_image(one, 4 * image_entries(units), units, labels)


def _least_lead(outside: Array, reach: Array, label: Array, ties: TiesOfSums) -> Array:
    """``float32[G]``: by how much the label leads all that ``int32[G, K]`` and the reach give."""
    classes = jnp.arange(outside.shape[1], dtype=jnp.int32)
    wins = (classes > label) & (ties == "smallest")
    own = jnp.take(outside, label, axis=1)[:, None]
    leads = own - (outside + reach) + wins.astype(jnp.int32)[None, :]
    others = (classes != label)[None, :]
    return jnp.where(others, leads.astype(jnp.float32), jnp.inf).min(axis=1)
