"""PatchCleanser (Xiang, Mahloujifar, Mittal; USENIX Security 2022).

T[i, j] is the label of the image with masks i and j; it is symmetric, and its diagonal holds the
one-mask labels v. *Double masking* (Algorithm 1) trusts a mask that disagrees with the majority
only if all its two-mask labels stand by it. *Challenger masking* (Appendix C) lets masks of
different labels challenge each other, at one two-mask image a round.

*Two-mask correctness* (Algorithm 2, Theorem 1), all T[i, j] = y, makes both robust, whatever the
order and the ties. *Good rows*, masks with T[i, j] = y for all j, do so if every location is
hidden by one of them; on the paper's own sets that is the same thing, on redundant covers more.

The second round may have other masks than the first (``DoubleMasking``). Both sets must cover, and
two-mask correctness is then about all unions of a first and a second mask *and* the first masks
alone, which the paper's table has on its diagonal.
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

from certmask_jax.defenses import (
    patchcleanser_early_exit,
    patchcleanser_proofs,
    traced_early_exit,
)
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.patchcleanser_early_exit import Question
from certmask_jax.defenses.patchcleanser_proofs import TwoRounds, good_rows, two_rounds
from certmask_jax.defenses.voting import Ties, check_ties, majority_label
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet


def double_masking_rule(
    table: Array, one_mask: Array | None = None, *, ties: Ties = "largest"
) -> Array:
    """Algorithm 1 for one image: labels under two masks, ``int32[N1, N2]`` -> label.

    Unanimous one-mask labels are the answer. Otherwise the first mask, in mask order, that
    disagrees with the majority and whose two-mask labels all equal its own; else the majority.

    Args:
      table: T[i, j], the label with first mask i and second mask j; with one set symmetric.
      one_mask: v, ``int32[N1]``, the labels with one mask; by default the diagonal of the table.
      ties: which label wins when several have most one-mask votes.
    """
    single = jnp.diagonal(table) if one_mask is None else one_mask
    most = majority_label(single, ties)
    stands = (single != most) & (table == single[:, None]).all(axis=1)
    return jnp.where(stands.any(), single[stands.argmax()], most)


def challenger_masking_rule(table: Array) -> Array:
    """Appendix C for one image: labels under two masks, ``int32[N, N]`` -> label.

    The candidate is mask 0; its challenger the first mask in play with another label. The
    challenger takes over if the two-mask label is its own, and retires otherwise (also when the
    label is neither's: the game has to retire someone to end). Who is left last wins.
    """
    one_mask = jnp.diagonal(table)

    def play(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        candidate, retired = state
        rivals = ~retired & (one_mask != one_mask[candidate])
        challenger = rivals.argmax()
        wins = table[candidate, challenger] == one_mask[challenger]
        loser = jnp.where(wins, candidate, challenger)
        going_on = rivals.any()
        candidate = jnp.where(going_on & wins, challenger, candidate)
        return candidate, retired.at[loser].set(retired[loser] | going_on)

    start = (jnp.zeros((), dtype=one_mask.argmax().dtype), jnp.zeros(one_mask.shape, dtype=bool))
    candidate, _ = jax.lax.fori_loop(0, one_mask.shape[0] - 1, play, start)
    return one_mask[candidate]


def two_mask_correct(table: Array, label: Array) -> Array:
    """Algorithm 2 for one image: all labels under two masks, ``int32[N, N]``, are the true one."""
    return (table == label).all()


@dataclasses.dataclass(frozen=True, repr=False)
class _TwoRounds(Defense):
    """What double and challenger masking have in common: a table of pairs, and good rows."""

    @property
    def rounds(self) -> TwoRounds:
        """Where the masked images of both rounds are among the defense's own."""
        return two_rounds(self.masks, self.second_set, self.against)

    @property
    def masked_images(self) -> MaskedImages:
        images = self.rounds.images
        assert images is not None
        return images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self.rounds.groups

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        return {"two_mask_correct": _all_correct}

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        return good_rows(row.predictions, label, self.rounds)


@dataclasses.dataclass(frozen=True, repr=False)
class DoubleMasking(_TwoRounds):
    """PatchCleanser's double masking over all pairs of ``masks``, or of two mask sets.

    Attributes:
      masks: N1 masks of the first round, which cover every location at least once.
      second: N2 masks of the second round, which cover too; those of the first by default.
      ties: which label wins when several have most one-mask votes. The published program takes
        the largest.
      against: what is proved against, if not all that the masks were built for: patches that are
        smaller, or inside a region. Good rows need cover only these.

    Raises:
      ValueError: for two sets that were built for different threats.
    """

    second: MaskSet | None = None
    _: dataclasses.KW_ONLY
    ties: Ties = "largest"

    name: ClassVar[str] = "double_masking"

    def __post_init__(self) -> None:
        check_ties(self.ties)
        two_rounds(self.masks, self.second, self.against)

    @property
    def second_set(self) -> MaskSet | None:
        return self.second

    @property
    def row_cost(self) -> int:
        return int(self.rounds.pair.size) * 8

    def row_rule(self, row: Row, num_classes: int) -> Array:
        rounds = self.rounds
        labels = row.predictions
        return double_masking_rule(labels[rounds.pair], labels[rounds.single], ties=self.ties)

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        return patchcleanser_proofs.double_masking_worst_case(
            row.predictions, label, self.rounds, num_classes=num_classes, ties=self.ties
        )

    def row_needs(self, row: Row, known: Array) -> Array:
        return traced_early_exit.double_masking_needs(
            row.predictions, known, self.rounds, ties=self.ties
        )

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        return patchcleanser_early_exit.undecided(self._question, seen, label)

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        return patchcleanser_early_exit.most_telling(self._question, seen, label)

    @property
    def _question(self) -> Question:
        return patchcleanser_early_exit.double_masking(self.rounds, self.ties)

    def _own_options(self) -> dict[str, Any]:
        second = {} if self.second is None else {"second": str(self.second)}
        return {"ties": self.ties, **second}


@dataclasses.dataclass(frozen=True, repr=False)
class ChallengerMasking(_TwoRounds):
    """PatchCleanser's challenger masking (Appendix C) over all pairs of ``masks``.

    The worst case is the good-row condition. It is exact where every location that matters is
    hidden by one mask alone, as on PatchCleanser's own sets (``exact`` says so): if that mask i
    has a two-mask label T[i, j] = z other than y, giving every other mask the label z leaves i
    alone against them, and j retires it. On redundant covers it is a proved lower bound.

    Attributes:
      masks: N masks that cover every location at least once.
      against: what is proved against, as of ``DoubleMasking``.
    """

    name: ClassVar[str] = "challenger_masking"

    def __post_init__(self) -> None:
        two_rounds(self.masks, None, self.against)

    @property
    def exact(self) -> bool:
        return bool((self.rounds.hiding.sum(axis=1) == 1).all())

    @property
    def row_cost(self) -> int:
        return len(self.masks) * len(self.masks)

    def row_rule(self, row: Row, num_classes: int) -> Array:
        return challenger_masking_rule(row.predictions[self.rounds.pair])

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_certificate(row, label, num_classes)

    def row_needs(self, row: Row, known: Array) -> Array:
        return traced_early_exit.challenger_masking_needs(row.predictions, known, self.rounds.pair)

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        return patchcleanser_early_exit.undecided(self._question, seen, label)

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        return patchcleanser_early_exit.most_telling(self._question, seen, label)

    @property
    def _question(self) -> Question:
        return patchcleanser_early_exit.challenger_masking(self.rounds)


def _all_correct(row: Row, label: Array, num_classes: int) -> Array:
    return (row.predictions == label).all()
