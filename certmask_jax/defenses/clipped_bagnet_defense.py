"""Clipped BagNet as a value: which cells of a map a threat reaches, and the mean of all."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from numpy.typing import ArrayLike

from certmask_jax.defenses import clipped_bagnet
from certmask_jax.defenses.evidence_places import PlaceVerdicts
from certmask_jax.defenses.local_defense import LocalDefense


@dataclasses.dataclass(frozen=True, repr=False)
class ClippedBagNet(LocalDefense):
    """The label of the mean of clipped evidence; see ``clipped_bagnet``.

    Attributes:
      clip: evidence is clipped to ``[0, clip]``; None: ``tanh(0.05 u - 1)``, as in the paper.
    """

    clip: float | None = None

    name: ClassVar[str] = "clipped_bagnet"
    one_rule: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.clip is not None:
            object.__setattr__(self, "clip", float(self.clip))
        super().__post_init__()
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip: expected a finite number above 0, got {self.clip}")

    @property
    def quantisation(self) -> str:
        """See ``EvidenceDefense.quantisation``."""
        return str(clipped_bagnet.clipped_grid(math.prod(self.cells), self.clip))

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The condition of PatchGuard's program, on the runner-up alone."""
        return ("runner_up",)

    @property
    def _rule(self) -> dict[str, Any]:
        """The keywords of its rule."""
        return {"window": self.window, "clip": self.clip}

    def _of_cells(self, evidence: Array, labels: Array) -> tuple[ArrayLike, ...]:
        how = self._rule
        return (
            clipped_bagnet.rule(evidence, clip=self.clip),
            clipped_bagnet.worst_case(evidence, labels, **how, reached=self.reached),
            clipped_bagnet.runner_up_as_published(evidence, labels, **how),
        )

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """See ``EvidenceDefense.guarded``."""
        self._check(evidence)
        return jnp.asarray(
            clipped_bagnet.worst_case(
                evidence, labels, **self._rule, reached=self.reached, margin_guard=margin_guard
            )
        )

    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """See ``EvidenceDefense.at_places``."""
        how = self._rule
        return clipped_bagnet.at_places(evidence, labels, **how, reached=self._places()[1])
