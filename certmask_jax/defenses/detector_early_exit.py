"""Which masked images are still undecided for a detector that asks for agreement.

On the host, in NumPy, one image at a time. It has its answer, an alert, once too many masks
dissent, and no verdict can then hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.known_so_far import Seen

_FIRST = 8  # masks that an image begins with
_GOLDEN = 0.6180339887498949  # its multiples are spread evenly, however many


def undecided_agreement(
    weights: NDArray[np.int32], tolerance: int, seen: Seen
) -> NDArray[np.bool_]:
    """CertMask's detector: ``bool[V]``, nothing once more than ``tolerance`` votes dissent.

    Args:
      weights: ``int32[V]``, the votes of each of V one-mask images.
      tolerance: t, how many votes may dissent without an alert.
      seen: what is known.
    """
    labels, votes = seen.predictions[seen.known], weights[seen.known]
    for_label = np.bincount(labels[labels >= 0], votes[labels >= 0], minlength=1)
    if votes.sum() - for_label.max() > tolerance:  # whatever the others say
        return np.zeros(len(seen.known), np.bool_)
    return ~seen.known


def undecided_dissent(
    of_mask: NDArray[np.integer[Any]], unmasked: int, tau: float, seen: Seen
) -> NDArray[np.bool_]:
    """Minority Reports: ``bool[V]``, nothing once a confident mask dissents from the image itself.

    Two confident masks that say different labels are enough, as one of them does, whatever the
    image itself is said to be.

    Args:
      of_mask: ``int[N]``, where each mask stands among V masked images.
      unmasked: where the image itself does.
      tau: what the confidence of a mask exceeds that is heard.
      seen: what is known. Without its confidences nobody knows which masks are heard.
    """
    if seen.confidences is None:
        return ~seen.known
    trust = seen.confidences[of_mask].astype(np.float32)  # as the rule compares them
    heard = of_mask[seen.known[of_mask] & (trust > np.float32(tau))]
    against = np.append(heard, unmasked) if seen.known[unmasked] else heard
    if len(np.unique(seen.predictions[against])) > 1:
        return np.zeros(len(seen.known), np.bool_)
    return ~seen.known


def most_telling(seen: Seen, label: int | None) -> NDArray[np.intp]:
    """What is not known: for the answer all of it; else those first that most likely dissent.

    After a few masks spread over the image, these are the ones whose neighbours in the mask set
    have small margins.
    """
    known, unknown = np.flatnonzero(seen.known), np.flatnonzero(~seen.known)
    if label is None:
        return unknown
    if not len(known):
        return np.argsort(np.arange(len(unknown)) * _GOLDEN % 1, kind="stable")[:_FIRST]
    near = np.interp(unknown, known, seen.margins[known].astype(np.float32))
    return unknown[np.argsort(near, kind="stable")]
