"""BagCert as a value: which cells of a map a threat reaches, and votes of all others."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from certmask_jax.defenses import bagcert
from certmask_jax.defenses.evidence_places import PlaceVerdicts, Unit
from certmask_jax.defenses.local_defense import LocalDefense


@dataclasses.dataclass(frozen=True, repr=False)
class BagCert(LocalDefense):
    """The class for which most cells of a map score; see ``bagcert``.

    Attributes:
      threshold: a cell scores for every class whose evidence is above it.
    """

    threshold: float = 0.0

    name: ClassVar[str] = "bagcert"
    one_rule: ClassVar[bool] = True
    leads_in: ClassVar[Unit] = "votes"

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", bagcert.checked_threshold(self.threshold))
        super().__post_init__()

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The paper's condition, in which a tie is lost."""
        return ("every_location",)

    @property
    def _rule(self) -> dict[str, Any]:
        """The keywords of its rule."""
        return {"window": self.window, "threshold": self.threshold}

    def _of_cells(self, evidence: Array, labels: Array) -> tuple[ArrayLike, ...]:
        how = {**self._rule, "reached": self.reached}
        return (
            bagcert.rule(evidence, threshold=self.threshold),
            bagcert.worst_case(evidence, labels, **how),
            bagcert.every_location_as_published(evidence, labels, **how),
        )

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """See ``EvidenceDefense.guarded``."""
        self._check(evidence)
        return jnp.asarray(
            bagcert.worst_case(
                evidence, labels, **self._rule, reached=self.reached, margin_guard=margin_guard
            )
        )

    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """See ``EvidenceDefense.at_places``."""
        return bagcert.at_places(evidence, labels, **self._rule, reached=self._places()[1])
