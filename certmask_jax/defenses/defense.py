"""What every defense is: a value that holds its masked images, its rule and its proofs."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.mask_sets import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import NO_LABEL, UNKNOWN, PredictionTable, check_labels

Ties = Literal["largest", "smallest"]
"""Which label wins when several have most votes."""

ALERT = -2
"""What a detecting rule answers instead of a label."""

# Rows are reduced in blocks whose intermediate arrays hold about this many numbers.
_NUMBERS_AT_ONCE = 1 << 25
_MAX_ROWS_AT_ONCE = 1024


class Guarantee(enum.StrEnum):
    """What a certified image is promised on every patched version of it."""

    RECOVERY = "recovery"  # the true label
    DETECTION = "detection"  # the true label or an alert, never a wrong label


class Row(NamedTuple):
    """One image's row of the prediction table, restricted to a defense's masked images."""

    predictions: Array  # int32[V]; NO_LABEL (-1) where logits were not finite
    confidences: Array  # float32[V]


RowRule = Callable[[Row, int], Array]
"""(row, num_classes) -> int32 label, or ALERT."""

RowProof = Callable[[Row, Array, int], Array]
"""(row, true label, num_classes) -> bool."""


class Seen(NamedTuple):
    """What is known of one image while its masked images are being evaluated."""

    predictions: NDArray[np.integer[Any]]  # [V]; NO_LABEL where logits were not finite
    margins: NDArray[np.float16]  # [V]
    known: NDArray[np.bool_]  # [V]; entries that are not known hold anything

    @property
    def sure(self) -> NDArray[np.bool_]:
        """``bool[V]``: neither a tie nor without finite logits, where known."""
        return (self.margins > 0) & (self.predictions != NO_LABEL)


OpenColumns = Callable[[Seen, int | None], NDArray[np.intp]]
"""(what is known of an image, its true label or None) -> the masked images that still matter.

