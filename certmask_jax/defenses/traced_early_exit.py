"""What an answer still needs of one image, traced by JAX: early exit inside a compiled program.

Each function takes the labels ``int32[V]`` that are there and which of them are known, ``bool[V]``
(the others hold anything), and gives ``bool[V]``: what to evaluate next. It is empty only where the
rule's answer is decided, whatever the rest would say: ``undecided`` without a label is empty then.
Before, it names some of what decides the answer, which is a guess of what costs little. On the host
the same questions are those of ``patchcleanser_early_exit``, ``pair_cover_early_exit`` and
``mrcert_early_exit``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.patchcleanser_proofs import TwoRounds
from certmask_jax.defenses.voting import Ties, majority_label
from certmask_jax.masks.union_lattice import Unions

_ABOVE = np.iinfo(np.int32).max  # every label


def double_masking_needs(labels: Array, known: Array, rounds: TwoRounds, *, ties: Ties) -> Array:
    """The first round; then the rows of masks that disagree with the majority and may yet stand.

    Nothing of a row once one of its labels is not the mask's own, nor after a mask that stands.
    """
    most = majority_label(labels[rounds.single], ties)
    return _after(rounds.single, _rows_that_may_stand(labels, known, rounds, most), known)


def patchcure_needs(labels: Array, known: Array, rounds: TwoRounds, base: int) -> Array:
    """As of double masking, with the label of masked image ``base`` for the majority."""
    second = _rows_that_may_stand(labels, known, rounds, labels[base])
    return _after(np.append(rounds.single, base), second, known)


def _rows_that_may_stand(labels: Array, known: Array, rounds: TwoRounds, default: Array) -> Array:
    one_mask = labels[rounds.single]
    told = known[rounds.pair]
    refuted = (told & (labels[rounds.pair] != one_mask[:, None])).any(axis=1)
    disagrees = one_mask != default
    stands = disagrees & told.all(axis=1) & ~refuted
    may_stand = disagrees & ~refuted & (jnp.cumsum(stands.astype(jnp.int32)) == 0)
    in_row = _members(rounds.pair, labels.shape[0])
    return (may_stand[:, None] & in_row).any(axis=0)


def challenger_masking_needs(labels: Array, known: Array, pair: NDArray[np.int32]) -> Array:
    """The first round; then the pairs of the candidate that is left and its rivals in play."""
    columns = jnp.asarray(pair)
    one_mask = labels[pair.diagonal()]

    def play(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        candidate, retired, waits = state
        rivals = ~retired & (one_mask != one_mask[candidate])
        challenger = rivals.argmax().astype(jnp.int32)
        column = columns[candidate, challenger]
        waits |= rivals.any() & ~known[column]
        plays = rivals.any() & ~waits
        wins = labels[column] == one_mask[challenger]
        loser = jnp.where(wins, candidate, challenger)
        candidate = jnp.where(plays & wins, challenger, candidate)
        return candidate, retired.at[loser].set(retired[loser] | plays), waits

    start = (jnp.int32(0), jnp.zeros(len(pair), jnp.bool_), jnp.zeros((), jnp.bool_))
    candidate, retired, waits = jax.lax.fori_loop(0, len(pair) - 1, play, start)
    rivals = ~retired & (one_mask != one_mask[candidate]) & waits
    second = jnp.zeros_like(known).at[columns[candidate]].max(rivals)
    return _after(pair.diagonal(), second, known)


def pair_cover_needs(labels: Array, known: Array, groups: NDArray[np.bool_]) -> Array:
    """The location that may settle the label and lacks fewest masks; all if none may any more."""
    told = groups & known[None, :]
    most = jnp.where(told, labels[None, :], -1).max(axis=1)
    least = jnp.where(told, labels[None, :], _ABOVE).min(axis=1)
    missing = (groups & ~known[None, :]).sum(axis=1, dtype=jnp.int32)
    agrees = (least == most) & (most >= 0)
    may_settle = agrees | ~told.any(axis=1)
    nearest = jnp.where(may_settle, missing, _ABOVE).argmin()
    needed = jnp.asarray(groups)[nearest] | ~may_settle.any()
    return needed & ~(agrees & (missing == 0)).any() & ~known


def mrcert_needs(labels: Array, known: Array, unions: Unions) -> Array:
    """The image and single masks; then what may be stable with a label that is not the image's own.

    First such unions themselves, most of which say the image's own label and are out, then all that
    their being stable rests on.
    """
    adding, half = jnp.asarray(unions.adding), unions.order // 2
    least, most = jnp.where(known, labels, _ABOVE), jnp.where(known, labels, -_ABOVE)
    told = known
    for step in range(1, half + 1):
        count = unions.up_to[unions.order - step]
        above = adding[:count]
        least = jnp.minimum(least[:count], least[above].min(axis=1))
        most = jnp.maximum(most[:count], most[above].max(axis=1))
        told = told[:count] & told[above].all(axis=1)
    may_win = (least > most) | ((least == most) & (least != labels[0]))
    may_win &= ~(may_win & told).any()  # every other that is stable has the same label
    themselves = jnp.zeros_like(known).at[: len(may_win)].set(may_win) & ~known
    rest = themselves.at[: len(may_win)].set(may_win)
    for order in range(half, unions.order):
        count = unions.up_to[order]
        rest = rest.at[adding[:count]].max(rest[:count, None])
    later = jnp.where(themselves.any(), themselves, rest)
    return _after(np.arange(unions.up_to[1]), later, known)


def _after(first: NDArray[np.integer], later: Array, known: Array) -> Array:
    """What is not known of the first round, and once all of it is, of what comes later."""
    marked = np.zeros(known.shape[0], np.bool_)
    marked[first] = True
    return jnp.where((known | ~marked).all(), later, marked) & ~known


def _members(columns: NDArray[np.int32], count: int) -> NDArray[np.bool_]:
    """``int[N, M]`` -> ``bool[N, count]``: which columns are in each row."""
    members = np.zeros((len(columns), count), np.bool_)
    np.put_along_axis(members, columns, True, axis=1)
    return members
