"""Mask sets: pure functions from sizes to mask index arrays, verified on pixels when built.

Every builder returns a ``MaskSet``, which carries the threat that it was built for and a
promise: each location of the patch is hidden by at least ``promise`` masks (a ``promise``-fold
cover). A set that does not keep its promise cannot be built; the error names a placement that is
left open.

Per axis, n is the image, p the patch and q the mask size, in pixels. There are P = n - p + 1
locations, and a mask hides e = q - p + 1 consecutive ones (not q - p, as CertMask prints).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.masks import geometry, placements
from certmask_jax.masks.by_content import ByContent
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.threats import Threat, as_threat

Coverage = int | tuple[int, int]
"""CertMask's k, or its factors ``(m, n)``: m-fold over the rows times n-fold over the columns."""

_Interval = tuple[int, int]

_SIZES_NAMED = 6


class CoverageError(ValueError):
    """A mask set leaves a location hidden by fewer masks than it promises."""


@dataclasses.dataclass(frozen=True, eq=False)
class MaskSet(ByContent):
    """Masks that hide the patches of a threat wherever they are; equal and hashable by content.

    Attributes:
      boxes: ``int32[N, R, 4]``, top, left, bottom, right, half-open; a mask is the union of its R
        boxes, all-zero boxes are unused. A mask that is listed k times has k votes.
      image_size: ``(height, width)`` in pixels (an int is taken as a square).
      threat: what the set was built for; a bare patch size is taken as one patch anywhere.
      promise: every placement is hidden by at least this many masks; checked on pixels here.
      name: how it was built, for reports.

    Raises:
      CoverageError: naming a placement that fewer than ``promise`` masks hide.
      ValueError: for malformed boxes, sizes or threats.
    """

    boxes: NDArray[np.int32]
    image_size: tuple[int, int]
    threat: Threat
    promise: int = 1
    name: str = "custom"

    def __init__(
        self,
        boxes: ArrayLike,
        image_size: Size,
        threat: Threat | Size,
        promise: int = 1,
        name: str = "custom",
    ) -> None:
        image = geometry.as_size(image_size, "image_size")
        array = geometry.as_boxes(boxes, image).copy()
        array.setflags(write=False)
        if promise < 1:
            raise ValueError(f"promise: expected at least 1, got {promise}")
        object.__setattr__(self, "boxes", array)
        object.__setattr__(self, "image_size", image)
        object.__setattr__(self, "threat", as_threat(threat, image))
        object.__setattr__(self, "promise", promise)
        object.__setattr__(self, "name", name)
        self.check(self.threat)

    def __len__(self) -> int:
        return len(self.boxes)

    def __str__(self) -> str:
        used = (self.boxes[..., 0] < self.boxes[..., 2]) & (self.boxes[..., 1] < self.boxes[..., 3])
        most = int(used.sum(axis=1).max())
        parts = "" if most == 1 else f"up to {most} boxes of "
        return f"{len(self)} masks of {parts}{self._sizes()} for {self.threat}"

    def __repr__(self) -> str:
        return f"MaskSet({self})"

    @property
    def patch_size(self) -> tuple[int, int]:
        """``(height, width)`` of the patch, for a threat of one patch of one shape.

        Raises:
          ValueError: for any other threat, of which it would tell only a part.
        """
        if len(self.threat) > 1 or len(self.threat.shapes) > 1:
            raise ValueError(
                f"patch_size: expected a threat of one patch of one shape, got {self.threat}; use "
                "the mask set's threat"
            )
        return self.threat.shapes[0]

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the largest box, in pixels (masks at a border may be cut)."""
        top, left, bottom, right = np.moveaxis(self.boxes, -1, 0)
        return int((bottom - top).max()), int((right - left).max())

    def _sizes(self) -> str:
        """The sizes of boxes, without those that fit another (masks at a border may be cut)."""
        top, left, bottom, right = np.moveaxis(self.boxes.reshape(-1, 4), -1, 0)
        sizes = np.unique(np.column_stack([bottom - top, right - left]), axis=0)
        fits = (sizes[:, None] <= sizes[None]).all(axis=2)
        largest = [_by((h, w)) for h, w in sizes[fits.sum(axis=1) == 1]]
        if len(largest) > _SIZES_NAMED:
            return f"{len(largest)} sizes up to {_by(self.mask_size)}"
        return " or ".join(filter(None, [", ".join(largest[:-1]), largest[-1]]))

    def check(self, threat: Threat) -> None:
        """That every placement of ``threat`` is hidden by at least ``promise`` masks.

        Raises:
          CoverageError: naming a placement that is not.
          ValueError: for a threat on another image size.
        """
        hiding, placement = placements.least_hidden(self.boxes, as_threat(threat, self.image_size))
        if hiding < self.promise:
            raise CoverageError(
                f"{self.name}: expected all {threat} to be hidden by at least {self.promise} of "
                f"the {len(self)} masks, but the {placements.described(placement)} is hidden by "
                f"{hiding}; use larger masks, or a builder that covers (tight_grid, "
                "budgeted_grid, exact_k_fold)"
            )

    def coverage(self) -> NDArray[np.int32]:
        """How many masks hide the patch at each location: ``int32[h - ph + 1, w - pw + 1]``.

        For one patch of one shape (see ``patch_size``), allowed or not.
        """
        return geometry.coverage(self.boxes, self.image_size, self.patch_size)

    def hides(self) -> NDArray[np.bool_]:
        """Which mask hides which location: ``bool[N, h - ph + 1, w - pw + 1]``."""
        return geometry.hides(self.boxes, self.image_size, self.patch_size)


def budgeted_grid(
    image_size: Size,
    patch_size: Size,
    *,
    masks_per_axis: Size | None = None,
    mask_stride: Size | None = None,
    split: Literal["stride", "even"] = "stride",
) -> MaskSet:
    """PatchCleanser's mask set (its section 3.2 and Eq. 1-3), rows outer, exactly as its program.

    Give either the budget ``masks_per_axis`` (the paper's k, then the stride is ``ceil(P / k)``)
    or ``mask_stride``. Masks of ``p + stride - 1`` pixels stand at every multiple of the stride,
    the last one pulled back to the border.

    Args:
      split: ``"stride"`` is the published set. ``"even"`` splits the P locations of an axis into k
        stretches of ``floor(P / k)`` or ``ceil(P / k)``, each with a mask just large enough: as
        many masks, none larger, and none that hides a location twice for nothing.

    Raises:
      ValueError: unless exactly one of the two is given, and the patch fits the image; for an even
        split of a stride.
    """
    if split not in ("stride", "even"):
        raise ValueError(f"split: expected stride (as published) or even, got {split!r}")
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    if (masks_per_axis is None) == (mask_stride is None):
        raise ValueError(
            "budgeted_grid: expected either masks_per_axis or mask_stride, got "
            + ("both" if masks_per_axis is not None else "neither")
        )
    if split == "even":
        if masks_per_axis is None:
            raise ValueError("split: expected masks_per_axis for an even split, got mask_stride")
        return _even_grid(image, patch, geometry.as_size(masks_per_axis, "masks_per_axis"))
    if masks_per_axis is not None:
        budget = geometry.as_size(masks_per_axis, "masks_per_axis")
        stride = [-(-count // k) for count, k in zip(counts, budget, strict=True)]
    else:
        assert mask_stride is not None
        stride = list(geometry.as_size(mask_stride, "mask_stride"))
    axes = []
    for n, p, s in zip(image, patch, stride, strict=True):
        q = min(p + s - 1, n)
        starts = sorted({*range(0, n - q + 1, s), n - q})
        axes.append([[(start, start + q)] for start in starts])
    return MaskSet(_product(axes), image, patch, name="budgeted_grid")


def _even_grid(image: tuple[int, int], patch: tuple[int, int], budget: tuple[int, int]) -> MaskSet:
    axes = []
    for n, p, k in zip(image, patch, budget, strict=True):
        count = n - p + 1
        axes.append([[(a, b + p - 1)] for a, b in stretches(count, min(k, count))])
    return MaskSet(_product(axes), image, patch, name="even_grid")


def stretches(
    count: int, parts: int, *, weights: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Splits ``range(count)`` into consecutive stretches ``(first, last + 1)``, exactly and evenly.

    Lengths differ by one at most, and the longer ones are spread: 28 into 3 is 9, 10, 9, and into 6
    is 5, 4, 5, 5, 4, 5. With ``weights`` they are in proportion to these, rounded at the borders.
    """
    shares = [1] * parts if weights is None else list(weights)
    sums = list(itertools.accumulate(shares, initial=0))
    edges = [(2 * done * count + sums[-1]) // (2 * sums[-1]) for done in sums]
    return list(itertools.pairwise(edges))


def tight_grid(image_size: Size, patch_size: Size, *, mask_size: Size) -> MaskSet:
    """The fewest masks of a given size: ``ceil(P / e)`` an axis (soundness: no cover has fewer).

    Masks stand at every multiple of e, the last one pulled back to the border.

    Raises:
      ValueError: unless patch <= mask <= image on both axes.
    """
    image, patch, counts = geometry.checked_sizes(image_size, patch_size)
    mask = _mask_size(mask_size, image, patch)
    axes = []
    for n, p, q, count in zip(image, patch, mask, counts, strict=True):
        e = q - p + 1
        starts = sorted({min(start, n - q) for start in range(0, count, e)})
        axes.append([[(start, start + q)] for start in starts])
    return MaskSet(_product(axes), image, patch, name="tight_grid")


def repeated(masks: MaskSet, *, coverage: int) -> MaskSet:
    """The same masks listed ``coverage`` times over: a k-fold cover by repetition.

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
    mask = _mask_size(mask_size, image, patch)
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
        axes.append([_wrapped(s, q, n) if wrap else [_clipped(s, q, n)] for s in starts])
    promise = factors[0] * factors[1]
    return MaskSet(_product(axes), image, patch, promise=promise, name="offset")


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
    mask = _mask_size(mask_size, image, patch)
    hidden = (mask[0] - patch[0] + 1, mask[1] - patch[1] + 1)
    factors = factor_coverage(coverage, limits=hidden)
    axes = []
    for n, q, count, e, m in zip(image, mask, counts, hidden, factors, strict=True):
        if m > e:
            raise ValueError(
                f"coverage: expected at most {e}-fold on an axis where a mask hides {e} "
                f"location(s), got {m}-fold; use a larger mask_size (each pixel allows one more)"
            )
        even = {j * e // m for j in range(m)}
        residues = _fewest(even, count, e) if spread == "fewest" else even
        starts = [b - (e - 1) for b in range(count + e - 1) if b % e in residues]
        axes.append([[_clipped(start, q, n)] for start in starts])
    promise = factors[0] * factors[1]
    return MaskSet(_product(axes), image, patch, promise=promise, name="exact_k_fold")


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


def _mask_size(mask_size: Size, image: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    mask = geometry.as_size(mask_size, "mask_size")
    if any(not p <= q <= n for p, q, n in zip(patch, mask, image, strict=True)):
        raise ValueError(
            f"mask_size: expected at least the patch ({_by(patch)}) and at most the image "
            f"({_by(image)}), got {_by(mask)}"
        )
    return mask


def _clipped(start: int, length: int, n: int) -> _Interval:
    """The part of ``[start, start + length)`` inside ``[0, n)``; (0, 0) if there is none."""
    first, last = max(start, 0), min(start + length, n)
    return (first, last) if first < last else (0, 0)


def _wrapped(start: int, length: int, n: int) -> list[_Interval]:
    """``[start, start + length)`` on a circle of n pixels, as one or two intervals."""
    if length >= n:
        return [(0, n)]
    first = start % n
    if first + length <= n:
        return [(first, first + length)]
    return [(first, n), (0, first + length - n)]


def _product(axes: Sequence[Sequence[Sequence[_Interval]]]) -> NDArray[np.int32]:
    """Every row entry with every column entry, rows outer; an entry is a union of intervals."""
    masks = [
        [
            (top, left, bottom, right)
            for top, bottom in rows
            for left, right in cols
            if top < bottom and left < right
        ]
        for rows, cols in itertools.product(*axes)
    ]
    boxes = np.zeros((len(masks), max(1, *map(len, masks)), 4), dtype=np.int32)
    for mask, parts in zip(boxes, masks, strict=True):
        mask[: len(parts)] = parts
    return boxes


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
