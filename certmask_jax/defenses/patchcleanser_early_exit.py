"""Which two-mask images are still undecided for PatchCleanser's rules, and which come first.

On the host, in NumPy, one image at a time. Double masking's answer needs the first round, then only
the rows of masks that disagree, and of a row nothing more once one of its labels is not the mask's
own. Challenger masking's needs one two-mask image a challenge. A verdict needs nothing more once a
location is lost: all masks that hide it alone have a label in their row that is not the true one.

What may refute is looked at first: for a mask that disagrees, pairs with the masks of the largest
margins; for a verdict, pairs of the smallest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.known_so_far import Seen, each_once
from certmask_jax.defenses.patchcleanser_proofs import TwoRounds
from certmask_jax.defenses.voting import Ties


class Question(NamedTuple):
    """What decides which masked images still matter, beside what is known of an image."""

    rounds: TwoRounds
    masks_of: NDArray[np.int32]  # [V, 2] -> a first and a second mask that it is the union of
    first_round: NDArray[np.int32]  # masked images that are looked at first
    losing: NDArray[np.bool_]  # [G, N1]; a verdict is lost if all masks of a row have a wrong label
    # What is known, of a whole first round at least -> what may change the answer, and of that what
    # is looked at next, in order; both empty once the answer is decided.
    for_answer: Callable[[Seen], tuple[NDArray[np.bool_], NDArray[np.intp]]]


@functools.lru_cache(maxsize=64)
def double_masking(rounds: TwoRounds, ties: Ties) -> Question:
    """The question of double masking.

    A verdict is lost at groups where no mask that hides them has a row of true labels, if these
    masks are fewer than the others, whose one-mask labels the attacker chooses: any label can then
    be the majority. So it is with a single mask and one other, in one set for both rounds: their
    pair is in both rows, and the attacker makes the other mask stand by its label.
    """
    hiding = rounds.hiding.sum(axis=1)
    lost = 2 * hiding < rounds.hiding.shape[1]
    if rounds.symmetric:
        lost |= hiding == 1
    of_most = functools.partial(_most_frequent, rounds.single, ties == "largest")
    for_answer = functools.partial(_standing_rows, rounds, of_most)
    return Question(rounds, _masks_of(rounds), rounds.single, rounds.hiding[lost], for_answer)


@functools.lru_cache(maxsize=64)
def challenger_masking(rounds: TwoRounds) -> Question:
    """The question of challenger masking."""
    for_answer = functools.partial(_challenges, rounds.pair)
    return Question(rounds, _masks_of(rounds), rounds.single, rounds.hiding, for_answer)


@functools.lru_cache(maxsize=64)
def patchcure(rounds: TwoRounds, base: int) -> Question:
    """The question of PatchCURE's double masking, whose base is the label of masked image ``base``.

    A verdict is lost at any group where no mask that hides it has a row of true labels.
    """
    first_round = np.append(rounds.single, base).astype(np.int32)
    for_answer = functools.partial(_standing_rows, rounds, functools.partial(_label_at, base))
    return Question(rounds, _masks_of(rounds), first_round, rounds.hiding, for_answer)


def undecided(question: Question, seen: Seen, label: int | None) -> NDArray[np.bool_]:
    """``bool[V]``: what may still change the answer and, with a label, a verdict."""
    if not seen.known[question.first_round].all():
        return ~seen.known
    return _verdict_open(question, seen, label) | question.for_answer(seen)[0]


def most_telling(question: Question, seen: Seen, label: int | None) -> NDArray[np.intp]:
    """The first round; then what the answer needs, then the rest, smallest margins first."""
    rounds = question.rounds
    first = question.first_round
    waiting = first[~seen.known[first]]
    if len(waiting):
        return np.unique(waiting).astype(np.intp)
    _, answer = question.for_answer(seen)
    rest = _verdict_open(question, seen, label)
    rest[answer] = False
    columns = np.flatnonzero(rest)
    if not len(columns):
        return answer
    of_first = seen.margins[rounds.single].astype(np.float32)
    first, second = question.masks_of[columns].T
    sums = of_first[first] + _second_margins(rounds, seen)[second]
    return np.concatenate([answer, columns[np.argsort(sums, kind="stable")]])


def _masks_of(rounds: TwoRounds) -> NDArray[np.int32]:
    count = int(max(rounds.pair.max(), rounds.single.max())) + 1
    masks_of = np.zeros((count, 2), dtype=np.int32)
    masks_of[rounds.pair.ravel()] = np.indices(rounds.pair.shape).reshape(2, -1).T
    return masks_of


def _standing_rows(
    rounds: TwoRounds, default: Callable[[Seen], int | None], seen: Seen
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """What is not known of the rows of masks that may yet stand; in turns.

    First the pairs with the masks of the largest margins: these most likely stay with their label,
    and refute a mask that says another.
    """
    matters = np.zeros(len(seen.known), dtype=np.bool_)
    rows = _standing(rounds, default(seen), seen)
    if not len(rows):
        return matters, rows.astype(np.intp)
    order = np.argsort(-_second_margins(rounds, seen), kind="stable")
    columns = rounds.pair[rows][:, order].T.ravel()
    columns = each_once(columns[~seen.known[columns]]).astype(np.intp)
    matters[columns] = True
    return matters, columns


def _most_frequent(single: NDArray[np.int32], largest_wins: bool, seen: Seen) -> int | None:
    """The label of most masks, None where none can disagree with it."""
    labels = seen.predictions[single]
    counts = np.bincount(labels[labels >= 0])
    if counts.size == 0 or counts.max() == len(labels):
        return None
    return int(np.flatnonzero(counts == counts.max())[-1 if largest_wins else 0])


def _label_at(column: int, seen: Seen) -> int | None:
    return int(seen.predictions[column])


def _standing(rounds: TwoRounds, default: int | None, seen: Seen) -> NDArray[np.signedinteger[Any]]:
    """Masks that disagree with the default answer and may yet stand, up to the first that does."""
    if default is None:
        return np.zeros(0, dtype=np.intp)
    labels = seen.predictions[rounds.single]
    disagree = np.flatnonzero(labels != default)
    rows = rounds.pair[disagree]
    known = seen.known[rows]
    refuted = (known & (seen.predictions[rows] != labels[disagree, None])).any(axis=1)
    stands = known.all(axis=1) & ~refuted
    last = int(stands.argmax()) if stands.any() else len(disagree)
    return disagree[:last][~refuted[:last]]


def _challenges(pair: NDArray[np.int32], seen: Seen) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """The next challenge alone is looked at; all pairs of masks that are left in play matter."""
    matters = np.zeros(len(seen.known), dtype=np.bool_)
    labels = seen.predictions[pair.diagonal()]
    candidate, in_play = 0, np.ones(len(labels), dtype=np.bool_)
    while (rivals := in_play & (labels != labels[candidate])).any():
        challenger = int(rivals.argmax())
        column = pair[candidate, challenger]
        if not seen.known[column]:
            matters[pair[np.ix_(in_play, in_play)]] = True
            return matters & ~seen.known, np.array([column], dtype=np.intp)
        if seen.predictions[column] == labels[challenger]:
            in_play[candidate], candidate = False, challenger
        else:
            in_play[challenger] = False
    return matters, np.zeros(0, dtype=np.intp)


def _verdict_open(question: Question, seen: Seen, label: int | None) -> NDArray[np.bool_]:
    """``bool[V]``: what the verdicts still need; all that is not known, or nothing."""
    nothing = np.zeros(len(seen.known), dtype=np.bool_)
    if label is None or (seen.known & ~seen.sure).any():  # never certified
        return nothing
    wrong = seen.known & (seen.predictions != label)
    if wrong.any():
        rounds = question.rounds
        lost = wrong[rounds.single] | wrong[rounds.pair].any(axis=1)
        if (lost | ~question.losing).all(axis=1).any():
            return nothing
    return ~seen.known


def _second_margins(rounds: TwoRounds, seen: Seen) -> NDArray[np.float32]:
    """``float32[N2]``: how sure the model is under each second mask.

    The margin under the mask alone; another set is not looked at alone, so there it is the
    smallest margin that is known under a pair, infinite if none is.
    """
    pair = rounds.pair
    margins = seen.margins.astype(np.float32)
    if pair.shape[0] == pair.shape[1] and (pair.diagonal() == rounds.single).all():
        return margins[rounds.single]
    least: NDArray[np.float32] = np.where(seen.known, margins, np.inf)[pair].min(axis=0)
    return least
