"""PatchGuard++ as a value: which cells of a map a threat reaches, and who raises an alert."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from certmask_jax.defenses import patchguard
from certmask_jax.defenses.defense import Guarantee
from certmask_jax.defenses.evidence_places import PlaceVerdicts
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.defenses.patchguard_detection import detection_at_places, detection_grid


@dataclasses.dataclass(frozen=True, repr=False)
class PatchGuardDetection(LocalDefense):
    """PatchGuard++: an alert where a masked mean dissents with confidence.

    Attributes:
      tau: the confidence that an alert has to exceed, in ``[0, 1)``.
    """

    tau: float = 0.5

    name: ClassVar[str] = "patchguard_pp"
    guarantee: ClassVar[Guarantee] = Guarantee.DETECTION

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", float(self.tau))
        super().__post_init__()
        if not 0 <= self.tau < 1:
            raise ValueError(f"tau: expected a number from 0 to below 1, got {self.tau}")

    @property
    def exact(self) -> bool:
        """False: exact but for ties and for evidence near the ends of its range."""
        return False

    @property
    def has_leads(self) -> bool:
        """False: a label and a confidence are proved."""
        return False

    @property
    def quantisation(self) -> str:
        """See ``EvidenceDefense.quantisation``."""
        return str(detection_grid(self.cells))

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The paper's condition, which asks for tau or more."""
        return ("all_agree",)

    @property
    def _rule(self) -> dict[str, Any]:
        """The keywords of its rule."""
        return {"window": self.window, "tau": self.tau}

    def _of_cells(self, evidence: Array, labels: Array) -> tuple[ArrayLike, ...]:
        how = self._rule
        return (
            patchguard.detection_rule(evidence, **how),
            patchguard.detection_worst_case(evidence, labels, **how, reached=self.reached),
            patchguard.detection_as_published(evidence, labels, **how),
        )

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """See ``EvidenceDefense.guarded``."""
        self._check(evidence)
        return jnp.asarray(
            patchguard.detection_worst_case(
                evidence, labels, **self._rule, reached=self.reached, margin_guard=margin_guard
            )
        )

    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """See ``EvidenceDefense.at_places``."""
        how = self._rule
        return detection_at_places(evidence, labels, **how, reached=self._places()[1])
