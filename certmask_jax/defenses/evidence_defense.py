"""Defenses on local evidence as values: a paper's rule and proofs, and the windows of a threat.

A model whose cells see a small field each gives evidence ``u[H, W, K]``. A patch reaches one window
of cells; how large that is follows from the threat, the field and the stride. What is answered and
proved are the functions of ``patchguard`` and ``clipped_bagnet``.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from certmask_jax.defenses import clipped_bagnet, patchguard
from certmask_jax.defenses.defense import Guarantee
from certmask_jax.defenses.evidence_windows import checked_window
from certmask_jax.masks.threats import Threat


class EvidenceResults(NamedTuple):
    """What a defense says of T images."""

    answer: Array  # int32[T], labels or ALERT
    worst_case: Array  # bool[T]
    conditions: Mapping[str, Array]  # name -> bool[T], the paper's


@dataclasses.dataclass(frozen=True, repr=False)
class EvidenceDefense(abc.ABC):
    """A rule on local evidence, and what is proved of it against one patch of a threat.

    A value: two of one class with equal fields are equal, hashable, and may be pickled or be static
    arguments of ``jit``. A subclass is a dataclass (``frozen=True, repr=False``) whose further
    fields are the paper's hyper-parameters.

    Attributes:
      threat: one patch, of one or several shapes, anywhere or in a region. A window contains what
        each of its shapes reaches anywhere in the image.
      field: side in pixels of what a cell sees.
      stride: pixels between the fields of neighbouring cells.
      spec: what a report calls it; its ``name`` if empty. No part of the value.

    Raises:
      ValueError: for several patches at once, a field larger than the image, a patch that reaches
        all cells, or a parameter out of range.
    """

    threat: Threat
    _: dataclasses.KW_ONLY
    field: int
    stride: int
    spec: str = dataclasses.field(default="", compare=False)

    name: ClassVar[str]
    guarantee: ClassVar[Guarantee] = Guarantee.RECOVERY

    def __post_init__(self) -> None:
        if len(self.threat) != 1:
            raise ValueError(
                f"{self.name}: expected one patch, which reaches one window of cells, got "
                f"{self.threat}; several at once are for defenses that mask images"
            )
        rows, columns = self.cells
        if checked_window(self.window, (rows, columns)) == (rows, columns):
            raise ValueError(
                f"{self.name}: expected patches that leave some of the {rows}x{columns} cells "
                f"alone, but {self.threat} reach all of them in one place, so nothing is proved; "
                "a smaller patch, or a model that sees less in each cell"
            )

    def __str__(self) -> str:
        return f"{self.name}: {self.windows_and_threat}, {self.guarantee.value}"

    def __repr__(self) -> str:
        given = [str(self.threat), f"field={self.field}", f"stride={self.stride}"]
        given += [f"{key}={value!r}" for key, value in self._own().items()]
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def cells(self) -> tuple[int, int]:
        """``(H, W)`` of the map: the cells whose fields lie in the image.

        Raises:
          ValueError: for a field that is larger than the image.
        """
        if self.field > min(self.threat.image_size):
            height, width = self.threat.image_size
            raise ValueError(
                f"{self.name}: expected images of at least {self.field}x{self.field} pixels, which "
                f"a cell sees, got {height}x{width}"
            )
        rows, columns = ((n - self.field) // self.stride + 1 for n in self.threat.image_size)
        return rows, columns

    @property
    def window(self) -> tuple[int, int]:
        """Cells that a patch reaches, as (height, width): the most of all its shapes."""
        each = [
            patchguard.reached_window(
                shape, field=self.field, stride=self.stride, image_size=self.threat.image_size
            )
            for shape in self.threat.shapes
        ]
        rows, columns = zip(*each, strict=True)
        return max(rows), max(columns)

    @property
    def num_windows(self) -> int:
        """How many windows the map has."""
        rows, columns = (n - w + 1 for n, w in zip(self.cells, self.window, strict=True))
        return rows * columns

    @property
    def windows_and_threat(self) -> str:
        """``windows of 6x6 of 26x26 cells for 32x32 patches on 224x224``."""
        (height, width), (rows, columns) = self.window, self.cells
        return f"windows of {height}x{width} of {rows}x{columns} cells for {self.threat}"

    @property
    def exact(self) -> bool:
        """Whether the worst case is exact when each window can be reached; else a lower bound."""
        return not self.threat.region and len(self.threat.shapes) == 1

    @property
    def options(self) -> dict[str, Any]:
        """The hyper-parameters, for reports: JSON-able."""
        return {
            key: "inf" if isinstance(value, float) and math.isinf(value) else value
            for key, value in self._own().items()
        }

    @property
    @abc.abstractmethod
    def condition_names(self) -> tuple[str, ...]:
        """The names of the paper's conditions, in the order of a report."""

    @abc.abstractmethod
    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """Answers and verdicts of T images, traceable by JAX; images are reduced a few at a time.

        Args:
          evidence: ``float32[T, H, W, K]``. Of an image with evidence that is not finite nothing
            is certified, and the rule answers all the same: a patch may cause such evidence.
          labels: ``int32[T]``, true classes.
        """

    def _own(self) -> dict[str, Any]:
        common = {field.name for field in dataclasses.fields(EvidenceDefense)}
        fields = (f.name for f in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name not in common}


