"""What interval bounds make of each operation, rounded outward by what float32 may lose.

For each operation, and intervals of what it is given, an interval that holds whatever a device may
compute of numbers in them. Losses are those of Higham (Accuracy and Stability of Numerical
Algorithms, 2002, sections 3.1 and 4.2): a sum of n products is off by at most n u / (1 - n u) of
the sum of their sizes, in whichever order it is taken; u is 2^-24.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_UNIT = 2.0**-24
_ONE_STEP = 2.0**-21  # of a product or a sum of two, however it is fused or rewritten
_FUNCTION = 2.0**-17  # of tanh and its like, as libraries compute them
LEAST = 2.0**-120
"""What is lost, for each term of a sum, where numbers are too small for float32."""


class Interval(NamedTuple):
    """All numbers between two, entry by entry."""

    lower: Array
    upper: Array

    @property
    def middle(self) -> Array:
        """Half way."""
        return self.lower / 2 + self.upper / 2

    @property
    def radius(self) -> Array:
        """Half the width."""
        return self.upper / 2 - self.lower / 2

    @property
    def most(self) -> Array:
        """The greatest size of a number in it."""
        return jnp.maximum(jnp.abs(self.lower), jnp.abs(self.upper))


def sum_loss(terms: int) -> float:
    """What a sum of so many products may lose, of the sum of their sizes, with that of its bounds.

    Four times the loss of one sum: that of the model, of the middle, of the radius, and of what is
    left over (soundness, section 16).
    """
    lost = (terms + 8) * _UNIT
    return 4 * lost / (1 - lost) if lost < 0.5 else math.inf


def outward(bounds: Interval, share: float = _ONE_STEP) -> Interval:
    """Bounds that are wider by a share of their sizes, and by the least."""
    lower, upper = bounds
    return _finite(
        Interval(lower - share * jnp.abs(lower) - LEAST, upper + share * jnp.abs(upper) + LEAST)
    )


def _finite(bounds: Interval) -> Interval:
    """NaN where an end is infinite: what follows may be NaN, which no interval holds."""
    usable = jnp.isfinite(bounds.lower) & jnp.isfinite(bounds.upper)
    return Interval(*(jnp.where(usable, end, jnp.nan) for end in bounds))


_Rule = Callable[[Any, list[Any]], Interval | None]


def _ends(value: Any) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, value)


def _alike(operation: Any, values: list[Any]) -> Interval:
    """Of what moves numbers, or takes the largest or the smallest: of each end by itself."""
    both = [
        operation.primitive.bind(*(_ends(value)[end] for value in values), **operation.params)
        for end in (0, 1)
    ]
    if operation.primitive.multiple_results:
        both = [one[0] for one in both]
    return Interval(*both)


def _of_first(operation: Any, values: list[Any]) -> Interval | None:
    """The same, where only the first may depend on the image: others say where, not what."""
    if any(isinstance(value, Interval) for value in values[1:]):
        return None
    return _alike(operation, values)


def _of_cases(operation: Any, values: list[Any]) -> Interval | None:
    """The same, where the first may not: it says which."""
    return None if isinstance(values[0], Interval) else _alike(operation, values)


def _convert(operation: Any, values: list[Any]) -> Interval | None:
    if operation.outvars[0].aval.dtype != jnp.float32:
        return None
    return _alike(operation, values)


def _neg(operation: Any, values: list[Any]) -> Interval:
    return Interval(-values[0].upper, -values[0].lower)


def _add(operation: Any, values: list[Any]) -> Interval:
    one, other = map(_ends, values)
    return outward(Interval(one.lower + other.lower, one.upper + other.upper))


def _sub(operation: Any, values: list[Any]) -> Interval:
    one, other = map(_ends, values)
    return outward(Interval(one.lower - other.upper, one.upper - other.lower))


def _mul(operation: Any, values: list[Any]) -> Interval:
    one, other = map(_ends, values)
    products = [a * b for a in one for b in other]
    return outward(_hull(products))


def _div(operation: Any, values: list[Any]) -> Interval | None:
    if isinstance(values[1], Interval):
        return None
    return outward(_hull([values[0].lower / values[1], values[0].upper / values[1]]))


def _square(operation: Any, values: list[Any]) -> Interval | None:
    if operation.params.get("y", 2) != 2:
        return None
    (given,) = values
    ends = _hull([given.lower**2, given.upper**2])
    crosses = (given.lower < 0) & (given.upper > 0)
    return outward(Interval(jnp.where(crosses, 0, ends.lower), ends.upper))


def _hull(many: list[Array]) -> Interval:
    lower = upper = many[0]
    for one in many[1:]:
        lower, upper = jnp.minimum(lower, one), jnp.maximum(upper, one)
    return Interval(lower, upper)


def _monotone(operation: Any, values: list[Any]) -> Interval:
    return outward(_alike(operation, values), _FUNCTION)


def _summed(terms: Callable[[Any], int]) -> _Rule:
    def rule(operation: Any, values: list[Any]) -> Interval:
        ends = _alike(operation, values)
        size = operation.primitive.bind(values[0].most, **operation.params)
        lost = sum_loss(terms(operation)) * size + terms(operation) * LEAST
        return _finite(Interval(ends.lower - lost, ends.upper + lost))

    return rule


def _terms_of_axes(operation: Any) -> int:
    shape = operation.invars[0].aval.shape
    return math.prod(shape[axis] for axis in operation.params["axes"])


def _terms_of_window(operation: Any) -> int:
    return math.prod(operation.params["window_dimensions"])


def _product(operation: Any, values: list[Any]) -> Interval | None:
    """A dense layer or a convolution: the middle, and the sizes of the weights on the radius."""
    if isinstance(values[0], Interval) == isinstance(values[1], Interval):
        return None
    if operation.outvars[0].aval.dtype != jnp.float32:
        return None
    if not _is_highest(operation.params["precision"]):
        raise ValueError(
            "interval bounds: expected products of the highest precision, got one whose model asks "
            f"for {operation.params['precision']}; leave it out"
        )
    which = 0 if isinstance(values[0], Interval) else 1
    box, weights = values[which], values[1 - which]
    terms = _terms_of_product(operation)

    def with_weights(numbers: Array, own: Array) -> Array:
        operands = (numbers, own) if which == 0 else (own, numbers)
        product: Array = operation.primitive.bind(*operands, **operation.params)
        return product

    middle = with_weights(box.middle, weights)
    radius = box.radius + sum_loss(terms) * box.most
    spread = with_weights(radius, jnp.abs(weights)) + terms * LEAST
    return _finite(Interval(middle - spread, middle + spread))


def _is_highest(precision: Any) -> bool:
    both = precision if isinstance(precision, tuple) else (precision,)
    return all(one == jax.lax.Precision.HIGHEST for one in both)


def _terms_of_product(operation: Any) -> int:
    if operation.primitive.name == "dot_general":
        (contracted, _), _ = operation.params["dimension_numbers"]
        shape = operation.invars[0].aval.shape
        return math.prod(shape[axis] for axis in contracted)
    weights = operation.invars[1].aval.shape
    made = weights[operation.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(weights) // made


RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        ("reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "rev",
         "copy", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min",
         "max", "min", "concatenate", "pad", "clamp", "stop_gradient"),
        _alike,
    ),
    **dict.fromkeys(("gather", "dynamic_slice"), _of_first),
    "select_n": _of_cases,
    "convert_element_type": _convert,
    "neg": _neg,
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "square": _square,
    "integer_pow": _square,
    **dict.fromkeys(("tanh", "logistic", "exp", "erf"), _monotone),
    "reduce_sum": _summed(_terms_of_axes),
    "reduce_window_sum": _summed(_terms_of_window),
    "dot_general": _product,
    "conv_general_dilated": _product,
}  # fmt: skip
"""What is known of operations, by the names that JAX gives them: None for a use that is not."""

_MOVES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "copy"}  # with derivatives

AFFINE_AFTER = _MOVES | {"mul", "div", "gather", "slice"}
"""What may follow the last dense layer, of one thing that depends on the image; and one sum."""

AFFINE_BEFORE = _MOVES - {"broadcast_in_dim"} | {"mul", "div", "reduce_sum"}
"""What may stand right before it: nothing by which weights of both signs would meet."""
