"""Which unions of masks are still undecided for MRCert, and which are looked at first.

On the host, in NumPy, one image at a time.

*Undecided* (``undecided``, provable). The fallback is the image's own label f, so a union matters
to the answer only while it may be stable with *another* label: one label f among those that rest
on it, or two different ones, settle it. A verdict that fails fails by one label: the round trip by
any wrong one, c_r by one above each of its candidates, the worst case by one above each union that
hides a location.

*Most telling* (``most_telling``, a guess that costs passes only). What may fail is looked at first;
one union of four masks settles six pairs at once. What a union will say is foretold from smaller
ones: its margin is theirs, less what the further mask alone takes away from the image's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.known_so_far import Seen, each_once
from certmask_jax.masks.union_lattice import Unions

Columns = NDArray[np.intp]

# A union that stood so many tests likely stands: the others at its location are left alone.
_STANDING = 32


class UnionPlan(NamedTuple):
    """What is needed of V unions of up to 4P masks; the *bases* have up to 2P."""

    unions: Unions
    adding: Columns  # [N, up_to[-2]], transposed: the faster way round
    hiding: NDArray[np.bool_]  # [G, bases]
    parents: Columns  # [V, order] the union without each of its masks; the image has none
    above: tuple[Columns, ...]  # of each base, the unions that must agree with it
    cover: Columns  # [bases] one of these each, few different ones in all


def plan_of(unions: Unions, hiding: NDArray[np.bool_]) -> UnionPlan:
    """The plan for ``hiding bool[G, bases]``: which bases hide the patches at each group."""
    adding = np.ascontiguousarray(unions.adding.T).astype(np.intp)
    bases = unions.up_to[unions.order // 2]
    above = tuple(_above(unions, base, unions.order // 2) for base in range(bases))
    return UnionPlan(
        unions, adding, hiding, _parents(unions), above, _cover(above, len(unions.images))
    )


def undecided(plan: UnionPlan, seen: Seen, label: int | None) -> NDArray[np.bool_]:
    """``bool[V]``: what may still change the answer and, with a label, a verdict."""
    if not seen.known[: plan.unions.up_to[1]].all():
        return ~seen.known
    matters = _above_any(plan, _may_win(plan, seen), plan.unions.order // 2)
    if label is not None:
        matters |= _verdicts_open(plan, seen, label)
    return matters & ~seen.known


def most_telling(plan: UnionPlan, seen: Seen, label: int | None) -> Columns:
    """The first round; then what tests the verdicts, one after the other; then the answer."""
    first_round = np.flatnonzero(~seen.known[: plan.unions.up_to[1]])
    if len(first_round):
        return first_round
    if label is not None:
        wanted = _for_verdicts(plan, seen, label)
        if len(wanted):
            return wanted
    return _for_answer(plan, seen)


def _may_win(plan: UnionPlan, seen: Seen) -> NDArray[np.bool_]:
    """``bool[bases]``: those that may be stable with a label other than the image's own.

    None once one of them is known to be stable: every other that is has the same label.
    """
    own = int(seen.predictions[0])
    labels = seen.predictions.astype(np.int32)
    none = np.iinfo(np.int32).max
    least = _over(np.minimum, np.where(seen.known, labels, none), plan)
    most = _over(np.maximum, np.where(seen.known, labels, -none), plan)
    may_win: NDArray[np.bool_] = (least > most) | ((least == most) & (least != own))
    if (may_win & _over(np.logical_and, seen.known, plan)).any():
        return np.zeros_like(may_win)
    return may_win


def _verdicts_open(plan: UnionPlan, seen: Seen, label: int) -> NDArray[np.bool_]:
    """``bool[V]``: what may still change the worst case, c_r or the round trip."""
    up_to, further = plan.unions.up_to, 3 * (plan.unions.order // 4)
    good = seen.known & seen.sure & (seen.predictions == label)
    bad = seen.known & ~good
    if not bad[: up_to[further]].any():
        # The image itself may be the candidate of c_r, from which the worst case follows.
        if good[: up_to[further]].all() and bad.any():
            return np.zeros(len(seen.known), np.bool_)
        return ~seen.known
    alive = ~_over(np.logical_or, bad, plan)
    at = plan.hiding & alive
    if not at.any(axis=1).all():
        return np.zeros(len(seen.known), np.bool_)  # a location is lost, and with it all
    proved = alive & _over(np.logical_and, seen.known, plan)
    left = at[~(plan.hiding & proved).any(axis=1)]
    matters = _above_any(plan, left.any(axis=0), plan.unions.order // 2)
    candidates = ~_over(np.logical_or, bad, plan, further)
    if not (candidates & _over(np.logical_and, seen.known, plan, further)).any():
        matters |= _above_any(plan, candidates, further)
    return matters


def _above_any(plan: UnionPlan, bases: NDArray[np.bool_], further: int) -> NDArray[np.bool_]:
    """``bool[V]``: all unions of some of ``bases`` with up to ``further`` more masks."""
    marked = np.zeros(len(plan.unions.images), np.bool_)
    marked[: len(bases)] = bases
    for _ in range(further):
        marked[plan.adding[:, np.flatnonzero(marked[: plan.adding.shape[1]])]] = True
    return marked


def _for_answer(plan: UnionPlan, seen: Seen) -> Columns:
    """Tests of the smallest unions that may be stable with a label other than the image's own."""
    bases = np.flatnonzero(_may_win(plan, seen))
    if len(bases) == 0:
        return bases
    up_to = plan.unions.up_to
    size = np.searchsorted(up_to, bases, side="right")
    bases = bases[size == size[0]]
    tested = np.array([seen.known[plan.above[base]].sum() for base in bases])
    untested = plan.cover[bases[tested == 0]]
    if tested.max() >= _STANDING:  # one that is stable will do, whatever the others are
        bases, tested = bases[[tested.argmax()]], tested[[tested.argmax()]]
    elif not tested.any():
        return each_once(untested).astype(np.intp)
    outlook = _outlook(plan, seen, int(seen.predictions[0]))
    wanted = [untested]
    for base, most in zip(bases[tested > 0], tested[tested > 0], strict=True):
        unseen = plan.above[base][~seen.known[plan.above[base]]]
        wanted.append(_lowest(-outlook, unseen)[:most])
    return each_once(np.concatenate(wanted)).astype(np.intp)


