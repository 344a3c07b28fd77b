"""The prediction table: what the undefended model says about every masked image of a test set."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages

NO_LABEL = -1
"""Stands in ``predictions`` where the logits were NaN or infinite: no label at all."""

UNKNOWN = -3
"""Stands in ``predictions`` where a masked image was not evaluated, as nothing depends on it."""


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionTable:
    """Predictions for T images under V masks each.

    Attributes:
      predictions: ``int16[T, V]``, the top-1 label, ``NO_LABEL``, or ``UNKNOWN``.
      margins: ``float16[T, V]``, top-1 minus top-2 logit; 0 is a tie. Infinite where unknown.
      confidences: ``float16[T, V]``, softmax of the top-1 label, in [0, 1].
      masked_images: the V masked images, in the order of the columns.
      num_classes: K; labels lie in ``[0, K)``.
    """

    predictions: NDArray[np.int16]
    margins: NDArray[np.float16]
    confidences: NDArray[np.float16]
    masked_images: MaskedImages
    num_classes: int

    def __post_init__(self) -> None:
        shape = np.shape(self.predictions)
        if len(shape) != 2 or shape[1] != len(self.masked_images):
            raise ValueError(
                "predictions: expected shape [images, masked images] = "
                f"[T, {len(self.masked_images)}], got {shape}"
            )
        for name in ("margins", "confidences"):
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(
                    f"{name}: expected the shape of predictions {shape}, got "
                    f"{np.shape(getattr(self, name))}"
                )

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
        return (self.margins > 0) & (self.predictions != NO_LABEL)

    def non_finite_images(self) -> NDArray[np.int64]:
        """Indices of the images that have NaN or infinite logits under some mask."""
        return np.flatnonzero((self.predictions == NO_LABEL).any(axis=1))

    def columns(self, wanted: MaskedImages) -> NDArray[np.intp]:
        """The columns of ``wanted``, ``int[V']``, matched by the pixels that they hide.

        Raises:
          ValueError: when the table lacks some of them.
        """
        if wanted is self.masked_images:
            return np.arange(len(wanted))
        _, (own, theirs) = distinct_unions.merge([self.masked_images, wanted])
        column_of = np.full(max(own.max(), theirs.max()) + 1, -1)
        column_of[own] = np.arange(len(own))
        found = column_of[theirs]
        if (found < 0).any():
            raise ValueError(
                f"expected a table with all {len(wanted)} masked images of this defense, but "
                f"{int((found < 0).sum())} are missing from its {len(own)} columns; evaluate "
                "the model for this defense first"
            )
        return found

    def take(self, rows: slice, columns: NDArray[np.intp], images: MaskedImages) -> PredictionTable:
        """Some rows and columns, in memory; ``images`` are the masked images of the columns."""
        return PredictionTable(
            np.asarray(self.predictions[rows])[:, columns],
            np.asarray(self.margins[rows])[:, columns],
            np.asarray(self.confidences[rows])[:, columns],
            images,
            self.num_classes,
        )

    def rows(self, chosen: NDArray[np.bool_]) -> PredictionTable:
        """Some rows, ``bool[T]``, in memory."""
        if chosen.all():
            return self
        return dataclasses.replace(
            self,
            predictions=np.asarray(self.predictions)[chosen],
            margins=np.asarray(self.margins)[chosen],
            confidences=np.asarray(self.confidences)[chosen],
        )

    def select(self, wanted: MaskedImages) -> PredictionTable:
        """All rows of the columns of ``wanted``; ``ValueError`` when some are missing."""
        if wanted is self.masked_images:
            return self
        return self.take(slice(None), self.columns(wanted), wanted)


def from_labels(labels: ArrayLike, images: MaskedImages, *, num_classes: int) -> PredictionTable:
    """A table of certain predictions, for hand-written cases: ``labels int[T, V]``."""
    predictions = np.asarray(labels, dtype=np.int16)
    ones = np.ones(predictions.shape, dtype=np.float16)
    return PredictionTable(predictions, ones, ones, images, num_classes)


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
