"""Defenses on evidence as values: a paper's rule and proofs, and what a threat reaches.

Evidence is what a model says of each small part of an image: of each cell of a map
(``local_defense``), or of each band that is seen alone (``band_defense``).
"""

# Annotations are read here, not later: fields are inherited by classes of other modules.
import abc
import dataclasses
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, ClassVar, NamedTuple

from jax import Array

from certmask_jax.defenses.defense import Guarantee, json_able
from certmask_jax.defenses.evidence_places import EvidencePlaces, NoPlacesError, PlaceVerdicts
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat


class CellMap(NamedTuple):
    """The map of cells that evidence is of, and what of it a patch reaches."""

    field: int  # side of what a cell sees, in pixels of what the model sees
    stride: int  # between the fields of neighbours
    seen_size: tuple[int, int] | None  # that images are resized to; None: as they are
    cells: tuple[int, int]  # (H, W)
    window: tuple[int, int]  # (height, width) in cells: the most that a patch reaches


class EvidenceResults(NamedTuple):
    """What a defense says of T images."""

    answer: Array  # int32[T], labels or ALERT
    worst_case: Array  # bool[T]
    conditions: Mapping[str, Array]  # name -> bool[T], the paper's


@dataclasses.dataclass(frozen=True, repr=False)
class EvidenceDefense(abc.ABC):
    """A rule on evidence, and what is proved of it against a threat.

    A value: two of one class with equal fields are equal, hashable, and may be pickled or be static
    arguments of ``jit``. A subclass is a dataclass (``frozen=True, repr=False``) whose further
    fields are the paper's hyper-parameters; one of ``repr=False`` is shown where it is not its
    default.

    Attributes:
      threat: what attacks.
      spec: what a report calls it; its ``name`` if empty. No part of the value.
    """

    threat: Threat
    _: dataclasses.KW_ONLY
    spec: str = dataclasses.field(default="", compare=False)

    name: ClassVar[str]
    guarantee: ClassVar[Guarantee] = Guarantee.RECOVERY
    one_rule: ClassVar[bool] = False
    """Whether the rule is the same whatever the threat; each class says it for itself."""

    def __str__(self) -> str:
        return f"{self.name}: {self.parts_and_threat}, {self.guarantee.value}"

    def __repr__(self) -> str:
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name not in ("threat", "spec")
            and (field.repr or getattr(self, field.name) != field.default)
        ]
        return f"{type(self).__name__}({', '.join([str(self.threat), *given])})"

    def _repr_html_(self) -> str:
        """The defense in a notebook: what it needs and promises, and a picture, if it has one."""
        facts = {
            "promises": self.guarantee.value,
            "evidence": self.parts_and_threat,
            "worst case": "exact" if self.exact else "a proved lower bound",
        }
        cells = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
        name = escape(self.spec or self.name)
        return f"<figure><b>{name}</b><table>{cells}</table>{self._picture()}</figure>"

    def _picture(self) -> str:
        """An SVG of what it looks at, or nothing."""
        return ""

    @property
    @abc.abstractmethod
    def parts_and_threat(self) -> str:
        """What there is evidence of and what attacks it, in one line."""

    @property
    def of_cells(self) -> CellMap | None:
        """The map whose cells it looks at; None for a defense on other evidence."""
        return None

    @property
    def of_bands(self) -> MaskSet | None:
        """What hides an image around each band that it looks at; None for one on other evidence."""
        return None

    @property
    @abc.abstractmethod
    def num_parts(self) -> int:
        """How many parts of the evidence are taken one by one: windows, or bands."""

    @property
    def masked_images(self) -> int:
        """How many masked images of an image the evidence is from; 0 where it is from itself."""
        return 0

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether the worst case is exact; else a lower bound."""

    @property
    def options(self) -> dict[str, Any]:
        """The hyper-parameters, for reports: JSON-able."""
        return json_able(self._own())

    @property
    def quantisation(self) -> str | None:
        """The integers that evidence is rounded to, in words; None where it is votes already."""
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """What tells defenses apart, JSON-able."""
        return {"name": self.name, "threat": str(self.threat), **self.options}

    @property
    @abc.abstractmethod
    def condition_names(self) -> tuple[str, ...]:
        """The names of the paper's conditions, in the order of a report."""

    @abc.abstractmethod
    def results(self, evidence: Array, labels: Array) -> EvidenceResults:
        """Answers and verdicts of T images, traceable by JAX; images are reduced a few at a time.

        Args:
          evidence: ``float32[T, ..., K]``. Of an image with evidence that is not finite nothing is
            certified, and the rule answers all the same: a patch may cause such evidence.
          labels: ``int32[T]``, true classes.
        """

    def guarded(self, evidence: Array, labels: Array, *, margin_guard: float) -> Array:
        """Whether the worst case holds of all evidence within a margin guard, traceable.

        That is of all logits that differ from these by less than half of it, as those of another
        device may. Each class says it for itself, see ``check_guarded``.

        Args:
          evidence, labels: as of ``results``.
          margin_guard: above 0.

        Returns:
          ``bool[T]``; true only where the worst case is.

        Raises:
          NotImplementedError: where nothing is known of that.
        """
        raise NotImplementedError(f"{self.name}: nothing is known within a margin guard")

    @property
    @abc.abstractmethod
    def places(self) -> EvidencePlaces:
        """Where a patch may be, as the certificate tells places apart.

        Raises:
          NoPlacesError: where it does not, or tells more than are kept; says why.
        """

    @abc.abstractmethod
    def at_places(self, evidence: Array, labels: Array) -> PlaceVerdicts:
        """The verdict at each of ``places`` alone, traceable; all hold iff the worst case does.

        Of evidence that is not finite nothing is meant: a run takes no place of it for safe.

        Args:
          evidence, labels: as of ``results``.

        Raises:
          NoPlacesError: as of ``places``.
        """

    @property
    def kept_places(self) -> tuple[int, int]:
        """How many verdicts at places, and how many of their leads, a run keeps of an image."""
        try:
            places = self.places
        except NoPlacesError:
            return 0, 0
        count = len(places.reached)
        return count, 0 if places.unit is None else count

    def _own(self) -> dict[str, Any]:
        """The fields that are hyper-parameters of the paper, with their values."""
        names = (f.name for f in dataclasses.fields(self) if f.name not in self._common())
        return {name: getattr(self, name) for name in names}

    @classmethod
    def _common(cls) -> set[str]:
        return {field.name for field in dataclasses.fields(EvidenceDefense)}


def is_one_rule(kind: type[EvidenceDefense]) -> bool:
    """Whether defenses of this class against any threats are one classifier.

    Not inherited: a subclass may have a rule that looks at the threat.
    """
    return bool(vars(kind).get("one_rule", False))


def check_guarded(defenses: Iterable[EvidenceDefense], margin_guard: float) -> None:
    """``ValueError`` for a guard beside a defense of whose class nothing is known within one.

    Not inherited either: a subclass may have another rule than the one that is proved.
    """
    for defense in defenses if margin_guard else ():
        if "guarded" not in vars(type(defense)):
            raise ValueError(
                f"{defense.spec or defense.name}: expected no margin guard, as the class "
                f"{type(defense).__name__} does not say what it proves of logits that another "
                "device rounds otherwise; it would, by a method guarded() of its own"
            )
