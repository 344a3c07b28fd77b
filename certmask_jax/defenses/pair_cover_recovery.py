"""Pair covers: recovery in one round (soundness, 2.5).

Every two locations are hidden together by a mask. If all masks that hide some location agree on a
label, that label is the answer; else the majority is.

**No two locations can settle different labels**, whatever the table: a mask that hides both says
only one label. So it does not matter in which order locations are looked at, and one that settles
the label is enough. **If all masks say y the rule is robust**: the masks that hide the patch are
out of the attacker's reach, all say y, and settle y.

Locations hidden by the same masks are one group, and only the minimal groups count. If a larger one
agrees on a label, the smaller one inside it does, so the rule is the same with the minimal ones
alone; and at a larger one the attacker can do less.

Where two groups share one mask only, as in all pairs of blocks and in finite planes (of blocks of
at least p locations a side), an image is robust if and only if all masks say y, and no rule could
promise more: if the mask that hides both says z, the attacker at the first location can make all
masks that hide the second one say z, and then the table may as well be that of an image of class z
with the patch at the second location, all of whose masks were right. On redundant pair covers the
exact worst case holds for more images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import pair_cover_early_exit, traced_early_exit
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.pair_cover_early_exit import Locations
from certmask_jax.defenses.rounds import one_round
from certmask_jax.defenses.voting import Ties, check_ties, count_votes, majority, preference
from certmask_jax.masks import pair_covers
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


@functools.lru_cache(maxsize=32)
def _locations(masks: MaskSet, against: Threat | None) -> tuple[MaskedImages, Locations]:
    images, weights, groups = one_round(masks, None)
    pair_covers.check_groups(masks, groups)
    attacks = one_round(masks, against).groups
    return images, pair_cover_early_exit.locations(groups, attacks, weights)


@dataclasses.dataclass(frozen=True, repr=False)
class PairCover(Defense):
    """Single-round recovery with N masks, and no second round.

    Attributes:
      masks: a pair cover, from ``masks.pair_covers`` or made by hand.
      ties: which label wins when several have most votes (no location settles the label then).
      against: what is proved against, if not all that the masks were built for. The rule stays what
        it is.

    Raises:
      CoverageError: naming two locations that no mask hides together.
    """

    _: dataclasses.KW_ONLY
    ties: Ties = "largest"

    name: ClassVar[str] = "pair_cover"

    def __post_init__(self) -> None:
        check_ties(self.ties)
        _locations(self.masks, self.against)

    @property
    def masked_images(self) -> MaskedImages:
        return _locations(self.masks, self.against)[0]

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self._at.attacks

    @property
    def row_cost(self) -> int:
        return int(self._at.groups.size) * (1 if self.against is None else len(self._at.attacks))

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        return {"all_masks_correct": lambda row, label, _: (row.predictions == label).all()}

    def row_rule(self, row: Row, num_classes: int) -> Array:
        return pair_cover_rule(
            row.predictions,
            self._at.groups,
            self._at.weights,
            num_classes=num_classes,
            ties=self.ties,
        )

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        """At every location of the patch the true label is settled, out of the attacker's reach."""
        groups, within = jnp.asarray(self._at.groups), jnp.asarray(self._at.within)
        settled = ((row.predictions == label)[None, :] | ~groups).all(axis=1)
        return (within & settled[None, :]).any(axis=1).all()

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        attacks = None if self.against is None else self._at.attacks
        return self.row_worst_case_at(row, label, num_classes, attacks)

    def row_worst_case_at(
        self, row: Row, label: Array, num_classes: int, groups: NDArray[np.bool_] | Array | None
    ) -> Array:
        """Whether no patch wins where the masked images of one of ``groups bool[G, V]`` hide it.

        None are all locations that the masks were built for, whose proof is shorter.
        """
        return pair_cover_worst_case(
            row.predictions,
            label,
            self._at.groups,
            self._at.weights,
            attacks=groups,
            num_classes=num_classes,
            ties=self.ties,
        )

    def row_needs(self, row: Row, known: Array) -> Array:
        return traced_early_exit.pair_cover_needs(row.predictions, known, self._at.groups)

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        return pair_cover_early_exit.undecided(self._at, seen, label)

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        return pair_cover_early_exit.most_telling(self._at, seen, label)

    @property
    def _at(self) -> Locations:
        return _locations(self.masks, self.against)[1]

    def _own_options(self) -> dict[str, Any]:
        return {"masks": self.masks.name, "ties": self.ties}


