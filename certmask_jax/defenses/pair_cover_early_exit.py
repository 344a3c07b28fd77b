"""Which masks of a pair cover are still undecided for an image, and which are looked at first.

On the host, in NumPy, one image at a time. The first location that settles the label is the answer;
a verdict is lost once the attacker has a location at which the true label cannot be settled and
another one can lead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.known_so_far import Seen


class Locations(NamedTuple):
    """The locations at which the rule may settle a label, and those that the patch may be at."""

    groups: NDArray[np.bool_]  # [G, V]
    attacks: NDArray[np.bool_]  # [A, V]
    within: NDArray[np.bool_]  # [A, G]: all masks that hide the location also hide the patch
    weights: NDArray[np.int32]  # [V], the votes of each masked image
    common: NDArray[np.float32]  # [V, V]: groups in which both are


def locations(
    groups: NDArray[np.bool_], attacks: NDArray[np.bool_], weights: NDArray[np.int32]
) -> Locations:
    """From the rule's groups, those that the patch may be at, and the votes."""
    member = groups.astype(np.float32)
    within = (member @ (1 - attacks.astype(np.float32)).T == 0).T
    return Locations(groups, attacks, within, weights, member.T @ member)


def undecided(at: Locations, seen: Seen, label: int | None) -> NDArray[np.bool_]:
    """``bool[V]``: all that is not known, or nothing once answer and verdict are decided."""
    is_decided, answer, _ = _for_answer(at, seen)
    verdict_is_open = label is not None and not _is_lost(at, seen, label, answer)
    if is_decided and not verdict_is_open:
        return np.zeros(len(seen.known), np.bool_)
    return ~seen.known


def most_telling(at: Locations, seen: Seen, label: int | None) -> NDArray[np.intp]:
    """Names for the answer the masks of one location at a time.

    A verdict that is not lost needs all masks; those come first whose neighbours, masks that hide
    the same locations, have small margins.
    """
    _, answer, columns = _for_answer(at, seen)
    if label is None or not seen.known.any() or _is_lost(at, seen, label, answer):
        return columns
    unseen = np.flatnonzero(~seen.known)
    near = at.common[unseen][:, seen.known]
    margins = np.minimum(seen.margins[seen.known].astype(np.float32), 1e3)
    expected = (near @ margins) / np.maximum(near.sum(axis=1), 1)
    rest = unseen[np.argsort(expected, kind="stable")]
    return np.concatenate([columns, rest[~np.isin(rest, columns)]])


def _for_answer(at: Locations, seen: Seen) -> tuple[bool, int | None, NDArray[np.intp]]:
    """Whether the answer is decided, which label it then is, and else what to look at for it."""
    labels = np.where(seen.known, seen.predictions, 0).astype(np.int64)
    known = at.groups & seen.known
    most = np.where(known, labels, -1).max(axis=1)
    least = np.where(known, labels, np.iinfo(np.int64).max).min(axis=1)
    missing = (at.groups & ~seen.known).sum(axis=1)
    agrees = least == most  # so far, on most
    settled = agrees & (missing == 0) & (most >= 0)
    if settled.any():
        return True, int(most[settled.argmax()]), np.zeros(0, dtype=np.intp)
    untouched = ~known.any(axis=1)
    may_settle = untouched | (agrees & (most >= 0))
    votes = np.bincount(
        labels[seen.known & (labels >= 0)],
        at.weights[seen.known & (labels >= 0)],
        minlength=1,
    )
    leader = int(votes.argmax())
    rivals = np.delete(votes, leader).max(initial=0) + at.weights[~seen.known].sum()
    # Locations may settle the leader at most, and nothing overtakes it.
    if votes[leader] > rivals and not (may_settle & (untouched | (most != leader))).any():
        return True, leader, np.zeros(0, dtype=np.intp)
    if may_settle.any():
        first = int(np.where(may_settle, missing, at.groups.size).argmin())
        wanted = at.groups[first] & ~seen.known
    else:
        wanted = ~seen.known
    return not wanted.any(), None, np.flatnonzero(wanted)


def _is_lost(at: Locations, seen: Seen, label: int, answer: int | None) -> bool:
    """Whether no label of what is not known could make the image robust."""
    if (seen.known & ~seen.sure).any() or (answer is not None and answer != label):
        return True
    wrong = seen.known & (seen.predictions != label)
    # Where every location inside has a wrong label, and none can settle the true one.
    broken = (~at.within | (at.groups & wrong).any(axis=1)).all(axis=1)
    for inside in at.attacks[broken]:
        told = inside & seen.known
        votes = np.bincount(
            seen.predictions[told].astype(np.int64), at.weights[told], minlength=label + 1
        )
        doubtful = at.weights[inside & ~seen.known].sum()
        rivals = np.where(np.arange(len(votes)) == label, -1, votes)
        leader = int(rivals.argmax())
        others = np.delete(votes, leader).max() + doubtful
        if rivals[leader] + at.weights[~inside].sum() > others:
            return True
    return False
