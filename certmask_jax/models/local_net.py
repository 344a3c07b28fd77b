"""Nets of local logits: what BagNets (Brendel and Bethge, 2019) and their kin have in common.

Each place of a map sees few pixels and has logits of its own; the logits of the image are their
mean. A patch reaches only the places whose field it meets, which robust masking builds on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers


def field_and_stride(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """What a place sees, and the distance of two, in pixels: after ``(kernel, stride)`` layers."""
    field, step = 1, 1
    for kernel, stride in layers:
        field, step = field + (kernel - 1) * step, step * stride
    return field, step


class LocalNet(layers.Module):
    """Images ``float32[B, h, w, c]`` -> logits ``float32[B, K]``, the mean local logits.

    A subclass names its ``convolutions``, which have no padding, and computes ``_logits``, which
    end in ``head``.
    """

    def __call__(self, x: Array) -> Array:
        return self._logits(x, is_local=False)

    def local_logits(self, x: Array) -> Array:
        """Logits of every place: ``float32[B, h, w, c]`` -> ``float32[B, Fh, Fw, K]``.

        The one at ``(i, j)`` sees the pixels from ``(i, j) * stride`` to
        ``(i, j) * stride + receptive_field``, exclusive, and no other. For ``module.apply(params,
        images, method="local_logits")``. Their mean is the model's logits up to rounding.
        """
        return self._logits(x, is_local=True)

    @property
    def convolutions(self) -> list[tuple[int, int]]:
        """``(kernel, stride)`` of each convolution that is not 1 x 1 with a stride of 1."""
        raise NotImplementedError

    @property
    def receptive_field(self) -> int:
        """Side in pixels of what a local logit sees."""
        return field_and_stride(self.convolutions)[0]

    @property
    def stride(self) -> int:
        """Pixels between the fields of neighbouring local logits."""
        return field_and_stride(self.convolutions)[1]

    def check_size(self, input_size: tuple[int, int]) -> None:
        """``ValueError`` for images of ``(height, width)`` smaller than the receptive field."""
        if min(input_size) < self.receptive_field:
            raise ValueError(
                f"input_size: expected at least {self.receptive_field}x{self.receptive_field}, "
                f"what a local logit sees, got {input_size[0]}x{input_size[1]}"
            )

    def _logits(self, x: Array, *, is_local: bool) -> Array:
        raise NotImplementedError


def head(x: Array, num_classes: int, *, param_dtype: Any, name: str, is_local: bool) -> Array:
    """The linear layer, in float32, of each place or of their mean, as a part of what calls it.

    ``[B, Fh, Fw, D]`` -> ``float32[B, Fh, Fw, K]``, or ``float32[B, K]``.
    """
    x = x.astype(jnp.float32)
    if not is_local:
        x = x.mean(axis=(1, 2))  # before the linear layer, which it commutes with: cheaper
    linear = layers.Dense(num_classes, dtype=jnp.float32, param_dtype=param_dtype, name=name)
    logits: Array = linear(x)
    return logits
