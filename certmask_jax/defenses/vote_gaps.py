"""What the papers and programs of band votes call certified: gaps between the two best classes.

They count how many votes a patch can reach, n, and ask that the best class leads the second by
more than 2 n, without knowing which votes those are. Where n is right and ties are read rightly
such a gap implies ``derandomized_smoothing.worst_case``. Two of the three are not proofs as they
stand (soundness, 13.3): smoothed ViTs and ViP count n one short where the stride does not divide
the width, and the Adversarial Robustness Toolbox breaks a tie by whichever second class it meets.

Conditions take counts, ``int[T, K]`` (``derandomized_smoothing.vote_counts``), and give
``bool[T]``: that the true class is answered and certified. NumPy gives NumPy; arrays of JAX may be
traced.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from certmask_jax.defenses.plain_arrays import AnyArray, as_given, checked_classes

Mode = Literal["column", "row", "both", "block"]


def published_reach(patch: int, band: int, *, stride: int = 1, mode: Mode = "column") -> int:
    """The votes that a patch reaches by the papers' closed form: ``ceil((p + b - 1) / s)``.

    Twice that for bands of rows and columns, its square for blocks. It is one short on some
    strides that do not divide the width: the true number is
    ``MaskSet.affected().sum(axis=1).max()``.

    Args:
      patch, band, stride: in pixels, of square patches.
      mode: ``"column"``, ``"row"``, ``"both"`` or ``"block"``.

    Raises:
      ValueError: for another mode, or numbers below 1.
    """
    if min(patch, band, stride) < 1:
        raise ValueError(
            f"patch, band, stride: expected at least 1 each, got {patch}, {band}, {stride}"
        )
    once = -(-(patch + band - 1) // stride)
    reach = {"column": once, "row": once, "both": 2 * once, "block": once * once}
    if mode not in reach:
        raise ValueError(f"mode: expected one of {', '.join(reach)}, got {mode!r}")
    return reach[mode]


def levine_feizi_gap(
    counts: ArrayLike | Array, labels: ArrayLike | Array, *, reach: int
) -> AnyArray:
    """A lead of more than ``2 reach``, or of just that over a larger class (Levine and Feizi).

    The second class is the smallest one of those with as many votes.
    """
    votes, best, lead, runners = _leads(counts, labels)
    classes = votes.shape[1]
    second = jnp.where(runners, _row(classes), classes).min(axis=1)
    certified = (lead > 2 * reach) | ((lead == 2 * reach) & (best < second))
    return as_given(certified & (best == jnp.asarray(labels, jnp.int32)), counts, labels)


def smoothed_vit_gap(
    counts: ArrayLike | Array, labels: ArrayLike | Array, *, reach: int
) -> AnyArray:
    """A lead of at least ``2 reach + 1`` (smoothed ViTs, ViP's recovery).

    A proof with the true ``reach``, and not with ``published_reach`` where that is one short.
    """
    _, best, lead, _ = _leads(counts, labels)
    certified = (lead >= 2 * reach + 1) & (best == jnp.asarray(labels, jnp.int32))
    return as_given(certified, counts, labels)


def toolbox_gap(
    counts: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    reach: int,
    algorithm: Literal["levine2020", "salman2021"] = "levine2020",
    second: ArrayLike | None = None,
) -> AnyArray:
    """The condition of the Adversarial Robustness Toolbox for bands.

    ``salman2021`` is a lead of more than ``2 reach``. ``levine2020`` adds leads of just that where
    the best class is smaller than the *second* one. That is whichever of equal ones a selection
    algorithm happens to give, hence unsound where a smaller one ties.

    Args:
      second: ``int[T]``, which class the algorithm gave; by default the largest of equal ones, with
        which it certifies most.
    """
    if algorithm not in ("levine2020", "salman2021"):
        raise ValueError(f"algorithm: expected levine2020 or salman2021, got {algorithm!r}")
    votes, best, lead, runners = _leads(counts, labels)
    certified = lead > 2 * reach
    if algorithm == "levine2020":
        largest = jnp.where(runners, _row(votes.shape[1]), -1).max(axis=1)
        given = largest if second is None else jnp.asarray(second, jnp.int32)
        certified |= (lead == 2 * reach) & (best < given)
    return as_given(certified & (best == jnp.asarray(labels, jnp.int32)), counts, labels)


def _row(classes: int) -> Array:
    return jnp.arange(classes, dtype=jnp.int32)[None]


def _leads(
    counts: ArrayLike | Array, labels: ArrayLike | Array
) -> tuple[Array, Array, Array, Array]:
    """The counts, the best class (of equals the smallest), its lead, and who comes second.

    ``ValueError`` for counts or labels that are none.
    """
    given = counts if isinstance(counts, Array) else np.asarray(counts)
    if given.ndim != 2 or given.shape[1] < 2 or given.dtype.kind not in "iu":
        raise ValueError(
            f"counts: expected int[images, classes] of at least 2 classes, got {given.dtype}"
            f"{list(given.shape)}"
        )
    checked_classes(labels, given.shape[:1], given.shape[1])
    return _leads_of(jnp.asarray(given))


@jax.jit
def _leads_of(counts: Array) -> tuple[Array, Array, Array, Array]:
    votes = counts.astype(jnp.int32)
    best = votes.argmax(axis=1).astype(jnp.int32)
    others = jnp.where(_row(votes.shape[1]) == best[:, None], -1, votes)
    most = others.max(axis=1)
    return votes, best, votes.max(axis=1) - most, others == most[:, None]
