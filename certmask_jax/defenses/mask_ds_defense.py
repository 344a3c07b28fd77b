"""Mask-DS as a value: PatchGuard's robust masking of what a model says of each band.

PatchGuard (Xiang et al., USENIX Security 2021) on the model of De-Randomized Smoothing. Bands that
a patch meets are neighbours, on a cycle where bands wrap around, so they lie in one window.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import patchguard
from certmask_jax.defenses.band_defense import BandDefense
from certmask_jax.defenses.evidence_defense import EvidenceResults
from certmask_jax.defenses.evidence_places import EvidencePlaces, PlaceVerdicts
from certmask_jax.defenses.guarded_evidence import against_label, softmax_within
from certmask_jax.defenses.quantised_evidence import all_finite, evidence_grid, quantised
from certmask_jax.defenses.robust_masking_game import check_threshold, game_on
from certmask_jax.defenses.robust_masking_places import masked_sets
from certmask_jax.defenses.robust_masking_proofs import withstands
from certmask_jax.masks import bands
from certmask_jax.masks.geometry import as_size


@dataclasses.dataclass(frozen=True, repr=False)
class MaskDS(BandDefense):
    """Mask-DS: PatchGuard's robust masking of what the bands say; see ``patchguard``.

    A patch reaches bands that are neighbours, on a cycle where they wrap around. The rule takes a
    window of as many neighbours as a patch reaches at most. At T = 0 the worst case is exact: it is
    about the very bands that each place of the patch meets, of which none crosses the seam of a
    cycle without the patch doing so (soundness, 12.7). At a threshold above 0 a window around them
    has to be proved, which is a lower bound.

    Attributes:
      threat: one patch, of one or several shapes.
      features: a band's evidence for a class is its softmax (``"confidence"``), or 1 where that is
        above ``above`` and else 0 (``"votes"``, as in the paper on ImageNet).
      above: the softmax that a vote has to exceed.
      threshold: T, in ``[0, 1)``.
    """

    features: Literal["confidence", "votes"] = "confidence"
    above: float = 0.2
    threshold: float = 0.0

    name: ClassVar[str] = "mask_ds"
    paper_band: ClassVar[int] = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "above", float(self.above))
        object.__setattr__(self, "threshold", float(self.threshold))
        if len(self.threat) != 1 or self.axis == "both":
            raise ValueError(
                f"{self.name}: expected one patch and bands of columns, of rows or blocks, of "
                f"which it reaches one window of neighbours, got {self.threat} and {self.axis}"
            )
        if self.features not in ("confidence", "votes"):
            raise ValueError(f"features: expected confidence or votes, got {self.features!r}")
        if not 0 <= self.above < 1:
            raise ValueError(f"above: expected a share from 0 to below 1, got {self.above}")
        check_threshold(self.threshold)

    @property
    def cells(self) -> tuple[int, int]:
        """Bands as a map: rows of blocks and columns of blocks; ``(B, 1)`` of other bands."""
        if self.axis != "blocks":
            return len(self.masks), 1
        (height, _), (band, _), (stride, _) = (
            self.threat.image_size, as_size(self.band or 1), as_size(self.stride)
        )  # fmt: skip
        rows = len(bands.band_starts(height, band, stride, wrap=self.wrap))
        return rows, len(self.masks) // rows

    @property
    def window(self) -> tuple[int, int]:
        """Bands that a patch reaches, as (height, width) of the map: the most in any place."""
        (met,) = self.affected
        on_map = met.reshape(-1, *self.cells)
        return int(on_map.any(axis=2).sum(axis=1).max()), int(on_map.any(axis=1).sum(axis=1).max())

    @property
    def exact(self) -> bool:
        """Whether T is 0."""
        return self.threshold == 0

    @property
    def quantisation(self) -> str:
        """See ``EvidenceDefense.quantisation``."""
        return str(evidence_grid(math.prod(self.cells), ceiling=1.0))

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The condition of the authors' program, with the true window."""
        return ("provable_masking",)

    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """See ``EvidenceDefense.results``; ``evidence float32[T, B, K]`` are logits of bands.

        ``ValueError`` for another number of bands than the threat is looked at for.
        """
        masked = self.masked(self._features(evidence), labels)
        robust = masked.worst_case & jnp.asarray(all_finite(evidence))
        return masked._replace(worst_case=robust)

    def _places(self) -> tuple[EvidencePlaces, NDArray[np.bool_]]:
        places, met = super()._places()
        # Above T = 0 a set of bands holds by any of the windows around it, which is no one lead.
        return (places if self.exact else places._replace(exact=False, unit=None)), met

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """See ``EvidenceDefense.guarded``."""
        game = game_on(self.cells, **self._rule)
        trusts = softmax_within(self._checked(evidence), margin_guard)
        least, most = (quantised(self._said(trust), game.grid) for trust in trusts)
        held = withstands(
            jnp.asarray(against_label(least, most, labels)),
            labels,
            game,
            "largest",
            sets=self.affected[0].reshape(-1, *self.cells),
            most=most,
        )
        return held & jnp.asarray(all_finite(evidence))

    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """See ``EvidenceDefense.at_places``."""
        sets = self._places()[1].reshape(-1, *self.cells)
        game = game_on(self.cells, **self._rule)
        return masked_sets(self._features(evidence), labels, game, sets)

    def _features(self, evidence: Array) -> Array:
        """What the bands say on their map: ``float32[T, *cells, K]`` in [0, 1]."""
        trust = jax.nn.softmax(self._checked(evidence).astype(jnp.float32), axis=-1)
        return self._said(trust)

    def _said(self, trust: Array) -> Array:
        """The features of a softmax ``float32[T, B, K]``: ``float32[T, *cells, K]``."""
        if self.features == "votes":
            trust = (trust > self.above).astype(jnp.float32)
        return trust.reshape(len(trust), *self.cells, trust.shape[-1])

    def _checked(self, evidence: Array) -> Array:
        if evidence.ndim != 3 or evidence.shape[1] != len(self.masks):
            raise ValueError(
                f"evidence: expected [T, {len(self.masks)}, K], the logits of the bands of "
                f"{self.parts_and_threat}, got {list(evidence.shape)}"
            )
        return evidence

    @property
    def _rule(self) -> dict[str, Any]:
        """The keywords of its rule."""
        return {
            "window": self.window, "clip": 1.0, "threshold": self.threshold, "wrap": self.wrap
        }  # fmt: skip

    def masked(self, features: Array, labels: Array) -> EvidenceResults:
        """As ``results``, of what the bands say on their map: ``float32[T, *cells, K]`` in [0, 1].

        Raises:
          ValueError: for another shape.
        """
        if features.shape[1:3] != self.cells:
            raise ValueError(
                f"features: expected [T, {self.cells[0]}, {self.cells[1]}, K], got "
                f"{list(features.shape)}"
            )
        how = self._rule
        sets = self.affected[0].reshape(-1, *self.cells)
        worst_case = patchguard.robust_masking_worst_case(features, labels, **how, reached=sets)
        return EvidenceResults(
            jnp.asarray(patchguard.robust_masking_rule(features, **how)),
            jnp.asarray(worst_case),
            {"provable_masking": jnp.asarray(patchguard.as_published(features, labels, **how))},
        )
