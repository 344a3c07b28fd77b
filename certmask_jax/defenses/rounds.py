"""The single round of masks that many defenses have: built once for equal masks and threats."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.defense import groups_of
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


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
