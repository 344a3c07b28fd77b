"""What a model says of masked images: the one list of the columns that tables have.

In memory, under ``jit``, in the masked forward pass and on the disk they are these, in this order.
Another column is another line here, and what computes it in ``inference``.
"""

# Annotations are read here, not later: fields are inherited by classes of other modules.
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Self, get_type_hints

import jax
import numpy as np
from numpy.typing import DTypeLike

NO_LABEL = -1
"""Stands in ``predictions`` where the logits were NaN or infinite: no label at all."""

UNKNOWN = -3
"""Stands in ``predictions`` where a masked image was not evaluated, as nothing depends on it."""

LARGEST_MARGIN = 65504.0
"""Of those that tables hold, in float16; larger ones are this."""

CERTAIN = 2.0
"""Stands in ``confidences`` where a label holds whatever the hidden pixels are (BoundedModel)."""


class Column(NamedTuple):
    """What a column of a table is made of."""

    dtype: DTypeLike
    unknown: float  # what stands where a masked image was not evaluated
    missing: float | str  # fill value that no block holds, for readers content with missing chunks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """What a model says of W masked images (``[W]``), or of V of each of B images (``[B, V]``).

    Arrays of one shape, of NumPy or of JAX; it passes through ``jit``, ``vmap`` and ``shard_map``.

    Attributes:
      predictions: top-1 label; ``NO_LABEL`` where a logit is NaN or infinite.
      margins: top-1 minus top-2 logit; 0 is a tie, NaN where a logit is not finite.
      confidences: softmax of the top-1 label, in [0, 1]; of bounds ``CERTAIN``, or 0.
    """

    predictions: Annotated[Any, Column(np.int16, unknown=UNKNOWN, missing=-32768)]
    margins: Annotated[Any, Column(np.float16, unknown=np.inf, missing="NaN")]
    confidences: Annotated[Any, Column(np.float16, unknown=0, missing="NaN")]

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in SCHEMA)

    def map(self, function: Callable[[Any], Any]) -> "Outputs":
        """Outputs whose columns are these, each through ``function``."""
        return Outputs(*map(function, self))

    @classmethod
    def unknown(cls, shape: tuple[int, ...]) -> Self:
        """NumPy arrays of that shape of which nothing is known yet."""
        return cls(*(np.full(shape, one.unknown, one.dtype) for one in SCHEMA.values()))

    @property
    def known(self) -> Any:
        """``bool``, of the same shape: the masked image was evaluated."""
        return self.predictions != UNKNOWN


SCHEMA: Mapping[str, Column] = MappingProxyType(
    {
        name: hint.__metadata__[0]
        for name, hint in get_type_hints(Outputs, include_extras=True).items()
    }
)
"""The columns by name, in the order in which they are given and stored."""
