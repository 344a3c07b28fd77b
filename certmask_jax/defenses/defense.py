"""What every defense is: a small frozen value, with a rule, proofs, and what is still undecided."""

# Annotations are read here, not later: fields are inherited by classes of other modules.
import abc
import dataclasses
import enum
import math
from collections.abc import Mapping
from html import escape
from typing import Any, ClassVar

import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax.defenses import over_tables
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.over_tables import CERTIFICATE, RULE, WORST_CASE, Row, RowProof
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_drawing import svg_of
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.outputs import NO_LABEL
from certmask_jax.tables.prediction_table import PredictionTable

ALERT = -2
"""What a detecting rule answers instead of a label."""


class Guarantee(enum.StrEnum):
    """What a certified image is promised on every patched version of it."""

    RECOVERY = "recovery"  # the true label
    DETECTION = "detection"  # the true label or an alert, never a wrong label


def json_able(options: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters as JSON holds them, which has no infinity: that is ``"inf"``."""
    return {
        key: str(value) if isinstance(value, float) and math.isinf(value) else value
        for key, value in options.items()
    }


@dataclasses.dataclass(frozen=True, repr=False)
class Defense(abc.ABC):
    """A masking defense: which masked images it needs, what it answers, and what is proved.

    A value: two of one class with equal fields are equal, so a defense may be a static argument of
    ``jit``, the key of a cache, or pickled, and one that is built again compiles nothing anew. A
    subclass is a dataclass (``frozen=True, repr=False``) whose further fields are the paper's
    hyper-parameters. It says ``name`` and ``guarantee``, gives ``masked_images`` and ``groups``,
    and for one image ``row_rule``, ``row_certificate`` and ``row_worst_case``, traceable by JAX;
    the methods about tables follow from these.

    Attributes:
      masks: the mask set of the (first) round.
      against: what the proofs are about, if not all that the masks were built for: fewer, smaller
        or otherwise placed patches. The rule stays what it is.
      spec: what a report calls it; its ``name`` if empty. No part of the value.
    """

    masks: MaskSet
    _: dataclasses.KW_ONLY
    against: Threat | None = None
    spec: str = dataclasses.field(default="", compare=False)

    name: ClassVar[str]
    guarantee: ClassVar[Guarantee] = Guarantee.RECOVERY
    needs_all_sure: ClassVar[bool] = True
    """Whether one tie, or logits that are not finite, under any mask cost the image every verdict.

    If false they are ``NO_LABEL`` to the proofs, and cost only what rests on them.
    """

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.masks_and_threat}, {len(self.masked_images)} masked images, "
            f"{self.guarantee.value}"
        )

    def __repr__(self) -> str:
        given = [str(self.masks)]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("masks", "spec") and value != field.default:
                given.append(f"{field.name}={value if isinstance(value, MaskSet) else repr(value)}")
        return f"{type(self).__name__}({', '.join(given)})"

    def _repr_html_(self) -> str:
        """The defense in a notebook: what it needs and promises, beside a picture of its masks."""
        facts = {
            "promises": self.guarantee.value,
            "against": str(self.threat),
            "masks": str(self.masks),
            "masked images": f"{len(self.masked_images):,}",
            "worst case": "exact" if self.exact else "a proved lower bound",
        }
        cells = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
        shape = self.threat.shapes[0]
        picture = svg_of(self.masks.boxes, self.masks.image_size, shape, str(self.masks))
        name = escape(self.spec or self.name)
        return f"<figure><b>{name}</b><table>{cells}</table>{picture}</figure>"

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    @abc.abstractmethod
    def masked_images(self) -> MaskedImages:
        """The V distinct masked images that the rule and the proofs look at."""

    @property
    @abc.abstractmethod
    def groups(self) -> NDArray[np.bool_]:
        """``bool[G, V]``: which masked images hide the patches, for every group of placements."""

    @abc.abstractmethod
    def row_rule(self, row: Row, num_classes: int) -> Array:
        """What the rule answers for one image: an ``int32`` label, or ``ALERT``."""

    @abc.abstractmethod
    def row_certificate(self, row: Row, label: Array, num_classes: int) -> Array:
        """The sound certificate of one image, ``bool``; it implies ``row_worst_case``."""

    @abc.abstractmethod
    def row_worst_case(self, row: Row, label: Array, num_classes: int) -> Array:
        """Whether one image withstands the table adversary, ``bool``."""

    @property
    def row_conditions(self) -> Mapping[str, RowProof]:
        """The paper's conditions by name, of one image: what it prints as certified."""
        return {}

    def row_needs(self, row: Row, known: Array) -> Array:
        """What to evaluate next for the answer to one image: ``bool[V]``, traceable by JAX.

        As ``open_columns`` without a label, inside a compiled program: empty only where the rule's
        answer is decided, whatever the entries would say that are not ``known`` (``bool[V]``; what
        the row holds there is no label). By default all that is not known.
        """
        return ~known

    def undecided(self, seen: Seen, label: int | None) -> NDArray[np.bool_]:
        """``bool[V]``: which masked images can still change an answer or a verdict.

        Whatever the entries turn out to be that are neither known nor in here, the rule's answer
        stays the same, and with the true ``label`` so does every verdict. It may name too many,
        never too few: certificates of tables that were not evaluated whole rest on it. On the host,
        in NumPy; by default all that is not known.
        """
        return ~seen.known

    def most_telling(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        """Masked images that are best evaluated next, the most telling first; none twice.

        A guess: it decides what an answer costs, never what it is. By default all undecided ones.
        """
        return np.flatnonzero(self.undecided(seen, label))

    def open_columns(self, seen: Seen, label: int | None) -> NDArray[np.intp]:
        """What is to be evaluated next, the most telling first; empty once all is decided."""
        guessed = self.most_telling(seen, label)
        return guessed if len(guessed) else np.flatnonzero(self.undecided(seen, label))

    @property
    def mask_set(self) -> MaskSet:
        """The masks of the (first) round."""
        return self.masks

    @property
    def second_set(self) -> MaskSet | None:
        """The masks of the second round, where they are others."""
        return None

    @property
    def exact(self) -> bool:
        """Whether the worst case is exact; else it is a proved lower bound."""
        return True

    @property
    def options(self) -> dict[str, Any]:
        """The hyper-parameters, for reports: JSON-able."""
        return json_able(dict(self._own_options()) | self._built_for())

    @property
    def row_cost(self) -> int:
        """About how many numbers are held for one row while it is reduced."""
        return len(self.masked_images)

    @property
    def threat(self) -> Threat:
        """What the proofs are about."""
        return self.masks.threat if self.against is None else self.against

    @property
    def masks_and_threat(self) -> str:
        """The masks of every round, and what the proofs are about, in one line."""
        text = str(self.masks)
        if self.second_set is not None:
            height, width = self.second_set.mask_size
            text += f", then {len(self.second_set)} of {height}x{width}"
        return text if self.threat == self.masks.threat else f"{text}, against {self.threat}"

    def rule(self, table: PredictionTable) -> NDArray[np.int32]:
        """What the defended classifier answers: ``int32[T]``, labels or ``ALERT``."""
        return over_tables.reduced(self, [RULE], table, None)[RULE]

    def certificate(self, table: PredictionTable, labels: ArrayLike) -> NDArray[np.bool_]:
        """The defense's sound certificate, ``bool[T]``; it implies ``worst_case``.

        Images with a tie or without finite logits under one of the masks are never certified.
        """
        return over_tables.reduced(self, [CERTIFICATE], table, labels)[CERTIFICATE]

    def worst_case(self, table: PredictionTable, labels: ArrayLike) -> NDArray[np.bool_]:
        """Robustness against the table adversary, ``bool[T]``.

        The table adversary picks any one placement of the threat and chooses the label of every
        masked image that does not hide it. Recovery: the rule answers the true label whatever they
        choose. Detection: it answers the true label or an alert, and the true label when there is
        no patch. Ties and logits that are not finite are never certified.
        """
        return over_tables.reduced(self, [WORST_CASE], table, labels)[WORST_CASE]

    def conditions(self, table: PredictionTable, labels: ArrayLike) -> dict[str, NDArray[np.bool_]]:
        """The papers' conditions by name, ``bool[T]`` each: what they print as certified."""
        names = tuple(self.row_conditions)
        return over_tables.reduced(self, names, table, labels) if names else {}

    def verdicts(self, table: PredictionTable, labels: ArrayLike) -> dict[str, NDArray[np.bool_]]:
        """``worst_case``, ``certificate`` and all conditions by name, for less than one by one."""
        names = (WORST_CASE, CERTIFICATE, *self.row_conditions)
        return over_tables.reduced(self, names, table, labels)

    def certified_labels(self, table: PredictionTable) -> NDArray[np.int32]:
        """Labels that are certified without a true label, of images that may be patched already.

        The rule's answer where ``certificate`` holds with it, else ``NO_LABEL``: for a defense that
        recovers, every image that differs from this one in one patch gets the same answer. If this
        one is patched, the clean image is among them, so the patch has changed nothing. Whether the
        clean answer is *true* no certificate can know.

        Raises:
          ValueError: for a table that holds only what other questions needed.
        """
        own = table.select(self.masked_images)
        answers = self.rule(own)
        asked = np.maximum(answers, 0)
        for i in np.flatnonzero(~own.known.all(axis=1)):
            seen = Seen.in_row(own, i, own.known[i])
            if self.undecided(seen, int(asked[i])).any():
                raise ValueError(
                    f"{self.name}: expected a table that decides the certificate of its own "
                    "answers, but masked images are missing from it; evaluate the whole table"
                )
        return np.where((answers >= 0) & self.certificate(own, asked), answers, NO_LABEL)

    def _own_options(self) -> Mapping[str, Any]:
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.name not in _NO_OPTIONS}

    def _built_for(self) -> dict[str, Any]:
        if self.against is None:
            return {}
        return {"built_for": [list(shape) for shape in self.masks.threat.shapes]}


_NO_OPTIONS = ("masks", "against", "spec")


def rule(defense: Defense, table: PredictionTable) -> Array:
    """What ``defense`` answers: ``int32[T]``, labels or ``ALERT``, as a pure function of JAX.

    As ``defense.rule``, but to be traced: ``jax.jit(rule, static_argnums=0)(defense, table)``. Of a
    table of one image, whose columns are ``[V]`` (under ``vmap``), a scalar.
    """
    return over_tables.traced(defense, RULE, table, None)


def certificate(defense: Defense, table: PredictionTable, labels: ArrayLike) -> Array:
    """``defense.certificate``, ``bool[T]``, as a pure function of JAX; see ``rule``."""
    return over_tables.traced(defense, CERTIFICATE, table, labels)


def worst_case(defense: Defense, table: PredictionTable, labels: ArrayLike) -> Array:
    """``defense.worst_case``, ``bool[T]``, as a pure function of JAX; see ``rule``."""
    return over_tables.traced(defense, WORST_CASE, table, labels)
