"""PatchGuard as a value: which cells of a map a threat reaches, and masks that hide them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from certmask_jax.defenses import patchguard
from certmask_jax.defenses.evidence_places import PlaceVerdicts
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.defenses.quantised_evidence import evidence_grid
from certmask_jax.defenses.robust_masking_game import check_threshold, game_on
from certmask_jax.defenses.robust_masking_places import masked_sets, masked_windows


@dataclasses.dataclass(frozen=True, repr=False)
class PatchGuard(LocalDefense):
    """Robust masking of each class's evidence (Mask-BN); see ``patchguard``.

    Attributes:
      clip: evidence is clipped to ``[0, clip]``.
      threshold: T, in ``[0, 1)``.
    """

    clip: float = math.inf
    threshold: float = 0.0

    name: ClassVar[str] = "patchguard"

    def __post_init__(self) -> None:
        object.__setattr__(self, "clip", float(self.clip))
        object.__setattr__(self, "threshold", float(self.threshold))
        super().__post_init__()
        if not self.clip > 0:
            raise ValueError(f"clip: expected a number above 0, or infinity, got {self.clip}")
        check_threshold(self.threshold)

    @property
    def exact(self) -> bool:
        """Whether T is 0."""
        return self.threshold == 0

    @property
    def has_leads(self) -> bool:
        """See ``LocalDefense``; above T = 0 a set holds by any of the windows around it."""
        return self.threshold == 0 or self.reached is None

    @property
    def quantisation(self) -> str:
        """See ``EvidenceDefense.quantisation``."""
        return str(evidence_grid(math.prod(self.cells), ceiling=self.clip))

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The condition of the authors' program."""
        return ("provable_masking",)

    @property
    def _rule(self) -> dict[str, Any]:
        """The keywords of its rule."""
        return {"window": self.window, "clip": self.clip, "threshold": self.threshold}

    def _of_cells(self, evidence: Array, labels: Array) -> tuple[ArrayLike, ...]:
        how = self._rule
        return (
            patchguard.robust_masking_rule(evidence, **how),
            patchguard.robust_masking_worst_case(evidence, labels, **how, reached=self.reached),
            patchguard.as_published(evidence, labels, **how),
        )

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """See ``EvidenceDefense.guarded``."""
        self._check(evidence)
        return jnp.asarray(
            patchguard.robust_masking_worst_case(
                evidence, labels, **self._rule, reached=self.reached, margin_guard=margin_guard
            )
        )

    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """See ``EvidenceDefense.at_places``."""
        game = game_on(self.cells, **self._rule, wrap=False)
        sets = self._places()[1]
        if sets is None:
            return masked_windows(evidence, labels, game)
        return masked_sets(evidence, labels, game, sets, shared_by=self.cells[0] * self.cells[1])
