"""CertMask's tilings: masks of one size that hide every location k times.

Per axis, n is the image, p the patch and q the mask size, in pixels. There are P = n - p + 1
locations, and a mask hides e = q - p + 1 consecutive ones (not q - p, as CertMask prints).
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Literal

import numpy as np

from certmask_jax.masks import geometry
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.intervals import boxes_of, checked_mask_size, clipped, wrapped
from certmask_jax.masks.mask_set import MaskSet

Coverage = int | tuple[int, int]
"""CertMask's k, or its factors ``(m, n)``: m-fold over the rows times n-fold over the columns."""


def repeated(masks: MaskSet, *, coverage: int) -> MaskSet:
    """Lists all masks ``coverage`` times over: a k-fold cover by repetition.

    A repeated mask has that many votes and is evaluated once (``masked_images``).
    """
    if not isinstance(coverage, int | np.integer) or coverage < 1:
        raise ValueError(f"coverage: expected an int of at least 1, got {coverage!r}")
    boxes = np.tile(masks.boxes, (int(coverage), 1, 1))
    return dataclasses.replace(masks, boxes=boxes, promise=masks.promise * int(coverage))


def replicated(image_size: Size, patch_size: Size, *, mask_size: Size, coverage: int) -> MaskSet:
    """CertMask's replicated tiling as printed: one tiling, every mask ``coverage`` times.

    An axis has ``ceil(n / (q - p))`` masks, centred at multiples of ``q - p`` (CertMask, Theorem
    2 with r = p / 2), cut at the border. The printed count wastes a location per mask:
    ``tight_grid`` needs ``ceil(P / (q - p + 1))``.

    Raises:
      CoverageError: where the printed tiling leaves a hole; it is not repaired.
      ValueError: unless patch < mask <= image on both axes.
    """
    once = offset(image_size, patch_size, mask_size=mask_size, coverage=(1, 1), wrap=False)
    named = dataclasses.replace(once, name="replicated")
    return repeated(named, coverage=coverage)