@dataclasses.dataclass(frozen=True, repr=False)
class PatchGuard(EvidenceDefense):
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
        if not 0 <= self.threshold < 1:
            raise ValueError(
                f"threshold: expected a number from 0 to below 1, got {self.threshold}; at 1 no "
                "window is masked and nothing is proved"
            )

    @property
    def exact(self) -> bool:
        """Whether T is 0 and each window can be reached."""
        return super().exact and self.threshold == 0

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The condition of the authors' program."""
        return ("provable_masking",)

    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """See ``EvidenceDefense.results``."""
        how: dict[str, Any] = {
            "window": self.window, "clip": self.clip, "threshold": self.threshold
        }  # fmt: skip
        return EvidenceResults(
            jnp.asarray(patchguard.robust_masking_rule(evidence, **how)),
            jnp.asarray(patchguard.robust_masking_worst_case(evidence, labels, **how)),
            {"provable_masking": jnp.asarray(patchguard.as_published(evidence, labels, **how))},
        )


@dataclasses.dataclass(frozen=True, repr=False)
class PatchGuardDetection(EvidenceDefense):
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
    def condition_names(self) -> tuple[str, ...]:
        """The paper's condition, which asks for tau or more."""
        return ("all_agree",)

    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """See ``EvidenceDefense.results``."""
        how: dict[str, Any] = {"window": self.window, "tau": self.tau}
        return EvidenceResults(
            jnp.asarray(patchguard.detection_rule(evidence, **how)),
            jnp.asarray(patchguard.detection_worst_case(evidence, labels, **how)),
            {"all_agree": jnp.asarray(patchguard.detection_as_published(evidence, labels, **how))},
        )


@dataclasses.dataclass(frozen=True, repr=False)
class ClippedBagNet(EvidenceDefense):
    """The label of the mean of clipped evidence; see ``clipped_bagnet``.

    Attributes:
      clip: evidence is clipped to ``[0, clip]``; None: ``tanh(0.05 u - 1)``, as in the paper.
    """

    clip: float | None = None

    name: ClassVar[str] = "clipped_bagnet"

    def __post_init__(self) -> None:
        if self.clip is not None:
            object.__setattr__(self, "clip", float(self.clip))
        super().__post_init__()
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip: expected a finite number above 0, got {self.clip}")

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The condition of PatchGuard's program, on the runner-up alone."""
        return ("runner_up",)

    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """See ``EvidenceDefense.results``."""
        published = clipped_bagnet.runner_up_as_published(
            evidence, labels, window=self.window, clip=self.clip
        )
        return EvidenceResults(
            jnp.asarray(clipped_bagnet.rule(evidence, clip=self.clip)),
            jnp.asarray(
                clipped_bagnet.worst_case(evidence, labels, window=self.window, clip=self.clip)
            ),
            {"runner_up": jnp.asarray(published)},
        )
