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

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.defenses.defense import Defense, Guarantee, Row
from certmask_jax.defenses.stable_unions import open_unions
from certmask_jax.masks.mask_sets import CoverageError, MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.masks.union_lattice import Unions, all_unions


def mrcert(masks: MaskSet, *, patches: int = 1, against: Threat | None = None) -> Defense:
    """MRCert over all unions of up to four masks (``4 * patches``).

    ``certificate`` is c_r with the true label, ``conditions`` are ``c_r`` and ``round_trip``. Label
    and certificate of an image that may be patched: ``Defense.certified_labels``. A tie
    or logits that are not finite are no label to the proofs, and cost only what rests on them.

    Args:
      masks: N masks that hide one patch wherever it is.
      patches: how many such patches the attacker may put on.
      against: what is proved against, if not all that; of as many patches.

    Raises:
      ValueError: for fewer patches than 1, masks for several patches, or more unions than fit
        (``all_unions.MOST``).
    """
    if patches < 1:
        raise ValueError(f"patches: expected at least 1, got {patches!r}")
    if len(masks.threat) > 1:
        raise ValueError(
            f"mrcert: expected masks for one patch, and patches={len(masks.threat)}, got masks for "
            f"{masks.threat}"
        )
    unions = all_unions(masks, 4 * patches)
    if against is None and patches > 1:
        against = Threat(masks.image_size, masks.threat.patches * patches, masks.threat.region)
    groups = unions.images.location_groups(masks.threat if against is None else against)
    if not groups[:, : unions.up_to[2 * patches]].any(axis=1).all():
        raise CoverageError(
            f"mrcert: expected masks that hide {against}, but some placement is not"
        )
    hiding = jax.device_put(groups[:, : unions.up_to[2 * patches]])
    adding = jax.device_put(unions.adding)

    def kept(row: Row, label: Array, further: int) -> Array:
        """Which unions have ``label`` whatever ``further`` masks are added."""
        return unchanged(row.predictions == label, unions, further, adding)

    def rule(row: Row, num_classes: int) -> Array:
        del num_classes
        return mrcert_rule(row.predictions, unions, adding)

    def c_r(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        return kept(row, label, 3 * patches).any()

    def round_trip(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        return kept(row, label, 4 * patches).all()

    def worst_case(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        return (hiding & kept(row, label, 2 * patches)[None, :]).any(axis=1).all()

    return Defense(
        name="mrcert",
        guarantee=Guarantee.RECOVERY,
        mask_set=masks,
        masked_images=unions.images,
        groups=groups,
        row_rule=rule,
        row_certificate=c_r,
        row_worst_case=worst_case,
        row_conditions={"c_r": c_r, "round_trip": round_trip},
        needs_all_sure=False,
        open_columns=open_unions(unions, np.asarray(hiding)),
        options={"patches": patches},
        row_cost=int(unions.adding.size) + int(np.size(hiding)),
        against=against,
    )


def unchanged(holds: Array, unions: Unions, further: int, adding: Array) -> Array:
    """``bool[V]`` -> ``bool[up_to[order - further]]``: it holds whatever further masks are added.

    One mask at a time: it holds at U with j further masks iff it holds at U and at every U with
    one more mask, with j - 1 further masks.
    """
    for step in range(1, further + 1):
        count = unions.up_to[unions.order - step]
        holds = holds[:count] & holds[adding[:count]].all(axis=1)
    return holds


def mrcert_rule(labels: Array, unions: Unions, adding: Array) -> Array:
    """g for one image: ``int32[V]`` labels of all unions of 4P masks -> label."""
    least = most = labels
    for step in range(1, unions.order // 2 + 1):
        count = unions.up_to[unions.order - step]
        least = jnp.minimum(least[:count], least[adding[:count]].min(axis=1))
        most = jnp.maximum(most[:count], most[adding[:count]].max(axis=1))
    stable = least == most
    return jnp.where(stable.any(), labels[stable.argmax()], labels[0])
