"""Minority Reports (McCoyd et al., 2020), the detector, as PatchCleanser's authors evaluate it.

One vote a mask, without the original's 3 x 3 voting grid (whose certificate does not hold at the
image border). y0 is the label of the unmasked image. Any mask that says another label with a
confidence above tau raises an alert; otherwise the answer is y0.

The authors call an image provable when y0 and all one-mask labels are true with confidence *at
least* tau. At equality no alert would be raised, so the certificate here asks for *more than* tau.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.defenses.defense import ALERT, Defense, Guarantee, Row, groups_of
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_sets import MaskSet
from certmask_jax.masks.threats import Threat


def minority_reports(masks: MaskSet, *, tau: float = 0.0, against: Threat | None = None) -> Defense:
    """The one-mask voting detector.

    Args:
      masks: N masks that cover every location at least once.
      tau: confidence above which a dissenting mask raises an alert, in [0, 1). 0 alerts at every
        dissent; higher values raise clean accuracy and lower certified accuracy.
      against: what is proved against, if not all that the masks were built for.

    Raises:
      ValueError: for a ``tau`` outside [0, 1), above which no mask could raise an alert.
    """
    if not 0 <= tau < 1:
        raise ValueError(f"tau: expected a confidence in [0, 1), got {tau!r}")
    singles, _ = distinct_unions.unions(masks, 1)
    images, (of_mask, (unmasked,)) = distinct_unions.merge(
        [singles, distinct_unions.unmasked(masks.image_size)]
    )
    groups = groups_of(images, masks, against)
    hiding = jax.device_put(groups[:, of_mask])

    def rule(row: Row, num_classes: int) -> Array:
        del num_classes
        answer = row.predictions[unmasked]
        dissent = (row.predictions[of_mask] != answer) & (row.confidences[of_mask] > tau)
        return jnp.where(dissent.any(), ALERT, answer)

    def provable_detection(row: Row, label: Array, num_classes: int) -> Array:
        del num_classes
        agree = (row.predictions[of_mask] == label) & (row.confidences[of_mask] >= tau)
        return (row.predictions[unmasked] == label) & agree.all()

    def certificate(row: Row, label: Array, num_classes: int) -> Array:
        confident = (row.confidences[of_mask] > tau).all()
        return provable_detection(row, label, num_classes) & confident

    def worst_case(row: Row, label: Array, num_classes: int) -> Array:
        """A wrong z passes at a location iff every confident mask that hides it says z."""
        votes = row.predictions[of_mask]
        heard = hiding & (row.confidences[of_mask] > tau)[None, :]  # [G, N]
        most = jnp.where(heard, votes[None, :], -1).max(axis=1)
        least = jnp.where(heard, votes[None, :], num_classes).min(axis=1)
        dissenting = heard.any(axis=1) & ((most != least) | (most == label))
        return dissenting.all() & (rule(row, num_classes) == label)

    return Defense(
        name="minority_reports",
        guarantee=Guarantee.DETECTION,
        mask_set=masks,
        masked_images=images,
        groups=groups,
        row_rule=rule,
        row_certificate=certificate,
        row_worst_case=worst_case,
        row_conditions={"provable_detection": provable_detection},
        options={"tau": tau},
        row_cost=int(np.size(groups)),
        against=against,
    )