def offset(
    image_size: Size,
    patch_size: Size,
    *,
    mask_size: Size,
    coverage: Coverage,
    wrap: bool = True,
    rounded_stride: Literal["floor", "round"] | None = None,
) -> MaskSet:
    """CertMask's offset tiling as printed: m times as many masks over the rows, n over the columns.

    An axis has ``ceil(n * m / (q - p))`` masks, the i-th centred at ``i * (q - p) / m`` (CertMask,
    Eq. 5), in exact fractions; only the *start* of a mask is rounded, down. ``wrap=True`` lets a
    mask that crosses the border reappear at the other side, as printed; ``wrap=False`` cuts it.
    Coverage is m or m + 1 on an axis (never "exactly k" in all).

    Args:
      coverage: ``(m, n)``, or k, factored by ``factor_coverage``.
      rounded_stride: rounds the stride ``(q - p) / m`` to whole pixels before it is multiplied, a
        literal reading of the paper that loses the promise at many sizes and is refused there
        (224 pixels, patch 39, mask 56, m = 3, floor: nothing hides the last location).

    Raises:
      CoverageError: where the set leaves a location with fewer than m * n masks.
      ValueError: unless patch < mask <= image on both axes.
    """
    if rounded_stride not in (None, "floor", "round"):
        raise ValueError(f"rounded_stride: expected None, floor or round, got {rounded_stride!r}")
    image, patch, _ = geometry.checked_sizes(image_size, patch_size)
    mask = checked_mask_size(mask_size, image, patch)
    if mask[0] == patch[0] or mask[1] == patch[1]:
        raise ValueError(
            f"mask_size: expected masks larger than the {_by(patch)} patch, got {_by(mask)}; "
            "CertMask's formula divides by the difference (tight_grid and exact_k_fold do not)"
        )
    factors = factor_coverage(coverage, limits=(mask[0] - patch[0], mask[1] - patch[1]))
    axes = []
    for n, p, q, m in zip(image, patch, mask, factors, strict=True):
        stride = Fraction(q - p, m)
        count = -(-n // stride)
        if rounded_stride is not None:
            stride = Fraction(max(1, int(stride) if rounded_stride == "floor" else round(stride)))
        starts = [int((i * stride - Fraction(q, 2)) // 1) for i in range(count)]
        axes.append([wrapped(s, q, n) if wrap else [clipped(s, q, n)] for s in starts])
    promise = factors[0] * factors[1]
    return MaskSet(boxes_of(axes), image, patch, promise=promise, name="offset")


def exact_k_fold(
    image_size: Size,
    patch_size: Size,
    *,
    mask_size: Size,
    coverage: Coverage,
    spread: Literal["fewest", "even"] = "fewest",
) -> MaskSet:
    """Distinct masks that hide every location exactly k = m * n times.

    On an axis that must be m-fold, masks start at ``b - (e - 1)`` for ``0 <= b < P + e - 1`` and
    ``b mod e`` in a set R of m residues: e consecutive b's, the masks that hide one location, hold
    each residue once. They overhang the border and are cut there: distinct masks that stay inside
    the image cannot hide the corner twice.

    Args:
      coverage: ``(m, n)`` for the rows and the columns, or k, factored by
        ``factor_coverage``; m and n may not exceed e on their axis.
      spread: ``"fewest"`` takes the fewest masks, as evenly spread as that allows; ``"even"`` takes
        ``R = {floor(j * e / m)}`` whatever it costs.

    Raises:
      ValueError: when k is no such product, or unless patch <= mask <= image.
    """
    if spread not in ("fewest", "even"):
        raise ValueError(f"spread: expected fewest or even, got {spread!r}")
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    mask = checked_mask_size(mask_size, image, patch)
    hidden = (mask[0] - patch[0] + 1, mask[1] - patch[1] + 1)
    factors = factor_coverage(coverage, limits=hidden)
    axes = []
    for n, q, count, e, m in zip(image, mask, counts, hidden, factors, strict=True):
        if m > e:
            room = q + m - e <= n
            larger = "a larger mask_size (each pixel allows one more)"
            smaller = f"a smaller patch or coverage, as no mask of {n} pixels is large enough"
            raise ValueError(
                f"coverage: expected at most {e}-fold on an axis where a mask hides {e} "
                f"location(s), got {m}-fold; use {larger if room else smaller}"
            )
        even = {j * e // m for j in range(m)}
        residues = _fewest(even, count, e) if spread == "fewest" else even
        starts = [b - (e - 1) for b in range(count + e - 1) if b % e in residues]
        axes.append([[clipped(start, q, n)] for start in starts])
    promise = factors[0] * factors[1]
    return MaskSet(boxes_of(axes), image, patch, promise=promise, name="exact_k_fold")


def _fewest(even: set[int], count: int, e: int) -> set[int]:
    """Residues that take the fewest masks: ``even`` turned round to do so, or filled in a row.

    The s + 1 residues from ``e - 1 - s`` on, ``s = ceil(P / e) * e - P``, occur once less often
    than the others, so a fewest set takes as many of them as it can.
    """
    spare = -(-count // e) * e - count
    cheap = {e - 1 - j for j in range(spare + 1)}
    for first in sorted(cheap):
        turned = {(first + r) % e for r in even}
        if len(turned & cheap) == min(len(even), len(cheap)):
            return turned
    return {(e - 1 - spare + j) % e for j in range(len(even))}


def factor_coverage(coverage: Coverage, *, limits: tuple[int, int]) -> tuple[int, int]:
    """Chooses ``(m, n)`` with ``m * n = k``, ``m <= limits[0]``, ``n <= limits[1]``.

    Of all choices the one closest to a square, and of its two orders the taller (6 = 3 x 2, as in
    CertMask, section 5). A pair is returned as it is.

    Raises:
      ValueError: when k has no such factors, naming the limits.
    """
    if not isinstance(coverage, int | np.integer):
        return geometry.as_size(coverage, "coverage")
    k = int(coverage)
    if k < 1:
        raise ValueError(f"coverage: expected k >= 1 or (m, n), got {coverage!r}")
    pairs = [(m, k // m) for m in range(1, k + 1) if k % m == 0]
    fitting = [(m, n) for m, n in pairs if m <= limits[0] and n <= limits[1]]
    if not fitting:
        raise ValueError(
            f"coverage: expected k = m * n with m <= {limits[0]} and n <= {limits[1]}, which "
            f"these mask and patch sizes allow with distinct masks; k = {k} has no such factors. "
            "Choose another k, a larger mask_size, or replicated masks"
        )
    return min(fitting, key=lambda pair: (max(pair) - min(pair), -pair[0]))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
