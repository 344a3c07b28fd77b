"""Interval bounds, operation by operation, of any function that JAX can trace.

A function is traced for one image, and its operations are done one after another: as they are where
nothing depends on the image, and by their rules (``interval_rules``) where something does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from certmask_jax.inference.interval_rules import RULES, Interval

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
"""Operations that stand for others, and the parameter that has these."""


class Walk:
    """The operations of a function, and what is known of each of its numbers."""

    def __init__(self, jaxpr: Any, known: dict[Any, Any], output: int = 0) -> None:
        self._known = known
        self.operations = list(jaxpr.eqns)
        self.output = jaxpr.outvars[output]
        for operation in self.operations:
            values = [self.value(number) for number in operation.invars]
            for number, value in zip(operation.outvars, done(operation, values), strict=True):
                known[number] = value

    def value(self, number: Any) -> Any:
        """An array that does not depend on the image, or an interval."""
        return _literal(number) if isinstance(number, core.Literal) else self._known[number]

    def interval(self, number: Any) -> Interval:
        """The same as an interval."""
        value = self.value(number)
        return value if isinstance(value, Interval) else Interval(value, value)

    def depends(self, number: Any) -> bool:
        """Whether it depends on the image."""
        return isinstance(self.value(number), Interval)


def walked(function: Callable[..., Any], params: Any, lower: Array, upper: Array) -> Walk:
    """The operations of a function of one image, with all that is known of them.

    Args:
      function: ``(params, float32[1, ...]) -> one array``.
      params: its parameters.
      lower, upper: ``float32[1, ...]``, the ends of the box.

    Raises:
      ValueError: for an operation of which no bounds are known; for more arrays than one.
    """
    leaves, structure = jax.tree.flatten(params)

    def flat(*inputs: Any) -> Any:
        return function(jax.tree.unflatten(structure, inputs[:-1]), inputs[-1])

    closed = jax.make_jaxpr(flat)(*leaves, lower)
    jaxpr, consts, output = closed.jaxpr, closed.consts, 0
    if len(jaxpr.outvars) != 1:
        raise ValueError(
            f"interval bounds: expected a model that gives one array, got {len(jaxpr.outvars)}"
        )
    values = [*map(jnp.asarray, leaves), Interval(lower, upper)]
    # A model that is jitted as a whole is one operation. Its last layer is found inside.
    while len(jaxpr.eqns) == 1 and (inner := _inner(jaxpr.eqns[0])) is not None:
        (operation,) = jaxpr.eqns
        if jaxpr.outvars[output] not in operation.outvars:
            break
        known = _begun(jaxpr, consts, values)
        values = [
            _literal(n) if isinstance(n, core.Literal) else known[n] for n in operation.invars
        ]
        output = operation.outvars.index(jaxpr.outvars[output])
        jaxpr, consts = inner
    return Walk(jaxpr, _begun(jaxpr, consts, values), output)


def _begun(jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    """What is known before the first operation."""
    numbers = [*jaxpr.constvars, *jaxpr.invars]
    return dict(zip(numbers, [*consts, *values], strict=True))


def _literal(number: Any) -> Array:
    return jnp.asarray(number.val, number.aval.dtype)


def _inner(operation: Any) -> tuple[Any, Sequence[Any]] | None:
    """The operations that one stands for, with their constants; None for one of its own."""
    inner = operation.params.get(_CALLS.get(operation.primitive.name, ""))
    if inner is None:
        return None
    return (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())


def done(operation: Any, values: list[Any]) -> list[Any]:
    """What one operation gives: arrays where nothing depends on the image, else an interval.

    Raises:
      ValueError: for one of which no bounds are known; names it.
    """
    inner = _inner(operation)
    if inner is not None:
        jaxpr, consts = inner
        walk = Walk(jaxpr, _begun(jaxpr, consts, values))
        return [walk.value(number) for number in jaxpr.outvars]
    if not any(isinstance(value, Interval) for value in values):
        given = operation.primitive.bind(*values, **operation.params)
        return list(given) if operation.primitive.multiple_results else [given]
    name = operation.primitive.name
    rule = RULES.get(name)
    bounds = None if rule is None else rule(operation, values)
    if bounds is None:
        raise ValueError(
            "interval bounds: expected a model of convolutions, dense layers, norms with stored "
            "statistics, pooling, ReLU, tanh and the like, without matrix products of two things "
            f"that both depend on the image (attention); got one with {name}, of which no bounds "
            "are known; plain_digits and cifar_plain have bounds"
        )
    return [bounds]
