"""Local evidence as integers, so that sums are exact and theorems about sums hold bit for bit.

A model with a small receptive field gives evidence ``u[H, W, K]``: what each cell of a map says for
each class. In floating point a patch that puts 1e8 into one cell makes ``total - window`` forget
all other cells, and then no theorem about sums is true of the program (soundness, section 12.1).
So evidence is clipped to a finite range and rounded to a multiple of ``2**-bits``, once, by the
rule and by the worst case alike: both are about the same game on integers.

The *bound*: cells x largest magnitude x 2**bits < 2**31. Every sum over cells then fits ``int32``,
which every device has and adds exactly. Prefix sums may wrap around, and differences of them are
right all the same: arithmetic modulo 2**32 forgets nothing that the result keeps.

Rounding is monotone, and it happens cell by cell, so what a patch does not reach stays what it is
and what it reaches may become any integer in the range. Numbers that are not finite are read too,
or a patch could leave the game: infinities are the ends of the range, and NaN is its lower end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from certmask_jax.defenses.plain_arrays import AnyArray

CEILING = 1024.0
"""The largest magnitude of evidence where no clip below it is asked for."""

_MOST_BITS = 20
_ENTRIES_AT_ONCE = 1 << 24  # of 4 bytes

Evidence = AnyArray
Result = TypeVar("Result")  # an array, or several


@dataclasses.dataclass(frozen=True)
class Grid:
    """The integers that evidence is rounded to: ``round(u * 2**bits)``, from low to high.

    Attributes:
      bits: binary digits behind the point that are kept.
      low: the least integer, for every ``u`` below and for NaN.
      high: the largest integer, for every ``u`` above.
    """

    bits: int
    low: int
    high: int

    def __str__(self) -> str:
        ends = (f"{end / 2.0**self.bits:,.6g}" for end in (self.low, self.high))
        return f"whole numbers of 2^{-self.bits} from {' to '.join(ends)}"


def evidence_grid(cells: int, *, ceiling: float = CEILING, signed: bool = False) -> Grid:
    """The finest grid on which sums over ``cells`` cells are exact in ``int32``.

    Args:
      cells: how many cells the map has.
      ceiling: evidence is clipped to ``[0, ceiling]``; infinity is ``CEILING``.
      signed: whether it is clipped to ``[-ceiling, ceiling]`` instead.

    Raises:
      ValueError: for a ceiling that is not above 0, or for too many cells.
    """
    if not ceiling > 0:
        raise ValueError(f"clip: expected a number above 0, or infinity, got {ceiling}")
    ceiling = min(ceiling, CEILING)
    room = min((2**31 - 1) / (cells * ceiling), 2.0**_MOST_BITS)  # infinite for a tiny ceiling
    bits = math.floor(math.log2(room))
    while cells * max(1, round(ceiling * 2.0**bits)) >= 2**31:
        bits -= 1
        if bits < -10:
            raise ValueError(
                f"evidence: {cells} cells are too many for exact sums of 32 bits; "
                f"expected a map of fewer cells"
            )
    high = max(1, round(ceiling * 2.0**bits))
    return Grid(bits=bits, low=-high if signed else 0, high=high)


def quantised(evidence: Evidence, grid: Grid) -> Evidence:
    """Evidence as ``int32`` of the same shape, on the side where it is: NumPy stays NumPy."""
    xp, scaled = _scaled(evidence, grid)
    units = xp.rint(scaled).astype(np.int32)
    return xp.clip(units, np.int32(grid.low), np.int32(grid.high))


def quantised_within(evidence: Evidence, grid: Grid, error: float) -> tuple[Evidence, Evidence]:
    """The least and the most that ``quantised`` makes of evidence less than ``error`` away.

    Of the whole and the broken part of a number only the second is moved, so nothing is lost to
    rounding but ``2**-20`` of a unit, which is moved further. Of a large error that is the whole
    range.

    Args:
      evidence: any array; of numbers that are not finite nothing is meant.
      grid: what it is rounded to.
      error: 0 or more, in units of evidence.

    Returns:
      Two ``int32`` of the same shape, equal at an error of 0.
    """
    if not error:
        units = quantised(evidence, grid)
        return units, units
    xp, scaled = _scaled(evidence, grid)
    moved = error * 2.0**grid.bits
    moved += 2.0**-20 * (1 + moved)
    ends = np.int32(grid.low), np.int32(grid.high)
    if moved >= 2.0**29:
        return xp.full(evidence.shape, ends[0]), xp.full(evidence.shape, ends[1])
    whole = xp.floor(scaled)
    part, by = scaled - whole, np.asarray(moved, scaled.dtype)  # exact, and from 0 to below 1
    units = whole.astype(np.int32)
    least, most = (units + xp.rint(one).astype(np.int32) for one in (part - by, part + by))
    return xp.clip(least, *ends), xp.clip(most, *ends)


def _scaled(evidence: Evidence, grid: Grid) -> tuple[Any, Any]:
    """NumPy or JAX, and evidence in units of the grid, all of it finite and within ``2**30``."""
    host = not isinstance(evidence, Array)
    xp: Any = np if host else jnp
    if evidence.dtype not in (np.float32, np.float64):
        evidence = evidence.astype(np.float64 if host else jnp.float32)
    far = np.asarray(2.0**30, evidence.dtype)  # finite in either type, and beyond every grid
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        scaled = evidence * np.asarray(2.0**grid.bits, evidence.dtype)  # exact: a power of two
        return xp, xp.where(xp.isnan(evidence), -far, xp.clip(scaled, -far, far))


def checked_evidence(evidence: ArrayLike | Array) -> Evidence:
    """``evidence [T, H, W, K]`` as an array; ``ValueError`` for another shape or no numbers."""
    array: Evidence = evidence if isinstance(evidence, Array) else np.asarray(evidence)
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise ValueError(
            f"evidence: expected [images, height, width, classes], got the shape "
            f"{list(array.shape)}; for bands [images, bands, 1, classes]"
        )
    if array.dtype.kind not in "fiub" and array.dtype != jnp.bfloat16:
        raise ValueError(f"evidence: expected real numbers, got {array.dtype}")
    return array


def all_finite(evidence: Evidence) -> Evidence:
    """``bool[T]``: whether all evidence of an image is finite; what is not is never certified.

    ``evidence [T, ..., K]``, of cells or of bands.
    """
    within = tuple(range(1, evidence.ndim))
    if isinstance(evidence, Array):
        return jnp.isfinite(evidence).all(axis=within)
    return np.asarray(np.isfinite(evidence).all(axis=within))


def image_entries(units: Array) -> int:
    """How many numbers an image of ``units [T, ...]`` has, also where there is no image."""
    return math.prod(units.shape[1:])


def image_by_image(one: Callable[..., Result], entries: int, *arrays: Array) -> Result:
    """``one`` on each image of ``arrays [T, ...]``, as many at once as memory is meant for.

    Args:
      one: from the arrays of one image to its result, an array or a tuple of them.
      entries: how many numbers of 4 bytes one image needs meanwhile.
      arrays: of T images each.
    """
    at_once = max(1, _ENTRIES_AT_ONCE // entries)
    if arrays[0].shape[0] <= at_once:
        at_the_same_time: Result = jax.vmap(one)(*arrays)
        return at_the_same_time
    in_batches: Result = jax.lax.map(lambda image: one(*image), arrays, batch_size=at_once)
    return in_batches
