"""Which masked images hide the patches; and the single round of masks that many defenses have.

The latter is built once for equal masks and threats, with the image itself beside it or without.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


def groups_of(
    images: MaskedImages, masks: MaskSet, against: Threat | None = None
) -> NDArray[np.bool_]:
    """``bool[G, V]``: which masked images hide the patches, for every group of placements.

    Of the threat that the masks were built for, or of another one that they hide as well, such as
    smaller patches or patches inside a region: fewer groups, hence sharper proofs.

    Raises:
      CoverageError: where fewer masks than promised hide a placement of ``against``.
      ValueError: for a threat on another image size.
    """
    if against is not None:
        masks.check(against)
    return images.location_groups(masks.threat if against is None else against)


class OneRound(NamedTuple):
    """The distinct masks of a round, how many votes each has, and what hides the patches."""

    images: MaskedImages  # V
    weights: NDArray[np.int32]  # [V], how many of the masks each one is
    groups: NDArray[np.bool_]  # [G, V], which hide the patches at each group of placements


@functools.lru_cache(maxsize=64)
def one_round(masks: MaskSet, against: Threat | None) -> OneRound:
    """The round of ``masks``, with the groups of ``against``; None: what they were built for.

    Raises:
      CoverageError: where fewer masks than promised hide a placement of ``against``.
      ValueError: for a threat on another image size.
    """
    images, weights = distinct_unions.one_round(masks)
    return OneRound(images, weights, groups_of(images, masks, against))


class RoundAndImage(NamedTuple):
    """The distinct masks of a round and the image itself, and what hides the patches."""

    images: MaskedImages  # V
    of_mask: NDArray[np.int32]  # [N], where each distinct mask stands among them
    unmasked: int  # where the image itself does
    groups: NDArray[np.bool_]  # [G, V], which hide the patches at each group of placements


@functools.lru_cache(maxsize=64)
def round_and_image(masks: MaskSet, against: Threat | None) -> RoundAndImage:
    """The round of ``masks`` beside the image; arguments and errors are those of ``one_round``."""
    singles, _ = distinct_unions.unions(masks, 1)
    images, (of_mask, (unmasked,)) = distinct_unions.merge(
        [singles, distinct_unions.unmasked(masks.image_size)]
    )
    return RoundAndImage(images, of_mask, int(unmasked), groups_of(images, masks, against))
