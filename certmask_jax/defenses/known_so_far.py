"""What is known of one image while its masked images are still being evaluated."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from certmask_jax.tables.outputs import NO_LABEL, Outputs


class Seen(NamedTuple):
    """What is known of one image while its masked images are being evaluated."""

    predictions: NDArray[np.integer[Any]]  # [V]; NO_LABEL where logits were not finite
    margins: NDArray[np.float16]  # [V]
    known: NDArray[np.bool_]  # [V]; entries that are not known hold anything
    confidences: NDArray[np.float16] | None = None  # [V]; None where nobody kept them

    @classmethod
    def in_row(cls, outputs: Outputs, row: int | np.integer[Any], known: NDArray[np.bool_]) -> Self:
        """What is known of image ``row`` of ``outputs [B, V]``, where ``known bool[V]`` says so."""
        said = outputs.map(lambda column: column[row])
        return cls(said.predictions, said.margins, known, said.confidences)

    def of(self, columns: NDArray[np.integer[Any]]) -> Self:
        """What is known of some of the masked images, in the order of ``columns int[V']``."""
        trust = None if self.confidences is None else self.confidences[columns]
        return self._replace(
            predictions=self.predictions[columns],
            margins=self.margins[columns],
            known=self.known[columns],
            confidences=trust,
        )

    @classmethod
    def nothing(cls, count: int) -> Self:
        """What is known of ``count`` masked images before any is evaluated."""
        return cls(np.zeros(count, np.int16), np.zeros(count, np.float16), np.zeros(count, bool))

    @property
    def sure(self) -> NDArray[np.bool_]:
        """``bool[V]``: neither a tie nor without finite logits, where known."""
        return (self.margins > 0) & (self.predictions != NO_LABEL)


def each_once(columns: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Drops repetitions, in order of first appearance."""
    return np.array(list(dict.fromkeys(columns.tolist())), columns.dtype)  # of few: no sorting