def _for_verdicts(plan: UnionPlan, seen: Seen, label: int) -> Columns:
    """What may refute, or in the end prove, the worst case, c_r and the round trip, in this order.

    They are asked one after the other, because each follows from the next.
    """
    unions, up_to = plan.unions, plan.unions.up_to
    patches = unions.order // 4
    good = seen.known & seen.sure & (seen.predictions == label)
    bad = seen.known & ~good
    outlook = _outlook(plan, seen, label)

    if not bad[: up_to[3 * patches]].any():
        # c_r with the image itself: all unions of 3P masks; then the rest, for the round trip.
        first = _lowest(outlook, np.flatnonzero(~seen.known[: up_to[3 * patches]]))
        if len(first) or bad.any():
            return first
        return _lowest(outlook, np.flatnonzero(~seen.known))

    alive = ~_over(np.logical_or, bad, plan)
    at = plan.hiding & alive
    if not at.any(axis=1).all():
        return np.zeros(0, dtype=np.intp)  # a location is lost, and with it all
    proved = alive & _over(np.logical_and, seen.known, plan)
    left = at[~(plan.hiding & proved).any(axis=1)]
    if len(left):
        test, stands = _against_a_location(plan, seen, outlook, left)
        if not stands:
            return test
    candidate = _against_candidates(plan, seen, outlook, bad)
    return candidate if len(candidate) or not len(left) else test


def _against_a_location(
    plan: UnionPlan, seen: Seen, outlook: NDArray[np.float32], at: NDArray[np.bool_]
) -> tuple[Columns, bool]:
    """Tests of the location whose best base looks worst, and whether that base stood many.

    The weakest of what rests on each base; then, of the best base, all.
    """
    weakest = _over(np.minimum, np.where(seen.known, np.float32(np.inf), outlook), plan)
    best = np.where(at, weakest, -np.inf).max(axis=1)
    bases = np.flatnonzero(at[best.argmin()])
    bases = _lowest(-weakest, bases)
    above = plan.above[bases[0]]
    if seen.known[above].sum() >= _STANDING:
        return _lowest(outlook, above[~seen.known[above]]), True
    looked_at = np.zeros(len(seen.known), dtype=np.bool_)
    for base in bases:
        above = plan.above[base]
        if not looked_at[above].any():
            unseen = above[~seen.known[above]]
            looked_at[unseen[outlook[unseen].argmin()]] = True
    return _lowest(outlook, np.flatnonzero(looked_at)), False


