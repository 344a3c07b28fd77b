"""VOT, the voting-based recovery of CrossCert (Zhou et al., FSE 2024): bands vote, one label each.

CrossCert checks a masking-based defense against a voting-based one, and this is the second by
itself: the label that most bands say, of equals the largest. Its program (``certified_drs`` of
``utils/new.py`` at commit 9dbdb01) certifies a lead of more than 2 (b + p - 1), for bands of b
columns that begin at every pixel. That is *published_gap* here, with the number of bands that a
patch meets counted one by one, so that it is a proof at every stride.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from certmask_jax.defenses.over_tables import Row, RowProof
from certmask_jax.defenses.vote_scores import Plurality


@dataclasses.dataclass(frozen=True, repr=False)
class VOT(Plurality):
    """The label of most bands, as CrossCert has it; the worst case is that of ``Plurality``.

    Attributes:
      masks: what is hidden around each band, such as ``mask_sets.column_bands``.
    """

    name: ClassVar[str] = "vot"

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        """``published_gap``: what the paper's program certifies."""
        return {"published_gap": self._published_gap}

    def _published_gap(self, row: Row, label: Array, num_classes: int) -> Array:
        lead = self._leads(row, label, num_classes) > 2 * self.most_reached
        return (lead | (jnp.arange(num_classes) == label)).all()
