"""Models that were looked at already: a note that saves time, and no more."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import numpy as np


class LookedAt:
    """Claims about models that were found to hold in this process, the latest ones.

    Of equal claims, on parameters of equal shapes, one look is enough.

    Args:
      most: how many are remembered.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._found: dict[Hashable, None] = {}

    def key(self, *claim: Hashable, params: Any) -> Hashable:
        """What tells a claim about a model with these parameters from others."""
        leaves, tree = jax.tree.flatten(params)
        return (*claim, tree, tuple(map(np.shape, leaves)))

    def __contains__(self, key: Hashable) -> bool:
        return key in self._found

    def add(self, key: Hashable) -> None:
        """Remembers a claim, and forgets the oldest of too many."""
        self._found[key] = None
        while len(self._found) > self._most:
            del self._found[next(iter(self._found))]
