"""A model in two parts: a stem with a small field, and a head on the features that are not hidden.

The stem is run once an image and gives a map of features, of which each cell sees a small field.
The head is run once for every mask of the map. As a patch reaches a window of cells, the masks that
hide that window leave the head nothing that the patch could have changed: masks, tables, rules and
proofs are those of images, with cells in place of pixels (PatchCURE, Xiang et al., USENIX Security
2024). A mask then costs a pass of the head alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.evidence_windows import size_pair
from certmask_jax.defenses.feature_grid import cells_of, threat_on_cells
from certmask_jax.inference.cell_fields import check_fields
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.threats import Threat

Stem = Callable[[Any, Array], Array]
"""(params, normalised images floating[B, h, w, c]) -> features [B, H, W, ...]."""

Head = Callable[[Any, Array, Array], Array]
"""(params, features [B, H, W, ...], hidden bool[B, H, W]) -> logits [B, K]."""


@dataclasses.dataclass(frozen=True)
class TwoParts:
    """A model in two parts. It is a model function too, which says what both give without a mask.

    Give the same function objects each time: they key the compilation.

    Attributes:
      stem: the cell (i, j) of its features depends on the pixels from ``(i, j) * stride`` to
        ``(i, j) * stride + field``, exclusive, and on no other.
      head: nothing of a hidden cell has any influence on its logits, whatever the cell holds, NaN
        and infinity included: hidden features are chosen away (``where``), never multiplied by 0.
      field, stride: (height, width) in pixels; an int is a square.
      image_size: (height, width) of the images, in pixels.
      seen_size: (height, width) that images are resized to before the stem sees them, in whose
        pixels ``field`` and ``stride`` are; None: as they are. See ``for_images``.
      name: what results call it. A run is told from others by it, so other parts need another name.

    Raises:
      ValueError: for sizes below 1, or a field that is larger than the images.
    """

    stem: Stem = dataclasses.field(repr=False)
    head: Head = dataclasses.field(repr=False)
    field: tuple[int, int]
    stride: tuple[int, int]
    image_size: tuple[int, int]
    name: str = "two parts"
    seen_size: tuple[int, int] | None = None

    def __init__(
        self,
        stem: Stem,
        head: Head,
        *,
        field: Size,
        stride: Size,
        image_size: Size,
        name: str = "two parts",
        seen_size: Size | None = None,
    ) -> None:
        object.__setattr__(self, "stem", stem)
        object.__setattr__(self, "head", head)
        for key, size in (("field", field), ("stride", stride), ("image_size", image_size)):
            object.__setattr__(self, key, size_pair(size, key))
        object.__setattr__(self, "name", name)
        seen = None if seen_size is None else size_pair(seen_size, "seen_size")
        object.__setattr__(self, "seen_size", None if seen == self.image_size else seen)
        cells_of(self.stem_size, field=self.field, stride=self.stride)

    def __call__(self, params: Any, images: Array) -> Array:
        """``floating[B, h, w, c]``, of ``stem_size`` -> logits ``[B, K]``, with nothing hidden."""
        features = self.stem(params, images)
        hidden = jnp.zeros((features.shape[0], *self.grid), jnp.bool_)
        return self.head(params, features, hidden)

    @property
    def stem_size(self) -> tuple[int, int]:
        """``(height, width)`` of what the stem sees, in pixels."""
        return self.image_size if self.seen_size is None else self.seen_size

    @property
    def grid(self) -> tuple[int, int]:
        """``(H, W)``, the cells of the map. Masks are built for it, as if it were the image."""
        return cells_of(self.stem_size, field=self.field, stride=self.stride)

    def for_images(self, image_size: Size) -> TwoParts:
        """The same parts for images of another size, which are resized to ``stem_size``.

        Patches are then in the pixels of these images, and ``Preprocessing.resize_to`` has to be
        the ``stem_size``.
        """
        size = size_pair(image_size, "image_size")
        return dataclasses.replace(self, image_size=size, seen_size=self.stem_size)

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-able: what tells these parts from others, for the fingerprint of a run."""
        return {
            "name": self.name,
            "field": list(self.field),
            "stride": list(self.stride),
            "image_size": list(self.image_size),
            "cells": list(self.grid),
            **({} if self.seen_size is None else {"seen_size": list(self.seen_size)}),
        }

    def on_cells(self, threat: Threat) -> Threat:
        """The threat of patches on images as windows on the map, see ``threat_on_cells``.

        Raises:
          ValueError: for images of another size, or patches that reach all cells in some place.
        """
        if threat.image_size != self.image_size:
            raise ValueError(
                f"threat: expected one on images of {self.image_size}, which the parts are for, "
                f"got {threat}"
            )
        return threat_on_cells(
            threat, field=self.field, stride=self.stride, seen_size=self.seen_size
        )