def _against_candidates(
    plan: UnionPlan, seen: Seen, outlook: NDArray[np.float32], bad: NDArray[np.bool_]
) -> Columns:
    """What c_r still needs of its most promising candidate, if none is proved and one is left."""
    further = 3 * (plan.unions.order // 4)
    alive = ~_over(np.logical_or, bad, plan, further)
    known = _over(np.logical_and, seen.known, plan, further)
    if not alive.any() or (alive & known).any():
        return np.zeros(0, dtype=np.intp)
    unseen = np.where(seen.known, np.float32(np.inf), outlook)
    weakest = _over(np.minimum, unseen, plan, further)
    candidate = int(np.where(alive, weakest, -np.inf).argmax())
    above = _above(plan.unions, candidate, further)
    return _lowest(outlook, above[~seen.known[above]])


def _outlook(plan: UnionPlan, seen: Seen, label: int) -> NDArray[np.float32]:
    """``float32[V]``: margins by which unions say, or may be foretold to say, ``label``."""
    margins = np.nan_to_num(seen.margins.astype(np.float32), nan=0, posinf=0)
    own = np.where(seen.predictions == label, margins, -margins)
    up_to, masks_of = plan.unions.up_to, plan.unions.masks_of
    drop = own[: up_to[1]] - own[0]
    single = plan.adding[:, 0]
    for j in range(2, plan.unions.order + 1):
        part = slice(up_to[j - 1], up_to[j])
        foretold = own[plan.parents[part, :j]] + drop[single[masks_of[part, :j]]]
        own[part] = np.where(seen.known[part], own[part], foretold.mean(axis=1))
    return own


def _over(
    reduce: np.ufunc, values: NDArray[Any], plan: UnionPlan, further: int | None = None
) -> NDArray[Any]:
    """``[V]`` -> ``[bases]``: of all unions with up to 2P, or ``further``, more masks."""
    up_to, order = plan.unions.up_to, plan.unions.order
    for step in range(1, (order // 2 if further is None else further) + 1):
        count = up_to[order - step]
        values = reduce(values[:count], reduce.reduce(values[plan.adding[:, :count]], axis=0))
    return values


def _lowest(outlook: NDArray[np.float32], columns: Columns) -> Columns:
    return columns[np.argsort(outlook[columns], kind="stable")]


def _above(unions: Unions, base: int, further: int) -> Columns:
    """All unions of ``base`` with up to ``further`` more masks."""
    above = np.array([base])
    for _ in range(further):
        above = np.unique(np.append(above, unions.adding[above]))
    return above.astype(np.intp)


def _parents(unions: Unions) -> Columns:
    parents = np.zeros((len(unions.images), unions.order), dtype=np.intp)
    for j in range(2, unions.order + 1):
        part = slice(unions.up_to[j - 1], unions.up_to[j])
        masks = unions.masks_of[part, :j]
        for left_out in range(j):
            for mask in np.delete(masks, left_out, axis=1).T:
                parents[part, left_out] = unions.adding[parents[part, left_out], mask]
    return parents


def _cover(above: tuple[Columns, ...], count: int) -> Columns:
    """Chooses one union above each base, so that few unions serve all bases."""
    rests = np.concatenate(above)
    on = np.repeat(np.arange(len(above)), [len(columns) for columns in above])
    order = np.argsort(rests, kind="stable")
    first = np.searchsorted(rests[order], np.arange(count + 1))
    cover = np.full(len(above), -1, dtype=np.intp)
    for base in reversed(range(len(above))):
        if cover[base] < 0:
            served = [(cover[on[order[first[c] : first[c + 1]]]] < 0).sum() for c in above[base]]
            chosen = above[base][int(np.argmax(served))]
            below = on[order[first[chosen] : first[chosen + 1]]]
            cover[below[cover[below] < 0]] = chosen
    return cover