To the rule's answer, and with a label to every verdict too; the most telling first. Empty once all
is decided: whatever the entries that are not known turn out to be, nothing changes. Any of them may
be evaluated before it is asked again. On the host, in NumPy.
"""


def all_columns(seen: Seen, label: int | None) -> NDArray[np.intp]:
    """Of a defense of one round: every masked image matters."""
    del label
    return np.flatnonzero(~seen.known)


@dataclasses.dataclass(frozen=True, eq=False)
class Defense:
    """A masking defense: which masked images it needs, what it answers, and what is proved.

    The four methods take a ``PredictionTable`` of T images with at least the defense's masked
    images among its columns (and the true labels ``int[T]``), and are jitted over the whole test
    set. The ``row_*`` functions are the same for one image; write your own defense from them.

    Attributes:
      name: as on the command line.
      guarantee: what ``certificate`` and ``worst_case`` are about.
      mask_set: the masks.
      masked_images: the V distinct masked images.
      groups: ``bool[G, V]``, which masked images hide the patches, for every group of placements.
      exact: whether ``worst_case`` is exact, or (false) a proved lower bound.
      second_set: the masks of the second round, where they are others.
      needs_all_sure: whether one tie, or logits that are not finite, under any mask cost the image
        every verdict. False: to the proofs they are ``NO_LABEL``, and cost what rests on them.
      options: the hyper-parameters, for reports.
      open_columns: which masked images still matter; steers what is evaluated.
      row_cost: numbers held for one row while it is reduced.
      against: what the proofs are about, if not what the masks were built for.
      spec: as on the command line, for reports; empty: by its name.
    """

    name: str
    guarantee: Guarantee
    mask_set: MaskSet
    masked_images: MaskedImages
    groups: NDArray[np.bool_]
    row_rule: RowRule
    row_certificate: RowProof
    row_worst_case: RowProof
    row_conditions: Mapping[str, RowProof]
    exact: bool = True
    second_set: MaskSet | None = None
    needs_all_sure: bool = True
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    open_columns: OpenColumns = all_columns
    row_cost: int = 1
    against: Threat | None = None
    spec: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.masks_and_threat}, {len(self.masked_images)} masked images, "
            f"{self.guarantee.value}"
        )

    def __repr__(self) -> str:
        return f"Defense({self})"

    @property
    def threat(self) -> Threat:
        """What the proofs are about."""
        return self.mask_set.threat if self.against is None else self.against

    @property
    def masks_and_threat(self) -> str:
        """The masks of every round, and what the proofs are about, in one line."""
        text = str(self.mask_set)
        if self.second_set is not None:
            height, width = self.second_set.mask_size
            text += f", then {len(self.second_set)} of {height}x{width}"
        return text if self.threat == self.mask_set.threat else f"{text}, against {self.threat}"

    def rule(self, table: PredictionTable) -> NDArray[np.int32]:
        """What the defended classifier answers: ``int32[T]``, labels or ``ALERT``."""

        return self._over_rows(_rule_over_rows, self.row_rule, table, None).astype(np.int32)

    def certificate(self, table: PredictionTable, labels: ArrayLike) -> NDArray[np.bool_]:
        """The defense's sound certificate, ``bool[T]``; it implies ``worst_case``.

        Images with a tie or without finite logits under one of the masks are never certified.
        """
        return self._proved(self.row_certificate, table, labels)

    def worst_case(self, table: PredictionTable, labels: ArrayLike) -> NDArray[np.bool_]:
        """Robustness against the table adversary, ``bool[T]``.

        The table adversary picks any one placement of the threat and chooses the label of every
        masked image that does not hide it. Recovery: the rule answers the true label whatever they
        choose. Detection: it answers the true label or an alert, and the true label when there is
        no patch. Ties and logits that are not finite are never certified.
        """
        return self._proved(self.row_worst_case, table, labels)

    def conditions(self, table: PredictionTable, labels: ArrayLike) -> dict[str, NDArray[np.bool_]]:
        """The papers' conditions by name, ``bool[T]`` each: what they print as certified."""
        return {
            name: self._proved(proof, table, labels) for name, proof in self.row_conditions.items()
        }

    def certified_labels(self, table: PredictionTable) -> NDArray[np.int32]:
        """Labels that are certified without a true label, of images that may be patched already.

        The rule's answer where ``certificate`` holds with it, else ``NO_LABEL``: for a
        defense that recovers, every image that differs from this one in one patch gets the same
        answer. If this one is patched, the clean image is among them, so the patch has changed
        nothing. Whether the clean answer is *true* no certificate can know.

        Raises:
          ValueError: for a table that holds only what other questions needed.
        """
        own = table.select(self.masked_images)
        answers = self.rule(own)
        asked = np.maximum(answers, 0)
        for i in np.flatnonzero(~own.known.all(axis=1)):
            seen = Seen(own.predictions[i], own.margins[i], own.known[i])
            if len(self.open_columns(seen, int(asked[i]))):
                raise ValueError(
                    f"{self.name}: expected a table that decides the certificate of its own "
                    "answers, but masked images are missing from it; evaluate the whole table"
                )
        return np.where((answers >= 0) & self.certificate(own, asked), answers, NO_LABEL)

    def _proved(
        self, proof: RowProof, table: PredictionTable, labels: ArrayLike
    ) -> NDArray[np.bool_]:
        true = check_labels(labels, len(table), table.num_classes)
        own = table.select(self.masked_images)
        sure = own.sure
        if not self.needs_all_sure:
            labelled = np.where(sure, own.predictions, np.int16(NO_LABEL))
            own, sure = dataclasses.replace(own, predictions=labelled), np.ones_like(sure)
        found = self._over_rows(_proof_over_rows, proof, own, true)
        return found.astype(np.bool_) & sure.all(axis=1)

    @reproducible()
    def _over_rows(
        self,
        compiled: Callable[[Any, int], Callable[..., Array]],
        function: RowRule | RowProof,
        table: PredictionTable,
        labels: NDArray[np.int32] | None,
    ) -> NDArray[Any]:
        own = table.select(self.masked_images)
        predictions = np.asarray(own.predictions)
        # What was not evaluated does not matter (open_columns), so it may be any label.
        predictions = np.where(predictions == UNKNOWN, 0, predictions).astype(np.int32)
        if labels is None:
            labels = np.zeros(len(own), dtype=np.int32)
        reduce = compiled(function, table.num_classes)
        cost = max(self.row_cost, own.predictions.shape[1])
        rows = int(np.clip(_NUMBERS_AT_ONCE // cost, 1, _MAX_ROWS_AT_ONCE))
        rows = min(rows, 1 << max(0, len(own) - 1).bit_length())  # few shapes for small batches
        results = []
        for start in range(0, len(own), rows):
            part = slice(start, start + rows)
            pad = (0, max(0, start + rows - len(own)))  # one shape, one compilation
            found = reduce(
                jnp.asarray(np.pad(predictions[part], (pad, (0, 0)))),
                jnp.asarray(np.pad(own.confidences[part].astype(np.float32), (pad, (0, 0)))),
                jnp.asarray(np.pad(labels[part], pad)),
            )
            results.append(np.asarray(found)[: rows - pad[1]])
        return np.concatenate(results) if results else np.zeros(0, dtype=np.int32)


@functools.lru_cache(maxsize=256)
def _rule_over_rows(rule: RowRule, num_classes: int) -> Callable[..., Array]:
    """The jitted, vmapped rule; cached by function, so that every table shares it."""
    return jax.jit(jax.vmap(lambda p, c, _: rule(Row(p, c), num_classes)))


@functools.lru_cache(maxsize=256)
def _proof_over_rows(proof: RowProof, num_classes: int) -> Callable[..., Array]:
    return jax.jit(jax.vmap(lambda p, c, y: proof(Row(p, c), y, num_classes)))


def groups_of(
    images: MaskedImages, masks: MaskSet, against: Threat | None = None
) -> NDArray[np.bool_]:
    """``bool[G, V]``: which masked images hide the patches, for every group of placements.

    Of the threat that the masks were built for, or of another one that they hide as well, such as
    smaller patches or patches inside a region: fewer groups, hence sharper proofs.

    Raises:
      CoverageError: where fewer masks than promised hide a placement of ``against``.
      ValueError: for a threat on another image size.
    """
    if against is not None:
        masks.check(against)
    return images.location_groups(masks.threat if against is None else against)


def preference(num_classes: int, ties: str) -> Array:
    """``int32[K]``: which label wins a tie, the highest preference first."""
    order = jnp.arange(num_classes, dtype=jnp.int32)
    return order if ties == "largest" else order[::-1]


def check_ties(ties: str) -> None:
    """``ValueError`` unless ``ties`` is one of the two orders that rules can break ties in."""
    if ties not in ("largest", "smallest"):
        raise ValueError(f"ties: expected 'largest' or 'smallest' (label), got {ties!r}")


def count_votes(labels: Array, weights: Array, num_classes: int) -> Array:
    """``int32[K]`` votes for each class; ``NO_LABEL`` votes for none.

    ``labels int32[V]``, ``weights int32[V]``.
    """
    classes = jnp.where(labels < 0, num_classes, labels)
    empty = jnp.zeros(num_classes, dtype=jnp.int32)
    return empty.at[classes].add(weights, mode="drop")


def majority(counts: Array, ties: str) -> Array:
    """The class with most of ``counts int32[K]``; -1 when nobody voted."""
    num_classes = counts.shape[0]
    key = counts * num_classes + preference(num_classes, ties)
    return jnp.where(counts.max() > 0, key.argmax().astype(jnp.int32), -1)
