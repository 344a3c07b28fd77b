"""Which masks of a pair cover still matter to an image, given what is known of it: early exit.

On the host, in NumPy, one image at a time. The first location that settles the label is the answer;
a verdict is lost once the attacker has a location at which the true label cannot be settled and
another one can lead.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.defense import Seen


class Layout(NamedTuple):
    """What decides which masked images still matter."""

    groups: NDArray[np.bool_]  # [G, V]
    attacks: NDArray[np.bool_]  # [A, V]
    within: NDArray[np.bool_]  # [A, G]
    weights: NDArray[np.int32]  # [V]
    common: NDArray[np.float32]  # [V, V]: groups in which both are


def layout(
    groups: NDArray[np.bool_],
    attacks: NDArray[np.bool_],
    within: NDArray[np.bool_],
    weights: NDArray[np.int32],
) -> Layout:
    """From the rule's groups, those that the patch may be at, and which lie within which."""
    member = groups.astype(np.float32)
    return Layout(groups, attacks, within, weights, member.T @ member)


def open_columns(layout: Layout, seen: Seen, label: int | None) -> NDArray[np.intp]:
    """Masked images that still matter: for the answer, those of one location at a time.

    The first location that settles the label ends it. A verdict that is not lost needs all of them;
    those come first whose neighbours, masks that hide the same locations, have small margins.
    """
    answer, columns = _answer_open(layout, seen)
    if label is None or not seen.known.any() or _is_lost(layout, seen, label, answer):
        return columns
    unseen = np.flatnonzero(~seen.known)
    near = layout.common[unseen][:, seen.known]
    margins = np.minimum(seen.margins[seen.known].astype(np.float32), 1e3)
    expected = (near @ margins) / np.maximum(near.sum(axis=1), 1)
    rest = unseen[np.argsort(expected, kind="stable")]
    return np.concatenate([columns, rest[~np.isin(rest, columns)]])


def _answer_open(layout: Layout, seen: Seen) -> tuple[int | None, NDArray[np.intp]]:
    """The answer if it is decided (and is a label), and otherwise what to look at for it."""
    labels = np.where(seen.known, seen.predictions, 0).astype(np.int64)
    known = layout.groups & seen.known
    most = np.where(known, labels, -1).max(axis=1)
    least = np.where(known, labels, np.iinfo(np.int64).max).min(axis=1)
    missing = (layout.groups & ~seen.known).sum(axis=1)
    agrees = least == most  # so far, on most
    settled = agrees & (missing == 0) & (most >= 0)
    if settled.any():
        return int(most[settled.argmax()]), np.zeros(0, dtype=np.intp)
    untouched = ~known.any(axis=1)
    may_settle = untouched | (agrees & (most >= 0))
    votes = np.bincount(
        labels[seen.known & (labels >= 0)],
        layout.weights[seen.known & (labels >= 0)],
        minlength=1,
    )
    leader = int(votes.argmax())
    rivals = np.delete(votes, leader).max(initial=0) + layout.weights[~seen.known].sum()
    # Locations may settle the leader at most, and nothing overtakes it.
    if votes[leader] > rivals and not (may_settle & (untouched | (most != leader))).any():
        return leader, np.zeros(0, dtype=np.intp)
    if may_settle.any():
        first = int(np.where(may_settle, missing, layout.groups.size).argmin())
        wanted = layout.groups[first] & ~seen.known
    else:
        wanted = ~seen.known
    return None, np.flatnonzero(wanted)


def _is_lost(layout: Layout, seen: Seen, label: int, answer: int | None) -> bool:
    """Whether no label of what is not known could make the image robust."""
    if (seen.known & ~seen.sure).any() or (answer is not None and answer != label):
        return True
    wrong = seen.known & (seen.predictions != label)
    # Where every location inside has a wrong label, and none can settle the true one.
    broken = (~layout.within | (layout.groups & wrong).any(axis=1)).all(axis=1)
    for inside in layout.attacks[broken]:
        told = inside & seen.known
        votes = np.bincount(
            seen.predictions[told].astype(np.int64), layout.weights[told], minlength=label + 1
        )
        doubtful = layout.weights[inside & ~seen.known].sum()
        rivals = np.where(np.arange(len(votes)) == label, -1, votes)
        leader = int(rivals.argmax())
        others = np.delete(votes, leader).max() + doubtful
        if rivals[leader] + layout.weights[~inside].sum() > others:
            return True
    return False
