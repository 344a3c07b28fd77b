"""Finite planes: points and lines such that every two points lie on one common line.

In the affine plane AG(2, q) the points are the pairs of elements of the field of q elements, the
lines the q^2 + q solution sets of ``x = c`` and ``y = m x + b``. Each line has q points, and two
points share exactly one line. Such a field exists if and only if q is a power of a prime. The Fano
plane, the projective plane of order 2, has 7 points and 7 lines of 3 points.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

# A field is found by trying polynomials; far beyond any useful number of masks.
_LARGEST_ORDER = 64


def affine_lines(order: int) -> NDArray[np.int64]:
    """The lines of AG(2, q), q = ``order``: ``int64[q^2 + q, q]``, point ``q * x + y``.

    The q lines of constant x come first, then those of slope 0, and so on.

    Raises:
      ValueError: unless q is a prime power of at least 2 and at most 64.
    """
    add, times = field_tables(order)
    elements = np.arange(order)
    steep = [order * c + elements for c in elements]
    others = [order * elements + add[times[m], b] for m in elements for b in elements]
    return np.stack(steep + others)


def fano_lines() -> NDArray[np.int64]:
    """The 7 lines of the Fano plane over the points 0 to 6: ``{i, i + 1, i + 3}`` modulo 7."""
    return np.sort((np.arange(7)[:, None] + [0, 1, 3]) % 7, axis=1)


def field_tables(order: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Addition and multiplication of the field of q = ``order`` elements, ``int64[q, q]`` each.

    With q = p^d, element e stands for the polynomial whose coefficients are the digits of e to the
    base p, lowest first; polynomials are multiplied modulo the first irreducible one of degree d.

    Raises:
      ValueError: unless q is a prime power of at least 2 and at most 64.
    """
    prime, degree = _prime_power(order)
    digits = np.arange(order)[:, None] // prime ** np.arange(degree) % prime  # [q, d]
    add = _number((digits[:, None] + digits[None]) % prime, prime)
    for lowest in range(order):
        # x^d = -(the rest of the monic polynomial x^d + ... )
        rest = -digits[lowest] % prime
        times = _products(digits, rest, prime)
        # The polynomial is irreducible if and only if there are no divisors of zero.
        if times[1:, 1:].all():
            return add, times
    raise AssertionError("every prime power has an irreducible polynomial")


def _products(digits: NDArray[np.int64], rest: NDArray[np.int64], prime: int) -> NDArray[np.int64]:
    """All products of polynomials ``digits int[q, d]`` where ``x^d = rest``."""
    degree = digits.shape[1]
    product = np.zeros((len(digits), len(digits), 2 * degree - 1), dtype=np.int64)
    for i, j in itertools.product(range(degree), repeat=2):
        product[..., i + j] += digits[:, None, i] * digits[None, :, j]
    for power in range(2 * degree - 2, degree - 1, -1):
        product[..., power - degree : power] += product[..., power, None] % prime * rest
    return _number(product[..., :degree] % prime, prime)


def _number(digits: NDArray[np.int64], prime: int) -> NDArray[np.int64]:
    return digits @ prime ** np.arange(digits.shape[-1])


def _prime_power(order: int) -> tuple[int, int]:
    """``(p, d)`` with ``p ** d == order``."""
    if isinstance(order, int | np.integer) and 2 <= order <= _LARGEST_ORDER:
        prime = next(p for p in range(2, order + 1) if order % p == 0)
        degree = next(d for d in itertools.count(1) if prime**d >= order)
        if prime**degree == order:
            return prime, degree
    raise ValueError(
        "plane: expected an order q that is a prime power from 2 to "
        f"{_LARGEST_ORDER} (2, 3, 4, 5, 7, 8, 9, ...), as there is no field of another size, got "
        f"{order!r}"
    )
