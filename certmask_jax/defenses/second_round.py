"""Which two-mask images still matter to an image, given what is known of it: steers the devices.

On the host, in NumPy, one image at a time. Double masking's answer needs the first round, then only
the rows of masks that disagree, and of a row nothing more once one of its labels is not the mask's
own. A verdict needs nothing more once a location is lost: all masks that hide it alone have a label
in their row that is not the true one. What may refute is looked at first: for a mask that
disagrees, pairs with the masks of the largest margins; for a verdict, pairs of the smallest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.defense import Seen


class SecondRound(NamedTuple):
    """Where the masked images of N1 first and N2 second masks are among V masked images."""

    single: NDArray[np.int32]  # [N1] -> masked image of a first mask alone
    pair: NDArray[np.int32]  # [N1, N2] -> masked image; with one set, ``single`` is its diagonal
    masks_of: NDArray[np.int32]  # [V, 2] -> a first and a second mask that it is the union of
    losing: NDArray[np.bool_]  # [G, N1]; a verdict is lost if all masks of a row have a wrong label


def second_round(
    pair: NDArray[np.int32],
    losing: NDArray[np.bool_],
    single: NDArray[np.int32] | None = None,
) -> SecondRound:
    """From ``pair int32[N1, N2]``, ``losing bool[G, N1]``, ``single int32[N1]`` (the diagonal)."""
    if single is None:
        single = pair.diagonal()
    masks_of = np.zeros((int(max(pair.max(), single.max())) + 1, 2), dtype=np.int32)
    masks_of[pair.ravel()] = np.indices(pair.shape).reshape(2, -1).T
    return SecondRound(single, pair, masks_of, losing)


def double_masking_open(
    rounds: SecondRound, largest_wins: bool, seen: Seen, label: int | None
) -> NDArray[np.intp]:
    """Masked images that still matter to double masking's answer and, given a label, verdicts."""
    unseen = _first_round(rounds, seen)
    if len(unseen):
        return unseen
    answer = _rows_open(rounds, _standing(rounds, largest_wins, seen), seen)
    verdict = _verdict_open(rounds, seen, label)
    verdict[answer] = False
    return np.concatenate([answer, _most_telling(rounds, verdict, seen)])


def challenger_masking_open(rounds: SecondRound, seen: Seen, label: int | None) -> NDArray[np.intp]:
    """The same for challenger masking, whose answer needs one two-mask image a challenge."""
    unseen = _first_round(rounds, seen)
    if len(unseen):
        return unseen
    challenge = _next_challenge(rounds.pair, seen)
    verdict = _verdict_open(rounds, seen, label)
    verdict[challenge] = False
    return np.concatenate([challenge, _most_telling(rounds, verdict, seen)])


def _first_round(rounds: SecondRound, seen: Seen) -> NDArray[np.intp]:
    return np.unique(rounds.single[~seen.known[rounds.single]]).astype(np.intp)


def _standing(rounds: SecondRound, largest_wins: bool, seen: Seen) -> NDArray[np.intp]:
    """Masks that disagree with the majority and may yet stand, up to the first that does."""
    labels = seen.predictions[rounds.single]
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    if len(values) == 0 or counts.max() == len(labels):
        return np.zeros(0, dtype=np.intp)
    most = values[counts == counts.max()][-1 if largest_wins else 0]
    disagree = np.flatnonzero(labels != most)
    rows = rounds.pair[disagree]
    known = seen.known[rows]
    refuted = (known & (seen.predictions[rows] != labels[disagree, None])).any(axis=1)
    stands = known.all(axis=1) & ~refuted
    last = int(stands.argmax()) if stands.any() else len(disagree)
    return disagree[:last][~refuted[:last]]


def _rows_open(rounds: SecondRound, rows: NDArray[np.intp], seen: Seen) -> NDArray[np.intp]:
    """What is not known of some rows: in turns, and first the masks with the largest margins.

    These most likely stay with their label, and refute a mask that says another.
    """
    order = np.argsort(-_second_margins(rounds, seen), kind="stable")
    columns = rounds.pair[rows][:, order].T.ravel()
    return each_once(columns[~seen.known[columns]]).astype(np.intp)


def _next_challenge(pair: NDArray[np.int32], seen: Seen) -> NDArray[np.intp]:
    """The two-mask image of the next challenge; none when one label is left."""
    labels = seen.predictions[pair.diagonal()]
    candidate, in_play = 0, np.ones(len(labels), dtype=np.bool_)
    while (rivals := in_play & (labels != labels[candidate])).any():
        challenger = int(rivals.argmax())
        column = pair[candidate, challenger]
        if not seen.known[column]:
            return np.array([column], dtype=np.intp)
        if seen.predictions[column] == labels[challenger]:
            in_play[candidate], candidate = False, challenger
        else:
            in_play[challenger] = False
    return np.zeros(0, dtype=np.intp)


def _verdict_open(rounds: SecondRound, seen: Seen, label: int | None) -> NDArray[np.bool_]:
    """``bool[V]``: what the verdicts still need; all or nothing, but for what is known."""
    nothing = np.zeros(len(seen.known), dtype=np.bool_)
    if label is None or (seen.known & ~seen.sure).any():  # never certified
        return nothing
    wrong = seen.known & (seen.predictions != label)
    if wrong.any():
        lost = wrong[rounds.single] | wrong[rounds.pair].any(axis=1)
        if (lost | ~rounds.losing).all(axis=1).any():
            return nothing
    return ~seen.known


def _most_telling(rounds: SecondRound, wanted: NDArray[np.bool_], seen: Seen) -> NDArray[np.intp]:
    """What is wanted and not known, the smallest sum of the one-mask margins first."""
    columns = np.flatnonzero(wanted & ~seen.known)
    of_first = seen.margins[rounds.single].astype(np.float32)
    first, second = rounds.masks_of[columns].T
    sums = of_first[first] + _second_margins(rounds, seen)[second]
    return columns[np.argsort(sums, kind="stable")]


def _second_margins(rounds: SecondRound, seen: Seen) -> NDArray[np.float32]:
    """``float32[N2]``: how sure the model is under each second mask.

    The margin under the mask alone; another set is not looked at alone, so there it is the
    smallest margin that is known under a pair, infinite if none is.
    """
    pair = rounds.pair
    margins = seen.margins.astype(np.float32)
    if pair.shape[0] == pair.shape[1] and (pair.diagonal() == rounds.single).all():
        return margins[rounds.single]
    found: NDArray[np.float32] = np.where(seen.known, margins, np.inf)[pair].min(axis=0)
    return found


def each_once(columns: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Drops repetitions, in order of first appearance."""
    _, first = np.unique(columns, return_index=True)
    return columns[np.sort(first)]
