"""CertMask (Lyu et al., AAAI 2026): one round of masks that hide every location k times.

The rule (its Figure 1): unanimous one-mask labels are the answer; else a class with exactly k
votes; else the majority. The paper calls an image certified when all one-mask labels are true
(*k-fold correctness*). **That does not prove recovery**: given k-fold correctness the rule is
robust at a location hidden by c of the N masks if and only if N - c <= k - 1, which no set of
masks smaller than the image satisfies. Four masks of six vote y, the attacker's two say z, k = 2:
z has exactly k votes, and wins.

What k-fold correctness does prove is *detection*: if the labels of a patched image are unanimous,
they are the true label. ``CertMaskDetection`` is that detector, tolerant of t dissenting votes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import detector_early_exit
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.rounds import OneRound, one_round
from certmask_jax.defenses.voting import Ties, check_ties, count_votes, majority, preference
from certmask_jax.masks.distinct_unions import MaskedImages


def certmask_rule(
    votes: Array, *, k: int, num_masks: int | None = None, ties: Ties = "largest"
) -> Array:
    """Figure 1 for one image: ``int32[K]`` votes -> label.

    Unanimity; else the one class with exactly k votes; else, also if several classes have exactly
    k, the majority, where ``ties`` decides.

    Args:
      votes: how many masks say each class.
      k: how many masks hide every location.
      num_masks: N, if some masks say no class at all; by default the number of votes.
      ties: which label wins when several have most votes: the largest (as in PatchCleanser's
        program), or the smallest. The paper says neither this nor what happens when several
        classes have exactly k votes.
    """
    has_k = votes == k
    unanimous = votes == (votes.sum() if num_masks is None else num_masks)
    decides = (has_k.sum() == 1) & ~unanimous.any()
    return jnp.where(decides, has_k.argmax().astype(jnp.int32), majority(votes, ties))


def k_fold_correct(labels_of_masks: Array, label: Array) -> Array:
    """CertMask's condition for one image: all one-mask labels, ``int32[N]``, are the true one.

    It proves detection, not recovery; see the module.
    """
    return (labels_of_masks == label).all()


@dataclasses.dataclass(frozen=True, repr=False)
class _Cover(Defense):
    """What the rule and the detector have in common."""

    @property
    def masked_images(self) -> MaskedImages:
        return self._round.images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self._round.groups

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        return {"k_fold_correct": lambda row, label, _: k_fold_correct(row.predictions, label)}

    @property
    def _round(self) -> OneRound:
        return one_round(self.masks, self.against)


@dataclasses.dataclass(frozen=True, repr=False)
class CertMask(_Cover):
    """CertMask's rule with k = ``masks.promise``, its condition, and its exact worst case.

    ``exact`` is false only for sets that list some masks more often than others; there the
    attacker is allowed to split the votes of one masked image, and the worst case is a bound.

    Attributes:
      masks: a k-fold cover of N masks (replicated, offset, or exact_k_fold).
      ties: which label wins when several have most votes; see ``certmask_rule``. If several classes
        have exactly k votes, no class wins by them here: the majority decides.
      against: what is proved against, if not all that the masks were built for.
    """

    _: dataclasses.KW_ONLY
    ties: Ties = "largest"

    name: ClassVar[str] = "certmask"

    def __post_init__(self) -> None:
        check_ties(self.ties)
        one_round(self.masks, self.against)

    @property
    def exact(self) -> bool:
        return bool((self._units == 1).all())

    def row_rule(self, row: Row, num_classes: int) -> Array:
        votes = count_votes(row.predictions, jnp.asarray(self._round.weights), num_classes)
        return certmask_rule(votes, k=self.masks.promise, num_masks=len(self.masks), ties=self.ties)

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        k = self.masks.promise
        covered = self._round.groups.astype(np.int64) @ self._round.weights
        always = bool(((len(self.masks) - covered <= k - 1) & (covered >= k)).all())
        return k_fold_correct(row.predictions, label) & always

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_worst_case_at(row, label, num_classes, self._round.groups)

    def row_worst_case_at(
        self, row: Row, label: Array, num_classes: int, groups: NDArray[np.bool_] | Array
    ) -> Array:
        """Whether no patch wins where the masked images of one of ``groups bool[G, V]`` hide it."""
        # Equally repeated masks vote as one: count in units of their common weight. If k is no
        # multiple of it, no class can have exactly k votes.
        units = jnp.asarray(self._units)
        k = self.masks.promise
        k_units = k // self._unit if k % self._unit == 0 else -1

        def attacked(hidden: Array) -> Array:
            kept = jnp.where(hidden, row.predictions, -1)
            votes = count_votes(kept, units, num_classes)
            free = jnp.where(hidden, 0, units).sum()
            return certmask_attacked(votes, free, label, k=k_units, ties=self.ties)

        return ~jax.lax.map(attacked, jnp.asarray(groups)).any()

    @property
    def _unit(self) -> int:
        return int(np.gcd.reduce(self._round.weights))

    @property
    def _units(self) -> NDArray[np.int32]:
        return (self._round.weights // self._unit).astype(np.int32)

    def _own_options(self) -> dict[str, Any]:
        return {"tiling": self.masks.name, "coverage": self.masks.promise, "ties": self.ties}


@dataclasses.dataclass(frozen=True, repr=False)
class CertMaskDetection(_Cover):
    """What k-fold correctness proves: the label that all but ``tolerance`` masks say, or an alert.

    Never a wrong label if and only if, for every location and every z != y, more than t masks
    that hide it say something other than z. With all labels true any t < k will do.

    Attributes:
      masks: a k-fold cover of N masks.
      tolerance: t, how many of the N votes may dissent without an alert; less than N / 2, so that
        only one label can have the others.
      against: what is proved against, if not all that the masks were built for.

    Raises:
      ValueError: for a tolerance outside [0, N / 2).
    """

    _: dataclasses.KW_ONLY
    tolerance: int = 0

    name: ClassVar[str] = "certmask_detection"
    guarantee: ClassVar[Guarantee] = Guarantee.DETECTION

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < len(self.masks) / 2:
            raise ValueError(
                f"tolerance: expected 0 <= t < N / 2 with N = {len(self.masks)} masks, got "
                f"{self.tolerance!r}"
            )
        one_round(self.masks, self.against)

    def row_rule(self, row: Row, num_classes: int) -> Array:
        votes = count_votes(row.predictions, jnp.asarray(self._round.weights), num_classes)
        agreed = votes.max() >= len(self.masks) - self.tolerance
        return jnp.where(agreed, votes.argmax().astype(jnp.int32), ALERT)

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_worst_case(row, label, num_classes)

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_worst_case_at(row, label, num_classes, self._round.groups)

    def row_worst_case_at(
        self, row: Row, label: Array, num_classes: int, groups: NDArray[np.bool_] | Array
    ) -> Array:
        """Whether no patch wins where the masked images of one of ``groups bool[G, V]`` hide it."""
        weights = jnp.asarray(self._round.weights)

        def at_location(hidden: Array) -> Array:
            kept = jnp.where(hidden, row.predictions, -1)
            votes = count_votes(kept, weights, num_classes)
            wrong = jnp.where(jnp.arange(num_classes) == label, -1, votes).max()
            return jnp.where(hidden, weights, 0).sum() - wrong > self.tolerance

        every = jax.lax.map(at_location, jnp.asarray(groups)).all()
        return every & (self.row_rule(row, num_classes) == label)

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        return detector_early_exit.undecided_agreement(self._round.weights, self.tolerance, seen)

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        if not self.undecided(seen, label).any():
            return np.zeros(0, np.intp)
        return detector_early_exit.most_telling(seen, label)

    def _own_options(self) -> dict[str, Any]:
        about = {"tiling": self.masks.name, "coverage": self.masks.promise}
        return {**about, "tolerance": self.tolerance}


def certmask_attacked(votes: Array, free: Array, label: Array, *, k: int, ties: Ties) -> Array:
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
    way_1 = (votes <= k) & (left >= 0)

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
