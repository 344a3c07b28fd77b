"""Which masked images of a single round still matter to an image: steers the devices.

On the host, in NumPy, one image at a time. A detector that asks for agreement has its answer once
too many masks dissent, and no verdict can then hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.defense import OpenColumns, Seen

_FIRST = 8  # masks that an image begins with
_GOLDEN = 0.6180339887498949  # its multiples are spread evenly, however many


def agreement_open(weights: NDArray[np.int32], tolerance: int) -> OpenColumns:
    """What matters where all but ``tolerance`` of the votes have to agree.

    After a few masks spread over the image, those come first whose neighbours in the mask set have
    small margins: they most likely dissent.

    Args:
      weights: ``int32[V]``, the votes of each of V one-mask images.
      tolerance: t, how many votes may dissent without an alert.
    """
    spread = np.argsort(np.arange(len(weights)) * _GOLDEN % 1, kind="stable")

    def open_columns(seen: Seen, label: int | None) -> NDArray[np.intp]:
        known, unknown = np.flatnonzero(seen.known), np.flatnonzero(~seen.known)
        labels, votes = seen.predictions[known], weights[known]
        for_label = np.bincount(labels[labels >= 0], votes[labels >= 0], minlength=1)
        if votes.sum() - for_label.max() > tolerance:  # whatever the others say
            return unknown[:0]
        if label is None:
            return unknown
        if not len(known):
            return spread[:_FIRST]
        near = np.interp(unknown, known, seen.margins[known].astype(np.float32))
        return unknown[np.argsort(near, kind="stable")]

    return open_columns
