"""CertMask (Lyu et al., AAAI 2026): one round of masks that hide every location k times.

The rule (its Figure 1): unanimous one-mask labels are the answer; else a class with exactly k
votes; else the majority. The paper calls an image certified when all one-mask labels are true
(*k-fold correctness*). **That does not prove recovery**: given k-fold correctness the rule is
robust at a location hidden by c of the N masks if and only if N - c <= k - 1, which no set of
masks smaller than the image satisfies. Four masks of six vote y, the attacker's two say z, k = 2:
z has exactly k votes, and wins.

What k-fold correctness does prove is *detection*: if the labels of a patched image are unanimous,
they are the true label. ``certmask_detection`` is that detector, tolerant of t dissenting
votes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.defenses.defense import (
    ALERT,
    Defense,
    Guarantee,
    Row,
    Ties,
    check_ties,
    count_votes,
    groups_of,
    majority,
    preference,
)
from certmask_jax.defenses.first_round import agreement_open
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_sets import MaskSet
from certmask_jax.masks.threats import Threat


def certmask(masks: MaskSet, *, ties: Ties = "largest", against: Threat | None = None) -> Defense:
    """CertMask's rule with k = ``masks.promise``, its condition, and its exact worst case.

    ``exact`` is false only for sets that list some masks more often than others; there the
    attacker is allowed to split the votes of one masked image, and ``worst_case`` is a bound.

    Args:
      masks: a k-fold cover of N masks (replicated, offset, or exact_k_fold).
      ties: which label wins when several have most votes: the largest (as in PatchCleanser's
        program), or the smallest. The paper says neither this nor what happens when several
        classes have exactly k votes. Here no class then wins by its k votes: the majority decides.
      against: what is proved against, if not all that the masks were built for.
    """
    check_ties(ties)
    images, weights = distinct_unions.one_round(masks)
    groups = groups_of(images, masks, against)
    k = masks.promise
    # Equally repeated masks vote as one: count in units of their common weight. If k is no
    # multiple of it, no class can have exactly k votes.
    unit = int(np.gcd.reduce(weights))
    units = weights // unit
    k_units = k // unit if k % unit == 0 else -1
    covered = groups.astype(np.int64) @ weights
    always = bool(((len(masks) - covered <= k - 1) & (covered >= k)).all())

    def rule(row: Row, num_classes: int) -> Array:
        votes = count_votes(row.predictions, jnp.asarray(weights), num_classes)
        return certmask_rule(votes, k=k, num_masks=len(masks), ties=ties)

    def k_fold_correct(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        return (row.predictions == label).all()

    def certificate(row: Row, label: Array, num_classes: int) -> Array:
        return k_fold_correct(row, label, num_classes) & always

    def worst_case(row: Row, label: Array, num_classes: int) -> Array:
        def attacked(hidden: Array) -> Array:
            kept = jnp.where(hidden, row.predictions, -1)
            votes = count_votes(kept, jnp.asarray(units), num_classes)
            free = jnp.where(hidden, 0, jnp.asarray(units)).sum()
            return _attacked(votes, free, label, k=k_units, ties=ties)

        return ~jax.lax.map(attacked, jnp.asarray(groups)).any()

    return Defense(
        name="certmask",
        guarantee=Guarantee.RECOVERY,
        mask_set=masks,
        masked_images=images,
        groups=groups,
        row_rule=rule,
        row_certificate=certificate,
        row_worst_case=worst_case,
        row_conditions={"k_fold_correct": k_fold_correct},
        exact=bool((units == 1).all()),
        options={"tiling": masks.name, "coverage": k, "ties": ties},
        row_cost=len(images),
        against=against,
    )


def certmask_detection(
    masks: MaskSet, *, tolerance: int = 0, against: Threat | None = None
) -> Defense:
    """What k-fold correctness proves: the label that all but ``tolerance`` masks say, or an alert.

    Never a wrong label if and only if, for every location and every z != y, more than t masks
    that hide it say something other than z. With all labels true any t < k will do.

    Args:
      masks: a k-fold cover of N masks.
      tolerance: t, how many of the N votes may dissent without an alert; less than N / 2, so that
        only one label can have the others.
      against: what is proved against, if not all that the masks were built for.

    Raises:
      ValueError: for a tolerance outside [0, N / 2).
    """
    if not 0 <= tolerance < len(masks) / 2:
        raise ValueError(
            f"tolerance: expected 0 <= t < N / 2 with N = {len(masks)} masks, got {tolerance!r}"
        )
    images, weights = distinct_unions.one_round(masks)
    groups = groups_of(images, masks, against)
    covered = jax.device_put((groups.astype(np.int64) @ weights).astype(np.int32))

    def rule(row: Row, num_classes: int) -> Array:
        votes = count_votes(row.predictions, jnp.asarray(weights), num_classes)
        agreed = votes.max() >= len(masks) - tolerance
        return jnp.where(agreed, votes.argmax().astype(jnp.int32), ALERT)

    def k_fold_correct(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        return (row.predictions == label).all()

    def never_wrong(row: Row, label: Array, num_classes: int) -> Array:
        def at_location(group: tuple[Array, Array]) -> Array:
            hidden, hiding = group
            kept = jnp.where(hidden, row.predictions, -1)
            votes = count_votes(kept, jnp.asarray(weights), num_classes)
            wrong = jnp.where(jnp.arange(num_classes) == label, -1, votes).max()
            return hiding - wrong > tolerance

        every = jax.lax.map(at_location, (jnp.asarray(groups), covered)).all()
        return every & (rule(row, num_classes) == label)

    return Defense(
        name="certmask_detection",
        guarantee=Guarantee.DETECTION,
        mask_set=masks,
        masked_images=images,
        groups=groups,
        row_rule=rule,
        row_certificate=never_wrong,
        row_worst_case=never_wrong,
        row_conditions={"k_fold_correct": k_fold_correct},
        options={"tiling": masks.name, "coverage": masks.promise, "tolerance": tolerance},
        open_columns=agreement_open(weights, tolerance),
        row_cost=len(images),
        against=against,
    )


def certmask_rule(votes: Array, *, k: int, num_masks: int, ties: Ties = "largest") -> Array:
    """Figure 1 for one image: ``int32[K]`` votes of ``num_masks`` masks -> label.

    Unanimity; else the one class with exactly k votes; else, also if several classes have exactly
    k, the majority, where ``ties`` decides.
    """
    has_k = votes == k
    decides = (has_k.sum() == 1) & ~(votes == num_masks).any()
    return jnp.where(decides, has_k.argmax().astype(jnp.int32), majority(votes, ties))


def _attacked(votes: Array, free: Array, label: Array, *, k: int, ties: Ties) -> Array:
    """Exact: can ``free`` votes, added to ``votes int32[K]`` at will, yield another label?

    For each wrong z there are four ways, each with the cheapest use of the free votes:

    1. z alone has exactly k: raise z to k, spoil every other class that has exactly k by one more
       vote, and put what is left where it lifts no class to exactly k;
    2. z leads and no class has exactly k: spoil them all, the rest for z;
    3. z leads and several classes have exactly k already (or z joins the only one): all for z;
    4. z leads and one class has exactly k: raise the nearest one below k to k, the rest for z.

    (Unanimity for z is a lead. k < 0 means that no class can have exactly k votes.)
    """
    num_classes = votes.shape[0]
    classes = jnp.arange(num_classes)
    rank = preference(num_classes, ties)
    others = classes[None, :] != classes[:, None]  # [z, p]
    at_k = others & (votes == k)[None, :]
    num_at_k = at_k.sum(axis=1)

    def leads(total: Array, rivals: Array) -> Array:
        """z with ``total [z]`` votes before all others with ``rivals [z, p]``."""
        key = jnp.where(others, rivals * num_classes + rank[None, :], -1)
        return total * num_classes + rank > key.max(axis=1)

    left = free - (k - votes) - num_at_k
    # A class that is past k takes any number. Else two of the other classes can share the rest,
    # unless it is a single vote.
    past = (others & (votes >= k)[None, :]).any(axis=1)
    lifted = (~others | (votes[None, :] + left[:, None] == k)).all(axis=1)
    stuck = lifted & ((left > 0) if num_classes == 2 else (left == 1))
    way_1 = (votes <= k) & (left >= 0) & ((left == 0) | past | ~stuck)

    rest = free - num_at_k
    total = votes + rest
    way_2 = (rest >= 0) & ((total == k) | leads(total, votes[None, :] + at_k.astype(jnp.int32)))

    total = votes + free
    way_3 = (num_at_k + (total == k).astype(jnp.int32) != 1) & leads(
        total, jnp.broadcast_to(votes, others.shape)
    )

    below = jnp.where(others & (votes < k)[None, :], votes[None, :], -1)
    nearest = below.argmax(axis=1)
    rest = free - (k - below.max(axis=1))
    raised = jnp.where(classes[None, :] == nearest[:, None], k, votes[None, :])
    way_4 = (num_at_k == 1) & (below.max(axis=1) >= 0) & (rest >= 0)
    way_4 &= leads(votes + rest, raised)
    return ((way_1 | way_2 | way_3 | way_4) & (classes != label)).any()
