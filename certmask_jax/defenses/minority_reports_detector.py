"""Minority Reports (McCoyd et al., 2020), the detector, as PatchCleanser's authors evaluate it.

One vote a mask, without the original's 3 x 3 voting grid (whose certificate does not hold at the
image border). y0 is the label of the unmasked image. Any mask that says another label with a
confidence above tau raises an alert; otherwise the answer is y0.

The authors call an image provable when y0 and all one-mask labels are true with confidence *at
least* tau. At equality no alert would be raised, so the certificate here asks for *more than* tau.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import detector_early_exit
from certmask_jax.defenses.defense import ALERT, Defense, Guarantee
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.rounds import RoundAndImage, round_and_image
from certmask_jax.masks.distinct_unions import MaskedImages


def minority_reports_rule(
    labels_of_masks: Array, confidences: Array, unmasked: Array, *, tau: float = 0.0
) -> Array:
    """The detector's answer for one image: ``unmasked``, or ``ALERT``.

    Args:
      labels_of_masks: ``int32[N]``, the one-mask labels.
      confidences: ``float32[N]``, of these.
      unmasked: y0, the label of the image itself.
      tau: confidence above which a dissenting mask raises an alert.
    """
    dissent = (labels_of_masks != unmasked) & (confidences > tau)
    return jnp.where(dissent.any(), ALERT, unmasked)


@dataclasses.dataclass(frozen=True, repr=False)
class MinorityReports(Defense):
    """The one-mask voting detector.

    Attributes:
      masks: N masks that cover every location at least once.
      tau: confidence above which a dissenting mask raises an alert, in [0, 1). 0 alerts at every
        dissent; higher values raise clean accuracy and lower certified accuracy.
      against: what is proved against, if not all that the masks were built for.

    Raises:
      ValueError: for a ``tau`` outside [0, 1), above which no mask could raise an alert.
    """

    _: dataclasses.KW_ONLY
    tau: float = 0.0

    name: ClassVar[str] = "minority_reports"
    guarantee: ClassVar[Guarantee] = Guarantee.DETECTION

    def __post_init__(self) -> None:
        if not 0 <= self.tau < 1:
            raise ValueError(f"tau: expected a confidence in [0, 1), got {self.tau!r}")
        round_and_image(self.masks, self.against)

    @property
    def masked_images(self) -> MaskedImages:
        return self._votes.images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self._votes.groups

    @property
    def row_cost(self) -> int:
        return int(np.size(self.groups))

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        return {"provable_detection": self._provable_detection}

    def row_rule(self, row: Row, num_classes: int) -> Array:
        of_mask, unmasked = self._votes.of_mask, self._votes.unmasked
        labels, trust = row.predictions, row.confidences
        return minority_reports_rule(
            labels[of_mask], trust[of_mask], labels[unmasked], tau=self.tau
        )

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        confident = (row.confidences[self._votes.of_mask] > self.tau).all()
        return self._provable_detection(row, label, num_classes) & confident

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_worst_case_at(row, label, num_classes, self._votes.groups)

    def row_worst_case_at(
        self, row: Row, label: Array, num_classes: int, groups: NDArray[np.bool_] | Array
    ) -> Array:
        """A wrong z passes at a location iff every confident mask that hides it says z.

        ``groups bool[G, V]`` are the masked images that hide the patch at each of G locations.
        """
        of_mask = self._votes.of_mask
        votes = row.predictions[of_mask]
        hiding = jnp.asarray(groups)[:, of_mask]
        heard = hiding & (row.confidences[of_mask] > self.tau)[None, :]  # [G, N]
        most = jnp.where(heard, votes[None, :], -1).max(axis=1)
        least = jnp.where(heard, votes[None, :], num_classes).min(axis=1)
        dissenting = heard.any(axis=1) & ((most != least) | (most == label))
        return dissenting.all() & (self.row_rule(row, num_classes) == label)

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        of_mask, unmasked = self._votes.of_mask, self._votes.unmasked
        return detector_early_exit.undecided_dissent(of_mask, unmasked, self.tau, seen)

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        if not self.undecided(seen, label).any():
            return np.zeros(0, np.intp)
        told = detector_early_exit.most_telling(seen, label)
        unmasked = self._votes.unmasked  # first: what every mask is held against
        is_known = seen.known[unmasked]
        return told if is_known else np.append(unmasked, told[told != unmasked])

    def _provable_detection(self, row: Row, label: Array, num_classes: int) -> Array:
        of_mask, unmasked = self._votes.of_mask, self._votes.unmasked
        agree = (row.predictions[of_mask] == label) & (row.confidences[of_mask] >= self.tau)
        return (row.predictions[unmasked] == label) & agree.all()

    @property
    def _votes(self) -> RoundAndImage:
        return round_and_image(self.masks, self.against)

    def _own_options(self) -> dict[str, Any]:
        return {"tau": self.tau}
