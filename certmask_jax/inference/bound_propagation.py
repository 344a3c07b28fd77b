"""Interval bounds of a model: what its logits can be at most and at least, of images in a box.

Interval bound propagation (Gowal et al., 2018), for any function that JAX can trace: its operations
are walked one by one, each with the least and the greatest that its numbers can be. A patch is a
box of images: what it covers may be anything, and the rest is what it is (Chiang et al., 2020).

Bounds hold for what a device computes and not only for real numbers: each is rounded outward by
what float32 may lose there, in whichever order sums are taken (soundness, section 16). Products are
those of the highest precision, whatever JAX is set to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core

from certmask_jax.inference.interval_rules import (
    AFFINE_AFTER,
    AFFINE_BEFORE,
    LEAST,
    Interval,
    outward,
    sum_loss,
)
from certmask_jax.inference.interval_walk import Walk, done, walked

_MOST_OF_TAIL = 1 << 24  # numbers of a matrix of differences


class LogitBounds(NamedTuple):
    """What a model says of B boxes of images."""

    middle: Array  # float32[B, K], between the bounds; of one image its logits, about
    leads: Array  # float32[B, K]: by how much each class is before all others at the least; -inf
    # for all where numbers are not finite


def interval_bounds(
    function: Callable[..., Any], params: Any, lower: Array, upper: Array
) -> Interval:
    """Bounds of ``function(params, x)`` for all x between ``lower`` and ``upper``, traceable.

    Each image is bounded by itself, as what a model says of one depends on no other.

    Args:
      function: ``(params, float32[B, ...]) -> float32[B, ...]``, of convolutions, dense layers,
        norms with stored statistics, pooling, ReLU, tanh and the like; see ``interval_rules``.
      params: its parameters, any pytree; as they are.
      lower, upper: ``float32[B, ...]``, at most and at least.

    Returns:
      Lower and upper bounds of the shape of what it gives.

    Raises:
      ValueError: for a function with an operation of which no bounds are known, such as a matrix
        product of two things that both depend on the image (attention); names it. For one that
        gives anything but one array.
    """

    def one(walk: Walk) -> Interval:
        bounds = walk.interval(walk.output)
        return Interval(bounds.lower[0], bounds.upper[0])

    bounds: Interval = _each(one, function, params, lower, upper)
    return bounds


def logit_bounds(
    function: Callable[..., Any], params: Any, lower: Array, upper: Array
) -> LogitBounds:
    """By how much each class is before all others at the least, over boxes of images; traceable.

    Where a dense layer is the last, two logits are bounded together: what raises both by as much
    brings neither before the other, so the bounds of their difference are closer than the
    difference of their bounds (Gowal et al., 2018, section 3).

    Args:
      function: a classifier, ``(params, float32[B, h, w, c]) -> float32[B, K]``, as of
        ``interval_bounds``.
      params, lower, upper: as there.

    Raises:
      ValueError: as of ``interval_bounds``; for a function that gives no ``[B, K]``.
    """

    def one(walk: Walk) -> LogitBounds:
        differences = _differences(walk)
        own = jnp.eye(differences.shape[0], dtype=bool)
        leads = jnp.where(own, jnp.inf, differences).min(axis=1)
        middle = walk.interval(walk.output).middle[0]
        usable = jnp.isfinite(middle).all() & ~jnp.isnan(differences).any()
        return LogitBounds(middle, jnp.where(usable, leads, -jnp.inf))

    bounds: LogitBounds = _each(one, function, params, lower, upper)
    return bounds


def least_differences(
    function: Callable[..., Any], params: Any, lower: Array, upper: Array
) -> Array:
    """Lower bounds of all differences of two logits, ``float32[B, K, K]``: first less second.

    0 for a class and itself. Arguments and errors are those of ``logit_bounds``.
    """

    def one(walk: Walk) -> Array:
        differences = _differences(walk)
        return jnp.where(jnp.eye(differences.shape[0], dtype=bool), 0, differences)

    least: Array = _each(one, function, params, lower, upper)
    return least


def check_model(
    function: Callable[..., Any], params: Any, image_shape: tuple[int, int, int]
) -> None:
    """Raises the ``ValueError`` of ``logit_bounds`` where it would; nothing is evaluated.

    Args:
      function: a classifier.
      params: its parameters, or their shapes.
      image_shape: ``(h, w, c)`` as it sees them.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(lambda held, x: logit_bounds(function, held, x, x), params, image)


def _each(
    asked: Callable[[Walk], Any],
    function: Callable[..., Any],
    params: Any,
    lower: Array,
    upper: Array,
) -> Any:
    """What is asked of the bounds of each image; what depends on none is computed once."""
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda low, high: asked(walked(function, params, low[None], high[None])))(
            lower, upper
        )


def _differences(walk: Walk) -> Array:
    """Lower bounds of all differences of two logits, ``float32[K, K]``, of one image.

    By the last layer, if that is a dense one.
    """
    logits = walk.interval(walk.output)
    if logits.lower.ndim != 2 or len(logits.lower) != 1:
        raise ValueError(
            "interval bounds: expected a model that gives logits [B, K], got "
            f"{list(logits.lower.shape)} of one image"
        )
    gaps = logits.lower.T - logits.upper
    apart = outward(Interval(gaps, gaps)).lower
    tail, start = _tail(walk)
    box = walk.interval(start)
    classes, width = logits.lower.size, box.lower.size
    if not tail or classes * classes * width > _MOST_OF_TAIL:
        return apart

    def logits_of(features: Array) -> Array:
        known = {start: features}
        for operation in tail:
            values = [
                walk.value(n) if isinstance(n, core.Literal) or n not in known else known[n]
                for n in operation.invars
            ]
            (known[operation.outvars[0]],) = done(operation, values)
        return known[walk.output][0]

    # What follows the box is affine, so its derivative is its weights, wherever it is taken.
    bias, pulled = jax.vjp(logits_of, jnp.zeros(box.lower.shape))
    weights = jax.vmap(lambda one: pulled(one)[0])(jnp.eye(classes)).reshape(classes, width)
    middle, radius, most = (one.reshape(width) for one in (box.middle, box.radius, box.most))
    between = weights[:, None] - weights[None]  # [K, K, width]
    exact = between @ middle + (bias[:, None] - bias[None])
    size = jnp.abs(weights) @ most + jnp.abs(bias)
    lost = sum_loss(width + 32) * (size[:, None] + size[None]) + width * LEAST
    return exact - jnp.abs(between) @ radius - lost


def _tail(walk: Walk) -> tuple[list[Any], Any]:
    """The last operations, one dense layer among them, and the number that they are made of.

    One constant may be added at most: of two that cancel the rounding would be lost.
    """
    made_by = {number: operation for operation in walk.operations for number in operation.outvars}
    tail: list[Any] = []
    number, has_dense, has_sum = walk.output, False, False
    while not isinstance(number, core.Literal) and number in made_by:
        operation = made_by[number]
        name = operation.primitive.name
        depending = [n for n in operation.invars if walk.depends(n)]
        if len(depending) != 1:
            break
        if name in ("add", "sub"):
            if has_sum or has_dense:
                break
            has_sum = True
        elif name == "dot_general" and not has_dense:
            has_dense = True
        elif name not in (AFFINE_BEFORE if has_dense else AFFINE_AFTER) or _divides(
            operation, depending[0]
        ):
            break
        tail.append(operation)
        number = depending[0]
    return (tail[::-1], number) if has_dense else ([], number)


def _divides(operation: Any, number: Any) -> bool:
    """Whether something is divided by that number."""
    return operation.primitive.name == "div" and operation.invars[1] is number
