"""Double masking against the table adversary, for any two mask sets: the certificate, and exactly.

The first round has the masks M1, labels v_i = f(x*m_i); the second M2, labels T[i, j] =
f(x*m_i*m_j) with m_i in M1 and m_j in M2. A mask *stands* if all its T[i, j] are its own v_i: the
mask alone need not be among its second masks, its label is what they are compared with.
PatchCleanser has M1 = M2, where T is symmetric and v its diagonal; here neither is assumed.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.rounds import groups_of
from certmask_jax.defenses.voting import count_votes, preference
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


@dataclasses.dataclass(frozen=True, eq=False)
class TwoRounds:
    """Where the masked images of both rounds are in a row, and what the attacker cannot touch."""

    single: NDArray[np.int32]  # [N1] -> masked image of a mask of M1 alone
    pair: NDArray[np.int32]  # [N1, N2] -> masked image
    groups: NDArray[np.bool_]  # [G, V] the masked image hides the patch
    symmetric: bool  # one mask set in both rounds
    images: MaskedImages | None = None  # the V masked images

    @functools.cached_property
    def hiding(self) -> NDArray[np.bool_]:
        """``bool[G, N1]``: mask i hides the patch alone."""
        return self.groups[:, self.single]

    @functools.cached_property
    def shared(self) -> NDArray[np.bool_]:
        """``bool[N1, N1]``: mask s alone is one of the masked images of row r (r's own: always)."""
        rows = np.concatenate([self.single[:, None], self.pair], axis=1)
        return (rows[:, None, :] == self.single[None, :, None]).any(axis=2)


@functools.lru_cache(maxsize=32)
def two_rounds(masks: MaskSet, second: MaskSet | None, against: Threat | None) -> TwoRounds:
    """All unions of a first and a second mask, and which of them hide which placements.

    Raises:
      ValueError: for two sets that were built for different threats.
      CoverageError: where fewer masks than promised hide a placement of ``against``.
    """
    if second is None:
        images, pair = distinct_unions.unions(masks, 2)
        return TwoRounds(pair.diagonal(), pair, groups_of(images, masks, against), True, images)
    if masks.threat != second.threat:
        raise ValueError(
            f"double_masking: expected a second mask set for {masks.threat}, as the first one, "
            f"got one for {second.threat}; build both for the same threat"
        )
    if against is not None:
        second.check(against)
    singles, of_mask = distinct_unions.unions(masks, 1)
    pairs, of_pair = distinct_unions.unions_of([masks, second])
    images, (of_single, of_union) = distinct_unions.merge([singles, pairs])
    groups = groups_of(images, masks, against)
    single, pair = (of.astype(np.int32) for of in (of_single[of_mask], of_union[of_pair]))
    return TwoRounds(single, pair, groups, False, images)


def good_rows(labels: Array, label: Array, rounds: TwoRounds) -> Array:
    """Good rows (v_i and all T[i, j] true) that no other row can outvoice: ``bool``.

    At every location, (1) some mask that hides the patch has a good row, so it stands by the true
    label y whatever the attacker does, and (2) every row keeps an entry that says y, so no mask
    stands by another label. The answer is then y: as the majority, or as the label of the first
    mask that disagrees and stands. One set in both rounds (``symmetric``) needs only (1): the row
    of every mask holds the pair with the good mask of (1). With two sets good rows alone prove
    nothing, as a mask that does not hide the patch may have kept entries of one wrong label only.

    Args:
      labels: ``int32[V]`` of the masked images.
      label: y.
      rounds: where they stand.
    """
    hiding, groups = jnp.asarray(rounds.hiding), jnp.asarray(rounds.groups)
    true = labels == label
    pairs = true[rounds.pair]
    good = true[rounds.single] & pairs.all(axis=1)
    covered = (hiding & good[None, :]).any(axis=1).all()
    if rounds.symmetric:
        return covered

    def keeps(kept: Array) -> Array:
        return (kept[rounds.pair] & pairs).any(axis=1).all()

    return covered & jax.lax.map(keeps, groups).all()


def double_masking_worst_case(
    labels: Array, label: Array, rounds: TwoRounds, *, num_classes: int, ties: str = "largest"
) -> Array:
    """Exact: can the table adversary make double masking answer anything but ``label``?

    C is the set of masks of M1 that hide the location; v and rows of C are out of the attacker's
    reach. A row outside C keeps the entries whose two masks hide the patch together (at least one,
    as M2 covers). The other v are free. The answer is the label of the first disagreer that stands,
    else the majority m. So the attacker wins in one of three ways, and only so:

    1. no mask of C stands by y, and some m != y can be the majority;
    2. a mask r of C stands by a label w != y, and some m != w can be the majority; if m != y then
       r must come before every mask of C that stands by y, as these are then disagreers too;
    3. a row r outside C has kept only entries of one label w != y: give it w throughout. This also
       gives w to the masks that are, alone, one of its masked images; with the rest of the free v,
       some m != w can be the majority, and r comes before the masks of C that stand by y, or m = y.

    In ways 1 and 2 all free v are m, so no mask outside C disagrees.

    Where most v are free (2 |C| < N1) and both rounds have one set, some m != y can always be the
    majority, so the first way is open unless C has a good row; and a good row closes all three, as
    it shares an entry with every row. Only the other groups need the long form; sets for several
    patches have hardly any.
    """
    at_will = (2 * rounds.hiding.sum(axis=1) < rounds.hiding.shape[1]) & rounds.symmetric
    good = (labels[rounds.pair] == label).all(axis=1)
    easy = (jnp.asarray(rounds.hiding[at_will]) & good[None, :]).any(axis=1).all()
    if at_will.all():
        return easy
    one_mask, table = labels[rounds.single], labels[rounds.pair]
    num_masks = one_mask.shape[0]
    ones = jnp.ones_like(one_mask)
    stands = (table == one_mask[:, None]).all(axis=1)
    rank = preference(num_classes, ties)
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    position = jnp.arange(num_masks, dtype=jnp.int32)
    shared = jnp.asarray(rounds.shared)

    def attacked(group: tuple[Array, Array]) -> Array:
        hiding, fixed = group[0], group[1][rounds.pair]
        votes = count_votes(jnp.where(hiding, one_mask, -1), ones, num_classes)
        key = votes * num_classes + rank  # orders classes by votes, then by preference
        true_stands = hiding & stands & (one_mask == label)
        first_true = jnp.where(true_stands.any(), true_stands.argmax(), num_masks)

        def leads(keys: Array, free: Array, own: Array) -> Array:
            """Can m = y lead, or an m that is neither y nor ``own [N1]`` and r still wins?"""
            can = keys + free[:, None] * num_classes >= keys.max(axis=1, keepdims=True)
            wrong = can & (classes != label)[None, :] & (classes[None, :] != own[:, None])
            return can[:, label] | (wrong.any(axis=1) & (position < first_true))

        free = num_masks - hiding.sum()
        can_lead = key + free * num_classes >= key.max()
        way_1 = ~true_stands.any() & (can_lead & (classes != label)).any()

        keys = jnp.broadcast_to(key[None, :], (num_masks, num_classes))
        wrong_stands = hiding & stands & (one_mask != label)
        way_2 = wrong_stands & leads(keys, jnp.broadcast_to(free, position.shape), one_mask)

        least = jnp.where(fixed, table, num_classes).min(axis=1)
        most = jnp.where(fixed, table, -1).max(axis=1)
        taken = (shared & ~hiding[None, :]).sum(axis=1)
        keys = key[None, :] + jnp.where(
            classes[None, :] == most[:, None], taken[:, None] * num_classes, 0
        )
        way_3 = ~hiding & (least == most) & (most != label) & leads(keys, free - taken, most)
        return way_1 | (way_2 | way_3).any()

    groups = (jnp.asarray(rounds.hiding[~at_will]), jnp.asarray(rounds.groups[~at_will]))
    return easy & ~jax.lax.map(attacked, groups).any()