def pair_cover_rule(
    labels: Array,
    groups: NDArray[np.bool_] | Array,
    weights: NDArray[np.int32] | Array,
    *,
    num_classes: int,
    ties: Ties = "largest",
) -> Array:
    """The label on which all masks that hide some location agree, else the majority.

    ``labels int32[V]`` of the masked images, ``groups bool[G, V]`` a pair cover, ``weights
    int32[V]`` how many masks each masked image stands for.
    """
    least, most = _range(labels, groups, num_classes)
    settles = (least == most) & (most >= 0)
    votes = count_votes(labels, jnp.asarray(weights), num_classes)
    return jnp.where(settles.any(), most[settles.argmax()], majority(votes, ties))


def pair_cover_worst_case(
    labels: Array,
    label: Array,
    groups: NDArray[np.bool_] | Array,
    weights: NDArray[np.int32] | Array,
    *,
    attacks: NDArray[np.bool_] | Array | None = None,
    num_classes: int,
    ties: Ties = "largest",
) -> Array:
    """Exact: does the rule answer ``label``, y, wherever the patch is and whatever it does?

    Let C be the masks that hide the patch. If all of C say y, y is settled. Otherwise the attacker
    wins by a majority if and only if z is one when all masks outside C say z, for some z != y: then
    no location settles y, as C does not agree on it and every other group has masks outside C
    (groups are minimal); and z cannot have more votes.

    That a wrong label can also be settled adds nothing to the worst of all locations. Say z can be
    settled at D. Then what C and D have in common, at least one mask, says z. If no wrong label
    could have the majority at C or at D, the y votes in C, which lie outside D, would be more than
    those in D, which lie outside C; and the other way round.

    That takes attacks at all D. Where the patch is at other places, ``attacks bool[A, V]``, a label
    is settled out of the attacker's reach by any D inside C, and a wrong z may be settled at a D
    whose masks in C all say z.
    """
    if attacks is not None:
        return _worst_case_elsewhere(
            labels, label, groups, weights, attacks, num_classes=num_classes, ties=ties
        )
    hidden = jnp.asarray(groups)
    votes_of = jnp.asarray(weights)
    wrong = jnp.arange(num_classes) != label
    rank = preference(num_classes, ties)

    def attacked(inside: Array) -> Array:
        votes = count_votes(jnp.where(inside, labels, -1), votes_of, num_classes)
        free = jnp.where(inside, 0, votes_of).sum()
        key = votes * num_classes + rank  # orders classes by votes, then by preference
        can_lead = key + free * num_classes >= key.max()
        is_settled = (~inside | (labels == label)).all()
        return ~is_settled & (can_lead & wrong).any()

    return ~jax.lax.map(attacked, hidden).any()


def _worst_case_elsewhere(
    labels: Array,
    label: Array,
    groups: NDArray[np.bool_] | Array,
    weights: NDArray[np.int32] | Array,
    attacks: NDArray[np.bool_] | Array,
    *,
    num_classes: int,
    ties: Ties,
) -> Array:
    places, votes_of = jnp.asarray(groups), jnp.asarray(weights)
    wrong = jnp.arange(num_classes) != label
    rank = preference(num_classes, ties)
    is_right = (~places | (labels == label)[None, :]).all(axis=1)

    def attacked(inside: Array) -> Array:
        votes = count_votes(jnp.where(inside, labels, -1), votes_of, num_classes)
        free = jnp.where(inside, 0, votes_of).sum()
        key = votes * num_classes + rank  # orders classes by votes, then by preference
        can_lead = key + free * num_classes >= key.max()
        is_settled = (is_right & (~places | inside[None, :]).all(axis=1)).any()
        both = places & inside[None, :]
        least, most = _range(labels, both, num_classes)
        none = ~both.any(axis=1)
        settles_wrong = (none | ((least == most) & (most != label))).any()
        return ~is_settled & ((can_lead & wrong).any() | settles_wrong)

    return ~jax.lax.map(attacked, jnp.asarray(attacks)).any()


def _range(
    labels: Array, groups: NDArray[np.bool_] | Array, num_classes: int
) -> tuple[Array, Array]:
    """Smallest and largest label among the members of each of ``groups bool[G, V]``."""
    row = labels[None, :]
    least = jnp.where(groups, row, num_classes).min(axis=1)
    return least, jnp.where(groups, row, -1).max(axis=1)
