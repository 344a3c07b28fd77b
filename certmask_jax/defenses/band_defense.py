"""Defenses on evidence of bands as values, and those that count votes of bands.

A model sees one band or block of an image at a time, and everything else is hidden. Its logits,
``[T, B, K]``, are the evidence. Which bands a placement of the threat meets is counted one by one
(``MaskSet.affected``), and never by the papers' closed form, which is one short where the stride
does not divide the width (soundness, 13.2); what the papers certify by it is ``published_gap``.
"""

# Annotations are read here, not later: fields are inherited by classes of other modules.
import dataclasses
import functools
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.defenses import evidence_places, vote_gaps
from certmask_jax.defenses.evidence_defense import EvidenceDefense, EvidenceResults
from certmask_jax.defenses.evidence_places import EvidencePlaces, PlaceVerdicts
from certmask_jax.defenses.guarded_evidence import votes_against
from certmask_jax.defenses.quantised_evidence import all_finite
from certmask_jax.defenses.voting import Ties, check_ties
from certmask_jax.masks import bands
from certmask_jax.masks.geometry import Size, as_size
from certmask_jax.masks.mask_drawing import svg_of
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.threats import Threat

Axis = Literal["columns", "rows", "both", "blocks"]
"""Bands of columns, of rows, of rows and then of columns, or blocks, row by row."""

_BUILDERS: dict[str, Any] = {
    "columns": bands.column_bands,
    "rows": bands.row_bands,
    "both": bands.row_and_column_bands,
    "blocks": bands.blocks,
}
_SMALL = 64
"""Pixels; on smaller images papers have the bands of CIFAR-10."""


def usual_band(image_size: tuple[int, int], large: int) -> int:
    """Pixels of a band that papers take: 4 on images of up to 64 pixels, ``large`` on others."""
    return 4 if min(image_size) <= _SMALL else large


@dataclasses.dataclass(frozen=True, repr=False)
class BandDefense(EvidenceDefense):
    """A rule on what a model says of each band of an image.

    Attributes:
      threat: any, also several patches at once.
      band: pixels of an image that a band shows, across it; of ``"both"`` and ``"blocks"`` also
        ``(height, width)``. None: as the paper has it, 4 on images of up to 64 pixels, and
        ``paper_band`` on larger ones.
      stride: pixels from one band to the next, as ``band``.
      axis: see ``Axis``.
      wrap: whether bands go round the border.

    Raises:
      ValueError: for bands or strides that do not fit the image, a threat that meets every band in
        some place, or a parameter out of range.
    """

    _: dataclasses.KW_ONLY
    band: Size | None = None
    stride: Size = 1
    axis: Axis = "columns"
    wrap: bool = True

    paper_band: ClassVar[int]

    def __post_init__(self) -> None:
        if self.axis not in get_args(Axis):
            raise ValueError(f"axis: expected {', '.join(get_args(Axis))}, got {self.axis!r}")
        if self.band is None:
            usual = usual_band(self.threat.image_size, self.paper_band)
            object.__setattr__(self, "band", usual)
        for name in ("band", "stride"):
            height, width = sides = as_size(getattr(self, name), name)
            if self.axis in ("columns", "rows") and height != width:
                raise ValueError(
                    f"{name}: expected one number of pixels for {self.axis}, got {sides}"
                )
            object.__setattr__(self, name, width if self.axis in ("columns", "rows") else sides)
        object.__setattr__(self, "wrap", bool(self.wrap))
        try:
            self.masks  # noqa: B018  # builds them, once for equal ones
        except CoverageError as error:
            raise ValueError(
                f"{self.name}: expected that no placement meets every band, but {self.threat} meet "
                f"all bands of {self.band} in some place, so nothing is proved; narrower bands, or "
                "a smaller patch"
            ) from error

    @property
    def masks(self) -> MaskSet:
        """What is hidden around each band, in the order of the evidence."""
        return _masks(self.threat, str(self.axis), self.band, self.stride, self.wrap)

    @property
    def of_bands(self) -> MaskSet:
        """The same, see ``EvidenceDefense``."""
        return self.masks

    def _picture(self) -> str:
        """What is hidden around each band."""
        masks = self.masks
        return svg_of(masks.boxes, masks.image_size, self.threat.shapes[0], str(masks))

    @property
    def affected(self) -> tuple[NDArray[np.bool_], ...]:
        """Which bands each group of placements meets, see ``masks.bands.affected_parts``."""
        return _affected(self.masks)

    @property
    def num_parts(self) -> int:
        """How many bands there are."""
        return len(self.masks)

    @property
    def masked_images(self) -> int:
        """How many bands there are, each a masked image."""
        return len(self.masks)

    @property
    def parts_and_threat(self) -> str:
        """``32 bands of 4 columns for 5x5 patches on 32x32``."""
        if self.axis in ("columns", "rows"):
            what = f"bands of {self.band} {self.axis}"
        else:
            height, width = as_size(self.band or 1)
            of_both = f"bands of {height} rows or {width} columns"
            what = of_both if self.axis == "both" else f"blocks of {height}x{width}"
        return f"{len(self.masks)} {what} for {self.threat}"

    @property
    def exact(self) -> bool:
        """True: which bands are met is known for each placement."""
        return True

    @property
    def places(self) -> EvidencePlaces:
        """See ``EvidenceDefense.places``: by the bands that a patch meets."""
        return self._places()[0]

    def _places(self) -> tuple[EvidencePlaces, NDArray[np.bool_]]:
        """The places, and the bands that each meets: ``bool[S, B]``."""
        return _places_of(self.masks, self.name)

    def published_reach(self) -> int:
        """How many bands a patch meets by the papers' closed form; of one patch.

        Of several shapes the most.
        """
        sizes, strides = as_size(self.band or 1), as_size(self.stride)
        each = []
        for shape in self.threat.shapes:
            rows, columns = (
                vote_gaps.published_reach(p, b, stride=s)
                for p, b, s in zip(shape, sizes, strides, strict=True)
            )
            by_axis = {"columns": columns, "rows": rows, "both": rows + columns}
            each.append(by_axis.get(self.axis, rows * columns))
        return max(each)

    def _own(self) -> dict[str, Any]:
        own = super()._own()
        return {name: list(v) if isinstance(v, tuple) else v for name, v in own.items()}


