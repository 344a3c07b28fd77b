"""PatchCURE's double masking (Xiang et al., USENIX Security 2024): against the unmasked label.

T[i, j] is the label under masks i and j, v_i = T[i, i] the one-mask label, and the *base* that of
the image with nothing hidden. The answer is the label of the first mask, in mask order, whose v_i
is not the base while all its T[i, j] are v_i; else the base. PatchCleanser's rule has the majority
of the v_i where this one has the base.

The paper certifies an image when all T[i, j] are the true label y. *Good rows* are enough, and they
are exact on every cover: the rule is robust if and only if, at every location, some mask that hides
the patch has T[i, j] = y for all j. (If: should the base not be y, that mask disagrees with it and
stands; no mask stands by another label, as its row holds the pair with that mask, which says y.
Only if: the attacker picks a wrong base, and gives it to every mask that does not hide the patch.
These do not disagree, and of those that hide it none stands by y.) Soundness, 14.2.

The paper's program runs a head on the features of a stem with a small field (``two_parts``). Rule
and proof are the same on images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import patchcleanser_early_exit, traced_early_exit
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.patchcleanser_early_exit import Question
from certmask_jax.defenses.patchcleanser_proofs import TwoRounds, good_rows
from certmask_jax.defenses.rounds import groups_of
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


def patchcure_rule(table: Array, base: Array) -> Array:
    """The rule for one image: labels under two masks ``int32[N, N]``, and with none -> label."""
    single = jnp.diagonal(table)
    stands = (single != base) & (table == single[:, None]).all(axis=1)
    return jnp.where(stands.any(), single[stands.argmax()], base)


class _Rounds(NamedTuple):
    both: TwoRounds
    base: int  # where the image itself is among the masked images


@functools.lru_cache(maxsize=32)
def _rounds(masks: MaskSet, against: Threat | None) -> _Rounds:
    pairs, pair = distinct_unions.unions(masks, 2)
    itself = distinct_unions.unmasked(masks.image_size)
    images, (of_pair, (base,)) = distinct_unions.merge([pairs, itself])
    columns = of_pair[pair].astype(np.int32)
    groups = groups_of(images, masks, against)
    return _Rounds(TwoRounds(columns.diagonal(), columns, groups, True, images), int(base))


@dataclasses.dataclass(frozen=True, repr=False)
class PatchCURE(Defense):
    """PatchCURE's double masking over all pairs of ``masks``.

    Attributes:
      masks: N masks that cover every location at least once. The paper's are those of a map of
        features, with a distance of 1 cell: ``budgeted_grid(grid, window, mask_stride=1)``.
      against: what is proved against, if not all that the masks were built for.
    """

    name: ClassVar[str] = "patchcure"

    def __post_init__(self) -> None:
        _rounds(self.masks, self.against)

    @property
    def masked_images(self) -> MaskedImages:
        images = self._rounds.both.images
        assert images is not None
        return images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self._rounds.both.groups

    @property
    def row_cost(self) -> int:
        return int(self._rounds.both.pair.size) * 4

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        return {"two_mask_correct": self._two_mask_correct}

    def row_rule(self, row: Row, num_classes: int) -> Array:
        labels = row.predictions
        return patchcure_rule(labels[self._rounds.both.pair], labels[self._rounds.base])

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        return good_rows(row.predictions, label, self._rounds.both)

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_certificate(row, label, num_classes)

    def row_needs(self, row: Row, known: Array) -> Array:
        both, base = self._rounds
        return traced_early_exit.patchcure_needs(row.predictions, known, both, base)

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        return patchcleanser_early_exit.undecided(self._question, seen, label)

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        return patchcleanser_early_exit.most_telling(self._question, seen, label)

    def _two_mask_correct(self, row: Row, label: Array, num_classes: int) -> Array:
        return (row.predictions[self._rounds.both.pair] == label).all()

    @property
    def _rounds(self) -> _Rounds:
        return _rounds(self.masks, self.against)

    @property
    def _question(self) -> Question:
        return patchcleanser_early_exit.patchcure(*self._rounds)
