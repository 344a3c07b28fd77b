"""Interval bounds (Chiang et al., ICLR 2020): the classifier itself, and a proof about its logits.

Nothing is masked to answer: the answer is the label of the image. What is proved is that no patch
changes it, place by place: with every pixel that a patch may cover anywhere between black and
white, interval bounds show the true label before all others (soundness, section 16). Masks are the
places, and the table is of a ``BoundedModel``. Few models that were not trained for their bounds
have useful ones.
"""

# Annotations are read here, not later: fields are inherited by classes of other modules.
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import detector_early_exit
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.over_tables import Row
from certmask_jax.defenses.rounds import RoundAndImage, round_and_image
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import CERTAIN


@dataclasses.dataclass(frozen=True, repr=False)
class IntervalBounds(Defense):
    """The undefended classifier, and whether bounds of its logits prove its answer.

    The worst case is a lower bound: that bounds show nothing does not say that an attacker wins.
    It holds of any number of masks that hide a placement, so masks as large as the patch, at every
    place, prove the most, and larger ones take fewer passes.

    A table of a plain model proves nothing here: labels count that a ``BoundedModel`` is sure of.

    Attributes:
      masks: which cover every location at least once: the places of a patch, or larger.
      against: what is proved against, if not all that the masks were built for.
    """

    name: ClassVar[str] = "interval_bounds"
    needs_all_sure: ClassVar[bool] = False

    def __post_init__(self) -> None:
        round_and_image(self.masks, self.against)

    @property
    def masked_images(self) -> MaskedImages:
        return self._places.images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self._places.groups

    @property
    def exact(self) -> bool:
        return False

    @property
    def row_cost(self) -> int:
        return int(np.size(self.groups))

    def row_rule(self, row: Row, num_classes: int) -> Array:
        return row.predictions[self._places.unmasked]

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_worst_case(row, label, num_classes)

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_worst_case_at(row, label, num_classes, self.groups)

    def row_worst_case_at(
        self, row: Row, label: Array, num_classes: int, groups: NDArray[np.bool_] | Array
    ) -> Array:
        """Whether of every group a mask that hides it is certain of the label.

        ``groups bool[G, V]`` are the masked images that hide the patch at each of G locations.
        """
        certain = (row.predictions == label) & (row.confidences >= CERTAIN)
        proved = (jnp.asarray(groups) & certain[None, :]).any(axis=1).all()
        return proved & (self.row_rule(row, num_classes) == label)

    def row_needs(self, row: Row, known: Array) -> Array:
        """The image itself."""
        return ~known & (jnp.arange(known.shape[0]) == self._places.unmasked)

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        unmasked, nothing = self._places.unmasked, np.zeros(len(seen.known), np.bool_)
        if label is None:  # the answer is that of the image itself
            return ~seen.known & (np.arange(len(seen.known)) == unmasked)
        if seen.confidences is None or not seen.known[unmasked]:
            return ~seen.known
        if not (seen.sure[unmasked] and seen.predictions[unmasked] == label):
            return nothing
        certain = seen.known & seen.sure & (seen.predictions == label)
        certain &= seen.confidences >= CERTAIN
        left = self.groups[~(self.groups & certain).any(axis=1)]
        if (left <= seen.known).all(axis=1).any():  # a place that no mask proves
            return nothing
        wanted: NDArray[np.bool_] = ~seen.known & left.any(axis=0)
        return wanted

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        is_open = self.undecided(seen, label)
        unmasked = self._places.unmasked
        told = detector_early_exit.most_telling(seen, label)
        told = told[is_open[told]]
        return told if not is_open[unmasked] else np.append(unmasked, told[told != unmasked])

    @property
    def _places(self) -> RoundAndImage:
        return round_and_image(self.masks, self.against)
