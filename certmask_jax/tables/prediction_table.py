"""The prediction table: what the undefended model says about every masked image of a test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import NO_LABEL, SCHEMA, UNKNOWN, Outputs

__all__ = ["NO_LABEL", "UNKNOWN", "PredictionTable", "check_labels", "from_labels"]


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionTable(Outputs):
    """Predictions for T images under V masks each; the columns are those of ``Outputs``.

    A pytree: the columns are its leaves, ``masked_images`` and ``num_classes`` are static. Under
    ``vmap`` it is a table of one image, whose columns are ``[V]``.

    Attributes:
      predictions: ``int16[T, V]``, the top-1 label, ``NO_LABEL``, or ``UNKNOWN``.
      margins: ``float16[T, V]``, top-1 minus top-2 logit; 0 is a tie. Infinite where unknown.
      confidences: ``float16[T, V]``, softmax of the top-1 label, in [0, 1]; see ``Outputs``.
      masked_images: the V masked images, in the order of the columns.
      num_classes: K; labels lie in ``[0, K)``.
    """

    masked_images: MaskedImages
    num_classes: int

    def __post_init__(self) -> None:
        shape = np.shape(self.predictions)
        if len(shape) != 2 or shape[1] != len(self.masked_images):
            raise ValueError(
                "predictions: expected shape [images, masked images] = "
                f"[T, {len(self.masked_images)}], got {shape}"
            )
        for name in SCHEMA:
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"{name}: expected the shape of predictions {shape}, got "
                    f"{np.shape(getattr(self, name))}"
                )

    @classmethod
    def of(cls, outputs: Outputs, images: MaskedImages, num_classes: int) -> PredictionTable:
        """The table whose columns are those of ``outputs``, ``[T, V]`` each."""
        columns = {name: getattr(outputs, name) for name in SCHEMA}
        return cls(**columns, masked_images=images, num_classes=num_classes)

    def __len__(self) -> int:
        return len(self.predictions)

    def __repr__(self) -> str:
        return (
            f"PredictionTable({len(self)} images x {len(self.masked_images)} masked images, "
            f"{self.num_classes} classes)"
        )

    @property
    def known(self) -> NDArray[np.bool_]:
        """``bool[T, V]``: the masked image was evaluated."""
        return np.asarray(self.predictions) != UNKNOWN

    @property
    def sure(self) -> NDArray[np.bool_]:
        """``bool[T, V]``: the label is neither a tie nor without finite logits (or not known)."""
        return np.asarray((self.margins > 0) & (self.predictions != NO_LABEL))

    def non_finite_images(self) -> NDArray[np.int64]:
        """Indices of the images that have NaN or infinite logits under some mask."""
        return np.flatnonzero((self.predictions == NO_LABEL).any(axis=1))

    def columns(self, wanted: MaskedImages) -> NDArray[np.intp]:
        """The columns of ``wanted``, ``int[V']``, matched by the pixels that they hide.

        Raises:
          ValueError: when the table lacks some of them.
        """
        places = self.masked_images.places(wanted)
        if (places < 0).any():
            raise ValueError(
                f"expected a table with all {len(wanted)} masked images of this defense, but "
                f"{int((places < 0).sum())} are missing from its {len(self.masked_images)} "
                "columns; evaluate the model for this defense first"
            )
        return places

    def take(self, rows: slice, columns: NDArray[np.intp], images: MaskedImages) -> PredictionTable:
        """Some rows and columns, in memory; ``images`` are the masked images of the columns."""
        return self._with(lambda column: np.asarray(column[rows])[:, columns], images)

    def rows(self, chosen: NDArray[np.bool_]) -> PredictionTable:
        """Some rows, ``bool[T]``, in memory."""
        if chosen.all():
            return self
        return self._with(lambda column: np.asarray(column)[chosen], self.masked_images)

    def select(self, wanted: MaskedImages) -> PredictionTable:
        """All rows of the columns of ``wanted``; ``ValueError`` when some are missing."""
        if wanted is self.masked_images or wanted == self.masked_images:
            return self
        return self.take(slice(None), self.columns(wanted), wanted)

    def _with(self, function: Callable[[Any], Any], images: MaskedImages) -> PredictionTable:
        return PredictionTable.of(self.map(function), images, self.num_classes)


def _leaves(table: PredictionTable) -> tuple[tuple[Any, ...], tuple[MaskedImages, int]]:
    return tuple(table), (table.masked_images, table.num_classes)


def _of_leaves(static: tuple[MaskedImages, int], leaves: tuple[Any, ...]) -> PredictionTable:
    """Without checks: JAX puts in what is no array, and ``vmap`` arrays of one axis less."""
    table = object.__new__(PredictionTable)
    names = (*SCHEMA, "masked_images", "num_classes")
    for name, value in zip(names, (*leaves, *static), strict=True):
        object.__setattr__(table, name, value)
    return table


jax.tree_util.register_pytree_node(PredictionTable, _leaves, _of_leaves)


def from_labels(
    labels: ArrayLike,
    images: MaskedImages,
    *,
    num_classes: int,
    margins: ArrayLike = 1,
    confidences: ArrayLike = 1,
) -> PredictionTable:
    """A table written by hand, of predictions that are certain unless something else is said.

    Args:
      labels: ``int[T, V]``, the top-1 labels, or ``NO_LABEL`` or ``UNKNOWN``.
      images: the V masked images, in the order of the columns.
      num_classes: K; labels lie in ``[0, K)``.
      margins: top-1 minus top-2 logit, anything that broadcasts to ``[T, V]``.
      confidences: softmax of the top-1 label, anything that broadcasts to ``[T, V]``.

    Returns:
      The table. What it holds beside these columns is unknown.
    """
    predictions = np.asarray(labels, dtype=np.int16)
    by_hand = dataclasses.replace(
        Outputs.unknown(predictions.shape),
        predictions=predictions,
        margins=_as_column("margins", margins, predictions.shape),
        confidences=_as_column("confidences", confidences, predictions.shape),
    )
    return PredictionTable.of(by_hand, images, num_classes)


def _as_column(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
    given = np.asarray(values)
    try:
        spread = np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected one value or an array that broadcasts to the shape of labels "
            f"{shape}, got {given.shape}"
        ) from None
    return spread.astype(SCHEMA[name].dtype)


def check_labels(labels: ArrayLike, num_images: int, num_classes: int) -> NDArray[np.int32]:
    """True labels as ``int32[T]``.

    Raises:
      ValueError: unless there is one integer label in ``[0, num_classes)`` for each image; names
        the first offenders.
    """
    array = np.asarray(labels)
    if array.shape != (num_images,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels: expected {num_images} integers, got shape {array.shape}, dtype {array.dtype}"
        )
    outside = np.flatnonzero((array < 0) | (array >= num_classes))
    if len(outside):
        shown = ", ".join(f"{array[i]} (image {i})" for i in outside[:5])
        raise ValueError(
            f"labels: expected values in 0..{num_classes - 1} for a model of {num_classes} "
            f"classes, got {shown}{', ...' if len(outside) > 5 else ''}; is this model made for "
            "this data set?"
        )
    return array.astype(np.int32)
