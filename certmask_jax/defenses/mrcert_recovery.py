"""MRCert: recovery that an image can be asked for even if it is patched already.

f is the undefended classifier, ``x*A`` the image x with mask A hidden. The rule g has three cases
and a fallback:

1. f(x*A*B) = f(x) for all A, B: the answer is f(x);
2. else f(x*A*B*C) = f(x*A) for some A and all B, C: the answer is f(x*A);
3. else f(x*A*B*C*D) = f(x*A*B) for some A, B and all C, D: the answer is f(x*A*B);
4. else the answer is f(x), the label of the image as it is.

Call a union of at most two masks *stable* if no two further masks change its label. The three cases
look for a stable union of no, one and two masks. Any two stable unions U and W have one label:
f(x*U) = f(x*U*W) = f(x*W). So neither the order of the cases nor that of the masks matters, and
g says the label of any stable union.

c_r(x), which needs no label: f(x*A*B*C) = f(x) for all A, B, C, or f(x*A*B*C*D) = f(x*A) for some A
and all B, C, D. Then g answers every version of x with one patch as it answers x. Such versions
are versions of each other, so with x itself patched this says that the clean image too gets this
answer. *Round trip*, c_r2(x): f(x*A*B*C*D) = f(x) for all A, B, C, D. Then every version with one
patch is recovered *and* has c_r, and every version with two patches is recovered.

**Worst case, exact.** A location is safe iff a union of at most two masks that hides it is stable
with the true label y. If there is one, every stable union of the patched image has its label. If
there is none, the attacker says of every union that does not hide the patch something other than
that union with a mask that hides it, so that it is not stable, and of x something other than y.
What is stable then says another label than y, and if nothing is, the fallback does.

**P patches** (Appendix C): up to P masks hide them, and take the place of one mask everywhere. g
looks for a union of at most 2P masks that 2P further ones do not change; c_r asks that 3P further
masks do not change some union of at most P, and the round trip the same of 4P masks and x. Versions
with P patches then are recovered and have c_r, and versions with 2P patches are recovered.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import mrcert_early_exit, traced_early_exit
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.mrcert_early_exit import UnionPlan
from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.masks.union_lattice import Unions, all_unions


class _Lattice:
    """All unions of up to 4P masks, and which of them hide which placements of P patches."""

    def __init__(self, masks: MaskSet, patches: int, against: Threat | None) -> None:
        self.unions = all_unions(masks, 4 * patches)
        threat = masks.threat if against is None else against
        self.groups = self.unions.images.location_groups(threat)
        self.hiding = self.groups[:, : self.unions.up_to[2 * patches]]
        if not self.hiding.any(axis=1).all():
            raise CoverageError(
                f"mrcert: expected masks that hide {threat}, but some placement is not"
            )

    @functools.cached_property
    def plan(self) -> UnionPlan:
        """Made when first asked for: the rule and the proofs do without."""
        return mrcert_early_exit.plan_of(self.unions, self.hiding)


@functools.lru_cache(maxsize=8)
def _lattice(masks: MaskSet, patches: int, against: Threat | None) -> _Lattice:
    return _Lattice(masks, patches, against)


@dataclasses.dataclass(frozen=True, repr=False)
class MRCert(Defense):
    """MRCert over all unions of up to four masks (``4 * patches``).

    The certificate is c_r with the true label, the conditions are ``c_r`` and ``round_trip``. Label
    and certificate of an image that may be patched: ``certified_labels``. A tie or logits that are
    not finite are no label to the proofs, and cost only what rests on them.

    Attributes:
      masks: N masks that hide one patch wherever it is.
      patches: how many such patches the attacker may put on.
      against: what is proved against, if not all that; of as many patches.

    Raises:
      ValueError: for fewer patches than 1, masks for several patches, or more unions than fit
        (``union_lattice.MOST``).
    """

    _: dataclasses.KW_ONLY
    patches: int = 1

    name: ClassVar[str] = "mrcert"
    needs_all_sure: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.patches < 1:
            raise ValueError(f"patches: expected at least 1, got {self.patches!r}")
        if len(self.masks.threat) > 1:
            raise ValueError(
                f"mrcert: expected masks for one patch, and patches={len(self.masks.threat)}, got "
                f"masks for {self.masks.threat}"
            )
        self._lattice  # noqa: B018  # refuses what does not hide the patches

    @property
    def threat(self) -> Threat:
        if self.against is not None or self.patches == 1:
            return super().threat
        one = self.masks.threat
        return Threat(self.masks.image_size, one.patches * self.patches, one.region)

    @property
    def masked_images(self) -> MaskedImages:
        return self._lattice.unions.images

    @property
    def groups(self) -> NDArray[np.bool_]:
        return self._lattice.groups

    @property
    def row_cost(self) -> int:
        return int(self._lattice.unions.adding.size) + int(np.size(self._lattice.hiding))

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        return {"c_r": self.row_certificate, "round_trip": self._round_trip}

    def row_rule(self, row: Row, num_classes: int) -> Array:
        return mrcert_rule(row.predictions, self._lattice.unions)

    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        """c_r: some union of at most P masks keeps the label, whatever 3P masks are added."""
        return self._kept(row, label, 3 * self.patches).any()

    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        hiding = jnp.asarray(self._lattice.hiding)
        return (hiding & self._kept(row, label, 2 * self.patches)[None, :]).any(axis=1).all()

    def row_needs(self, row: Row, known: Array) -> Array:
        return traced_early_exit.mrcert_needs(row.predictions, known, self._lattice.unions)

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        return mrcert_early_exit.undecided(self._lattice.plan, seen, label)

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        return mrcert_early_exit.most_telling(self._lattice.plan, seen, label)

    def _round_trip(self, row: Row, label: Array, num_classes: int) -> Array:
        return self._kept(row, label, 4 * self.patches).all()

    def _kept(self, row: Row, label: Array, further: int) -> Array:
        """Which unions have ``label`` whatever ``further`` masks are added."""
        return unchanged(row.predictions == label, self._lattice.unions, further)

    @property
    def _lattice(self) -> _Lattice:
        return _lattice(self.masks, self.patches, self._own_threat)

    @property
    def _own_threat(self) -> Threat | None:
        return self.threat if self.against is not None or self.patches > 1 else None

    def _own_options(self) -> dict[str, Any]:
        return {"patches": self.patches}


def unchanged(holds: Array, unions: Unions, further: int) -> Array:
    """``bool[V]`` -> ``bool[up_to[order - further]]``: it holds whatever further masks are added.

    One mask at a time: it holds at U with j further masks iff it holds at U and at every U with
    one more mask, with j - 1 further masks.
    """
    adding = jnp.asarray(unions.adding)
    for step in range(1, further + 1):
        count = unions.up_to[unions.order - step]
        holds = holds[:count] & holds[adding[:count]].all(axis=1)
    return holds


def mrcert_rule(labels: Array, unions: Unions) -> Array:
    """g for one image: ``int32[V]`` labels of all unions of 4P masks -> label."""
    adding = jnp.asarray(unions.adding)
    least = most = labels
    for step in range(1, unions.order // 2 + 1):
        count = unions.up_to[unions.order - step]
        least = jnp.minimum(least[:count], least[adding[:count]].min(axis=1))
        most = jnp.maximum(most[:count], most[adding[:count]].max(axis=1))
    stable = least == most
    return jnp.where(stable.any(), labels[stable.argmax()], labels[0])
