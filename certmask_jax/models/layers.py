"""Linen's layers, which take the parameters that they are given without making others first.

Whenever a model is applied, Linen traces the initial values of each parameter again, to compare
their shape with that of what it was given. That is nearly half of the time that a trace of a model
takes, and of the start of a program that makes several. These layers compare the shapes alone.

Convolutions of single pixels are products here. On a CPU XLA makes products of them anyway, with
the same bits (up to jax 0.11). On an NVIDIA GPU in float32 cuDNN's convolutions were half of the
time of an EfficientNet-Lite0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_SHAPES_ALONE: ContextVar[bool] = ContextVar("shapes_alone", default=False)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Lets initial values be zeros of their shape and type, for those who ask for these alone."""
    token = _SHAPES_ALONE.set(True)
    try:
        yield
    finally:
        _SHAPES_ALONE.reset(token)


def _zeros(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    del key
    return jnp.zeros(shape, dtype)


class Module(nn.Module):
    """A module whose parameters have initial values ``init_fn(key, shape, dtype)``."""

    def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **how: Any) -> Any:
        """The parameter of that name: what was given, or else its initial values; see Linen's."""
        scope = self.scope
        if scope is not None and init_args and not how and scope.has_variable("params", name):
            given = scope.get_variable("params", name)
            if np.shape(given) == tuple(init_args[0]):  # else Linen says what it expected
                scope.reserve(name, "params")
                return given
        if _SHAPES_ALONE.get() and len(init_args) == 2 and not how:
            init_fn = _zeros
        return super().param(name, init_fn, *init_args, **how)


class Dense(Module, nn.Dense):
    """``nn.Dense``."""


class Conv(Module, nn.Conv):
    """``nn.Conv``; of single pixels, side by side and with a batch, as a product."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        plain = (1, (1, 1), None)
        sides = (self.strides, self.input_dilation, self.kernel_dilation)
        if (
            self.kernel_size != (1, 1)
            or inputs.ndim != 4
            or self.feature_group_count != 1
            or self.mask is not None
            or self.precision is not None
            or self.padding not in ("SAME", "VALID")
            or any(side not in plain for side in sides)
        ):
            return super().__call__(inputs)
        shape = (1, 1, inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        promoted: Any = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        made = pixel_products(*promoted[:2])
        return made if bias is None else made + promoted[2][None, None, None]


def pixel_products(x: Array, kernel: Array) -> Array:
    """A convolution of single pixels: ``[B, h, w, c]``, ``[1, 1, c, d]`` -> ``[B, h, w, d]``."""
    return jax.lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


class QkvParameters(Module):
    """What has the parameters of ``nn.Dense(3 * D)``: of queries, keys and values, side by side."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    def with_parameters(self, x: Array) -> tuple[Array, Array, Array]:
        """``x [..., D]``, the kernel ``[D, 3 D]`` and the bias ``[3 D]``, of one dtype."""
        width = x.shape[-1]
        shape = (width, 3 * width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
        promoted: Any = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return promoted[0], promoted[1], promoted[2]


class BatchNorm(Module, nn.BatchNorm):
    """``nn.BatchNorm``."""


class LayerNorm(Module, nn.LayerNorm):
    """``nn.LayerNorm``."""