def of_local_logits(local: LocalLogits, image_size: Size) -> TwoParts:
    """A model with local logits in two parts: these, and their mean over the cells that are seen.

    The sum is over what is kept, cell by cell: ``total - window`` would forget the rest where a
    patch puts large numbers into the window (soundness, 12.1). Equal models give equal parts.
    """
    return TwoParts(
        local.apply_fn,
        mean_of_kept,
        field=local.field,
        stride=local.stride,
        image_size=size_pair(image_size, "image_size"),
        name="local logits, and their mean over the cells that are seen",
    )


def mean_of_kept(params: Any, features: Array, hidden: Array) -> Array:
    """The head of local logits ``[B, H, W, K]``: their mean where ``hidden bool[B, H, W]`` is not.

    Where all is hidden the logits are 0.
    """
    del params
    seen = ~hidden[..., None]
    total = jnp.where(seen, features, 0).sum(axis=(1, 2))
    return total / jnp.maximum(seen.sum(axis=(1, 2)), 1).astype(total.dtype)


def check_parts(parts: TwoParts, params: Any, channels: int) -> None:
    """Refuses cells that see more than they are said to, and a head that sees what is hidden.

    By gradients (``check_fields``), and by NaN in hidden cells. Cheap checks, which parts that are
    built to deceive may pass.

    Args:
      channels: of the images.

    Raises:
      ValueError: for features of another shape, cells that see other pixels, or a head that sees
        hidden cells.
    """
    shape = (1, *parts.stem_size, channels)
    check_shapes(parts, params, shape, np.float32)
    check_fields(parts.stem, params, shape[1:], field=parts.field, stride=parts.stride, what="stem")
    random = np.random.default_rng(0)
    image = jnp.asarray(random.normal(size=shape), jnp.float32)
    rows, columns = parts.grid
    with unguarded():
        features = jax.jit(parts.stem)(params, image)
        hidden = jnp.asarray(random.permutation(rows * columns).reshape(1, rows, columns) % 2 == 0)
        cells = hidden.reshape(1, rows, columns, *(1,) * (features.ndim - 3))
        head = jax.jit(parts.head)
        nothing, broken = (
            np.asarray(head(params, jnp.where(cells, value, features), hidden))
            for value in (jnp.zeros((), features.dtype), jnp.full((), jnp.nan, features.dtype))
        )
    if not np.array_equal(nothing, broken, equal_nan=False) and np.isfinite(nothing).all():
        raise ValueError(
            "head: expected that no hidden cell has any influence, but NaN in hidden cells changes "
            "the logits; choose hidden features away by where(hidden, 0, features), first of all"
        )


def check_shapes(
    parts: TwoParts, params: Any, images: tuple[int, int, int, int], dtype: Any
) -> tuple[Any, int]:
    """The features of images ``(B, h, w, c)`` of ``stem_size``, as ``jax.ShapeDtypeStruct``, and K.

    Raises:
      ValueError: for a stem or a head that gives another shape.
    """
    seen = jax.ShapeDtypeStruct(images, dtype)
    rows, columns = parts.grid
    features = jax.eval_shape(parts.stem, params, seen)
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) < 3 or shape[:3] != (images[0], rows, columns):
        raise ValueError(
            f"stem: expected one array [{images[0]}, {rows}, {columns}, ...] for images "
            f"{list(images)}, as fields of {parts.field} pixels every {parts.stride} make, got "
            f"{None if shape is None else list(shape)}"
        )
    hidden = jax.ShapeDtypeStruct(shape[:3], np.bool_)
    logits = jax.eval_shape(parts.head, params, features, hidden)
    if len(logits.shape) != 2 or logits.shape[0] != images[0] or not 2 <= logits.shape[1] <= 32767:
        raise ValueError(
            f"head: expected logits [{images[0]}, K] with 2 <= K <= 32767, got {list(logits.shape)}"
        )
    return features, int(logits.shape[1])
