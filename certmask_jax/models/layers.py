"""Linen's layers, which take the parameters that they are given without making others first.

Whenever a model is applied, Linen traces the initial values of each parameter again, to compare
their shape with that of what it was given. That is nearly half of the time that a trace of a model
takes, and of the start of a program that makes several. These layers compare the shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np


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
        return super().param(name, init_fn, *init_args, **how)


class Dense(Module, nn.Dense):
    """``nn.Dense``."""


class Conv(Module, nn.Conv):
    """``nn.Conv``."""


class BatchNorm(Module, nn.BatchNorm):
    """``nn.BatchNorm``."""


class LayerNorm(Module, nn.LayerNorm):
    """``nn.LayerNorm``."""
