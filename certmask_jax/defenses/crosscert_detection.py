"""CrossCert as a defense on one table: pairs of masks, and the votes of bands, of one model.

The mathematics is in ``crosscert``. A band is a masked image like any other, of which all but the
band is hidden, so masks and bands share a table, and the attacker has what shows the patch in both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import crosscert
from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.defenses.crosscert import JointGroups
from certmask_jax.defenses.defense import Defense, Guarantee
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.rounds import groups_of
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


class _Parts(NamedTuple):
    images: MaskedImages
    pair: NDArray[np.int32]  # [N, N], where the unions of two masks are
    band: NDArray[np.int32]  # [B], where the bands are
    groups: NDArray[np.bool_]  # [G, V]


@functools.lru_cache(maxsize=32)
def _parts(masks: MaskSet, bands: MaskSet, against: Threat | None) -> _Parts:
    if masks.threat != bands.threat:
        raise ValueError(
            f"bands: expected bands for {masks.threat}, as the masks, got some for {bands.threat}; "
            "build both for the same threat"
        )
    pairs, pair = distinct_unions.unions(masks, 2)
    alone, one = distinct_unions.unions(bands, 1)
    images, (of_pair, of_band) = distinct_unions.merge([pairs, alone])
    groups = groups_of(images, masks, against)
    return _Parts(images, of_pair[pair].astype(np.int32), of_band[one].astype(np.int32), groups)


@dataclasses.dataclass(frozen=True, repr=False)
class CrossCert(Defense):
    """The label of double masking, and an alert where bands say another one, or in case 3.

    The worst case is exact (soundness, 13.5): the true label on the clean image, and that or an
    alert on every patched one. Each band votes for its label.

    Attributes:
      masks: N masks that cover every location at least once.
      bands: masks that each leave a band to be seen, for the same threat; see ``masks.bands``.
      against: what is proved against, if not all that the masks were built for.

    Raises:
      ValueError: for masks and bands that were built for different threats.
    """

    bands: MaskSet
    _: dataclasses.KW_ONLY

    name: ClassVar[str] = "crosscert"
    guarantee: ClassVar[Guarantee] = Guarantee.DETECTION

    def __post_init__(self) -> None:
        self._parts  # noqa: B018  # builds them, once for equal ones

    @property
    def masked_images(self) -> MaskedImages:
        return self._parts.images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self._parts.groups

    @property
    def row_cost(self) -> int:
        return int(self._parts.pair.size) * max(8, len(self.groups))

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        """What the paper certifies, by exact proofs of the parts."""
        return {
            "static_certified": self._certified(crosscert.static_certified),
            "unwavering_certified": self._certified(crosscert.unwavering_certified),
        }

    def row_rule(self, row: Row, num_classes: int) -> Array:
        table, votes = self._said(row, num_classes)
        return jnp.asarray(crosscert.rule(table[None], votes[None]))[0]

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        return self.row_conditions["static_certified"](row, label, num_classes)

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        table, votes = self._said(row, num_classes)
        robust = crosscert.worst_case(table[None], votes[None], label[None], self._joint)
        return jnp.asarray(robust)[0]

    def row_worst_case_at(
        self, row: Row, label: Array, num_classes: int, groups: NDArray[np.bool_] | Array
    ) -> Array:
        """Whether no patch wins where the masked images of one of ``groups bool[G, V]`` hide it."""
        table, votes = self._said(row, num_classes)
        hidden = jnp.asarray(groups)
        joint = JointGroups(hidden[:, self._parts.pair], ~hidden[:, self._parts.band])  # type: ignore[arg-type]
        robust = crosscert.worst_case(table[None], votes[None], label[None], joint)
        return jnp.asarray(robust)[0]

    @property
    def _parts(self) -> _Parts:
        return _parts(self.masks, self.bands, self.against)

    @property
    def _joint(self) -> JointGroups:
        return JointGroups(self.groups[:, self._parts.pair], ~self.groups[:, self._parts.band])

    def _said(self, row: Row, num_classes: int) -> tuple[Array, Array]:
        """The table ``int32[N, N]``, and the votes of the bands ``bool[B, K]``."""
        labels = row.predictions
        votes = smoothing.label_votes(labels[self._parts.band], num_classes)
        return labels[self._parts.pair], jnp.asarray(votes)

    def _certified(self, certificate: Any) -> RowProof:
        affected = self._joint.affected

        def holds(row: Row, label: Array, num_classes: int) -> Array:
            table, votes = self._said(row, num_classes)
            return jnp.asarray(certificate(table[None], votes[None], label[None], affected))[0]

        return holds

    def _own_options(self) -> Mapping[str, Any]:
        return {"bands": str(self.bands)}
