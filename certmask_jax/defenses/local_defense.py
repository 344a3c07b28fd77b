"""What defenses on local evidence share as values: the windows that a threat gives them.

A model whose cells see a small field each gives evidence ``u[H, W, K]``. A patch reaches one window
of cells; how large that is follows from the threat, the field and the stride. Patches of several
shapes, or in a region, reach some parts of windows only, and proofs are about these. Each defense
is a module beside this one, whose name ends in ``_defense``.
"""

# Annotations are read here, not later: fields are inherited by classes of other modules.
import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax.defenses import evidence_places, patchguard
from certmask_jax.defenses.evidence_defense import CellMap, EvidenceDefense, EvidenceResults
from certmask_jax.defenses.evidence_places import EvidencePlaces, Unit
from certmask_jax.defenses.evidence_windows import checked_window
from certmask_jax.defenses.feature_grid import cells_of, reached_boxes, sets_of_cells
from certmask_jax.masks.geometry import as_size


@dataclasses.dataclass(frozen=True, repr=False)
class LocalDefense(EvidenceDefense):
    """A rule on local evidence, and what is proved of it against one patch of a threat.

    Attributes:
      threat: one patch, of one or several shapes, anywhere or in a region. A window contains what
        each of its shapes reaches anywhere in the image.
      field: side in pixels of what a cell sees.
      stride: pixels between the fields of neighbouring cells.
      seen_size: (height, width) that images are resized to before the model sees them, in whose
        pixels field and stride are; the patch is in the image's own. None: as they are. A window
        then has the most cells that a patch reaches anywhere, and proofs are about the cells that
        it reaches at each place.

    Raises:
      ValueError: for several patches at once, a field larger than the image, a patch that reaches
        all cells, or a parameter out of range.
    """

    _: dataclasses.KW_ONLY
    field: int
    stride: int
    seen_size: tuple[int, int] | None = dataclasses.field(default=None, repr=False)

    leads_in: ClassVar[Unit] = "evidence"
    """What leads are counted in, where there are some."""

    def __post_init__(self) -> None:
        if self.seen_size is not None:
            seen = as_size(self.seen_size, "seen_size")
            same = seen == self.threat.image_size
            object.__setattr__(self, "seen_size", None if same else seen)
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

    @property
    def of_cells(self) -> CellMap:
        """See ``EvidenceDefense``."""
        return CellMap(self.field, self.stride, self.seen_size, self.cells, self.window)

    @property
    def cells(self) -> tuple[int, int]:
        """``(H, W)`` of the map: the cells whose fields lie in the image.

        Raises:
          ValueError: for a field that is larger than the image.
        """
        return cells_of(self._seen, field=self.field, stride=self.stride)

    @property
    def _seen(self) -> tuple[int, int]:
        """The size of what the model sees."""
        return self.threat.image_size if self.seen_size is None else self.seen_size

    @property
    def window(self) -> tuple[int, int]:
        """Cells that a patch reaches, as (height, width): the most of all its shapes."""
        if self.seen_size is not None:
            boxes = [reached_boxes(self.threat, one, **self._fields) for one in self.threat.shapes]
            ends = np.concatenate([one.reshape(-1, 4) for one in boxes])
            height, width = (ends[:, 2:] - ends[:, :2]).max(axis=0).clip(1)
            return int(height), int(width)
        each = [
            patchguard.reached_window(
                shape, field=self.field, stride=self.stride, image_size=self.threat.image_size
            )
            for shape in self.threat.shapes
        ]
        rows, columns = zip(*each, strict=True)
        return max(rows), max(columns)

    @property
    def num_parts(self) -> int:
        """How many windows the map has."""
        rows, columns = (n - w + 1 for n, w in zip(self.cells, self.window, strict=True))
        return rows * columns

    @property
    def parts_and_threat(self) -> str:
        """``windows of 6x6 of 26x26 cells for 32x32 patches on 224x224``."""
        (height, width), (rows, columns) = self.window, self.cells
        return f"windows of {height}x{width} of {rows}x{columns} cells for {self.threat}"

    @property
    def has_leads(self) -> bool:
        """Whether the certificate is about one lead at each place."""
        return True

    @property
    def places(self) -> EvidencePlaces:
        """See ``EvidenceDefense.places``: each place counts as reaching a window.

        Those of several shapes, or in a region, count as reaching the very cells that they do.
        """
        return self._places()[0]

    def _places(self) -> tuple[EvidencePlaces, NDArray[np.bool_] | None]:
        """The places, and the sets of cells that each reaches, ``bool[S, H, W]``, or None."""
        return _places_of(self)

    @property
    def reached(self) -> NDArray[np.bool_] | None:
        """The sets of cells that a patch reaches, ``bool[G, H, W]``; None where these are windows.

        They are for one shape anywhere, in the pixels that the model sees: it reaches as many cells
        as a window has at some place before each window.
        """
        if self.seen_size is None and not self.threat.region and len(self.threat.shapes) == 1:
            return None
        return sets_of_cells(self.threat, **self._fields)

    @property
    def _fields(self) -> dict[str, Any]:
        return {"field": self.field, "stride": self.stride, "seen_size": self.seen_size}

    @property
    def exact(self) -> bool:
        """True: the worst case is exact."""
        return True

    @property
    def facts(self) -> dict[str, Any]:
        """What tells defenses apart, JSON-able."""
        facts = {**super().facts, "field": self.field, "stride": self.stride}
        if self.seen_size is not None:
            facts["seen_size"] = list(self.seen_size)
        # Runs that began when proofs were about windows alone do not go on with others.
        return facts if self.reached is None else {**facts, "proved_on": "reached cells"}

    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """See ``EvidenceDefense.results``.

        ``ValueError`` for evidence of other cells than field and stride say: of another map a patch
        would reach other sets than are looked at.
        """
        self._check(evidence)
        answer, proved, published = map(jnp.asarray, self._of_cells(evidence, labels))
        return EvidenceResults(answer, proved, {self.condition_names[0]: published})

    def _check(self, evidence: Array) -> None:
        if evidence.ndim != 4 or evidence.shape[1:3] != self.cells:
            (rows, columns), (height, width) = self.cells, self._seen
            raise ValueError(
                f"evidence: expected [T, {rows}, {columns}, K], as a field of {self.field} and a "
                f"stride of {self.stride} give of images of {height}x{width}, got "
                f"{list(evidence.shape)}; give the field and stride of the model"
            )

    @abc.abstractmethod
    def _of_cells(self, evidence: Array, labels: Array) -> tuple[ArrayLike, ...]:
        """Answers, the worst case, and the paper's condition."""

    @classmethod
    def _common(cls) -> set[str]:
        return super()._common() | {"field", "stride", "seen_size"}


@functools.lru_cache(maxsize=64)
def _places_of(
    defense: LocalDefense,
) -> tuple[EvidencePlaces, NDArray[np.bool_] | None]:
    unit: Unit | None = defense.leads_in if defense.has_leads else None
    how: dict[str, Any] = {
        "field": defense.field, "stride": defense.stride, "exact": defense.exact, "unit": unit
    }  # fmt: skip
    if defense.reached is not None:
        return evidence_places.of_cells(defense.threat, **how, seen_size=defense.seen_size)
    cells, window = defense.cells, defense.window
    return evidence_places.of_windows(defense.threat, cells=cells, window=window, **how), None