@dataclasses.dataclass(frozen=True, repr=False)
class DerandomizedSmoothing(BandDefense):
    """(De)Randomized Smoothing: the class that most bands vote for; see ``derandomized_smoothing``.

    Attributes:
      threshold: theta, the softmax from which on a band votes for a class, in (0, 1]; None: a band
        votes for its best class alone.
      ties: the class that wins where several have most votes.
    """

    threshold: float | None = 0.2
    ties: Ties = "smallest"

    name: ClassVar[str] = "derandomized_smoothing"
    one_rule: ClassVar[bool] = True
    paper_band: ClassVar[int] = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ties(self.ties)
        if self.threshold is not None:
            object.__setattr__(self, "threshold", float(self.threshold))
            if not 0 < self.threshold <= 1:
                raise ValueError(f"threshold: expected a share in (0, 1], got {self.threshold}")

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The paper's condition, which is on one patch."""
        return ("published_gap",) if len(self.threat) == 1 else ()

    def votes(self, evidence: Array) -> Array:
        """What each band votes for: logits ``float32[T, B, K]`` to ``bool[T, B, K]``."""
        if self.threshold is None:
            return jnp.asarray(smoothing.top_one_votes(evidence))
        return jnp.asarray(smoothing.threshold_votes(evidence, self.threshold))

    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """See ``EvidenceDefense.results``; ``evidence float32[T, B, K]`` are logits of bands."""
        return _voted(self, evidence, labels, self.ties, vote_gaps.levine_feizi_gap)

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """See ``EvidenceDefense.guarded``."""
        votes = votes_against(evidence, labels, margin_guard=margin_guard, threshold=self.threshold)
        held = smoothing.worst_case(votes, labels, self.affected, ties=self.ties)
        return jnp.asarray(held) & jnp.asarray(all_finite(evidence))

    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """See ``EvidenceDefense.at_places``."""
        met = self._places()[1]
        return smoothing.by_place(self.votes(evidence), labels, met, ties=self.ties)


@dataclasses.dataclass(frozen=True, repr=False)
class SmoothedViT(BandDefense):
    """Smoothed ViTs, ViP's recovery and ECViT's rule: a vote for every class that is best.

    The model is any that is to see bands.
    """

    name: ClassVar[str] = "smoothed_vit"
    one_rule: ClassVar[bool] = True
    paper_band: ClassVar[int] = 19

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The condition of the papers' programs, which is on one patch."""
        return ("published_gap",) if len(self.threat) == 1 else ()

    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """See ``EvidenceDefense.results``; ``evidence float32[T, B, K]`` are logits of bands."""
        return _voted(self, evidence, labels, "smallest", vote_gaps.smoothed_vit_gap)

    def votes(self, evidence: Array) -> Array:
        """What each band votes for: logits ``float32[T, B, K]`` to ``bool[T, B, K]``."""
        return jnp.asarray(smoothing.shared_top_votes(evidence))

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """See ``EvidenceDefense.guarded``."""
        votes = votes_against(evidence, labels, margin_guard=margin_guard, shared=True)
        held = smoothing.worst_case(votes, labels, self.affected)
        return jnp.asarray(held) & jnp.asarray(all_finite(evidence))

    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """See ``EvidenceDefense.at_places``."""
        return smoothing.by_place(self.votes(evidence), labels, self._places()[1])


def _voted(
    defense: DerandomizedSmoothing | SmoothedViT,
    evidence: Array,
    labels: Array,
    ties: Ties,
    gap: Any,
) -> EvidenceResults:
    """What votes of logits of bands answer and withstand, and what the paper's gap certifies."""
    votes, conditions = defense.votes(evidence), {}
    if defense.condition_names:
        counts = smoothing.vote_counts(votes)
        conditions["published_gap"] = gap(counts, labels, reach=defense.published_reach())
    return EvidenceResults(
        jnp.asarray(smoothing.rule(votes, ties=ties)),
        jnp.asarray(smoothing.worst_case(votes, labels, defense.affected, ties=ties))
        & jnp.asarray(all_finite(evidence)),
        conditions,
    )


@functools.lru_cache(maxsize=64)
def _masks(threat: Threat, axis: str, band: Any, stride: Any, wrap: bool) -> MaskSet:
    """The masks of bands, verified for a threat, one for equal ones."""
    masks: MaskSet = _BUILDERS[axis](threat.image_size, threat, band=band, stride=stride, wrap=wrap)
    return masks


@functools.lru_cache(maxsize=64)
def _places_of(masks: MaskSet, name: str) -> tuple[EvidencePlaces, NDArray[np.bool_]]:
    return evidence_places.of_bands(masks.threat, masks.boxes, name=name, unit="votes")


@functools.lru_cache(maxsize=64)
def _affected(masks: MaskSet) -> tuple[NDArray[np.bool_], ...]:
    return bands.affected_parts(masks)
