"""Convolutions with a kernel of its own for each channel, in a form that suits CPUs."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax.models import layers

FORMULATIONS = ("convolution", "shifts")


class DepthwiseConv(layers.Module):
    """A kernel of its own for each channel: ``[B, h, w, c]`` -> ``[B, ceil(h/s), ceil(w/s), c]``.

    Without padding there are ``floor((h - size) / s) + 1`` rows, and columns alike.

    Attributes:
      size, stride: of the kernel, s.
      formulation: ``"shifts"`` sums the products of shifted images with the kernel's entries, which
        compilers for CPUs fuse (there XLA's own grouped convolution takes 4 to 30 times as long);
        ``"convolution"`` is the compiler's. The numbers are the same up to rounding.
      padding: ``"SAME"`` as TensorFlow's, or ``"VALID"`` for none.
    """

    size: int
    stride: int
    formulation: str = "shifts"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, 1, x.shape[-1])
        init = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=(2, 3))
        dtype = self.dtype or x.dtype
        kernel = self.param("kernel", init, shape, self.param_dtype).astype(dtype)
        x = x.astype(dtype)
        if self.formulation == "shifts":
            return by_shifts(x, kernel, self.stride, self.padding)
        if self.formulation != "convolution":
            raise ValueError(
                f"formulation: expected one of {', '.join(FORMULATIONS)}, got {self.formulation!r}"
            )
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_shifts(x: Array, kernel: Array, stride: int, padding: str = "SAME") -> Array:
    """The convolution as a sum of ``size * size`` products, in the order of the kernel's rows.

    Its derivative with respect to x is a sum of shifts too, for which compilers need two thirds of
    the time that they need for what transposing each product gives.

    Args:
      x: ``floating[B, h, w, c]``.
      kernel: ``[size, size, 1, c]``.
      stride: s.
      padding: as ``DepthwiseConv.padding``.

    Returns:
      ``[B, ceil(h/s), ceil(w/s), c]``, padded as TensorFlow's "SAME"; smaller without padding.
    """
    return _summed(x, kernel, stride, padding)


def _summed(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    size = kernel.shape[0]
    spans, margins = [], []
    for side in x.shape[1:3]:
        before, span = _margin_and_span(side, size, stride, padding)
        margins.append((before, span + size - 1 - side - before, 0))
        spans.append(span)
    return _products(_padded(x, margins), kernel, spans, stride)


def _forward(
    x: Array, kernel: Array, stride: int, padding: str
) -> tuple[Array, tuple[Array, Array]]:
    return _summed(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: str, kept: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    _, of_kernel = jax.vjp(lambda shifted: _summed(x, shifted, stride, padding), kernel)
    size = kernel.shape[0]
    margins = []
    for side in x.shape[1:3]:  # what a pixel went into is spread out, and looked at the other way
        before, span = _margin_and_span(side, size, stride, padding)
        margins.append((size - 1 - before, side - span + before, stride - 1))
    spread = _padded(slope, margins)
    return _products(spread, kernel[::-1, ::-1], x.shape[1:3], 1), of_kernel(slope)[0]


by_shifts.defvjp(_forward, _backward)


def _margin_and_span(side: int, size: int, stride: int, padding: str) -> tuple[int, int]:
    """How many pixels of padding come first, and how many the first to the last shift span."""
    if padding == "VALID":
        return 0, (side - size) // stride * stride + 1
    span = (-(-side // stride) - 1) * stride + 1
    return max(span + size - 1 - side, 0) // 2, span


def _padded(x: Array, margins: list[tuple[int, int, int]]) -> Array:
    """Zeros around (negative: cut off) and between: (before, after, between) of each side."""
    none = (0, 0, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), (none, *margins, none))


def _products(padded: Array, kernel: Array, spans: Any, stride: int) -> Array:
    height, width = spans
    parts = [
        padded[:, i : i + height : stride, j : j + width : stride]
        * kernel[i, j, 0][None, None, None]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return sum(parts[1:], parts[0])
