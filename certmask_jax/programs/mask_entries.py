"""The masks that ``key=value,...`` can name: one table, that reading, help and documents share.

One key chooses the kind of masks (``masks_per_axis``, ``tiling``, ``partition``, ...); the other
keys are its own. ``mask_specs`` reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

from certmask_jax import mask_sets
from certmask_jax.defenses.band_defense import usual_band
from certmask_jax.masks import bands, pair_covers, visible_tokens
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.spec_keys import Key, counts, flag, is_number, size

Coverage = int | tuple[int, int]

DEFAULT = "masks_per_axis=6"
"""What stands for masks that nothing is said of."""


@dataclasses.dataclass(frozen=True)
class MaskEntry:
    """One kind of masks.

    Attributes:
      example: the key that chooses it, with a value: ``"masks_per_axis=6"``.
      family: kinds of one family exclude each other.
      about: one line.
      build: ``(image_size, patch_size, **arguments) -> MaskSet``.
      keys: those that it takes, the one that chooses it first.
      of_image: whether they are the same masks against every threat, which ``build`` is then given
        in the place of a patch.
    """

    example: str
    family: str
    about: str
    build: Callable[..., MaskSet]
    keys: tuple[Key, ...]
    of_image: bool = False

    @property
    def chosen_by(self) -> str:
        """The key that chooses it."""
        return self.keys[0].name


def _partition(text: str) -> tuple[int, ...]:
    """``"2/3"`` -> (2, 3), rows of 2 and 3 blocks; ``"2x3"`` -> (3, 3), 2 rows of 3 blocks."""
    rows, by, cols = text.lower().partition("x")
    parts = [rows, cols] if by else text.split("/")
    if not all(map(is_number, parts)):
        raise ValueError(
            f"expected rows x columns of blocks such as 2x3, or the blocks in each row such as "
            f"2/3, got {text!r}"
        )
    numbers = tuple(int(part) for part in parts)
    return (numbers[1],) * numbers[0] if by else numbers


def _coverage(text: str) -> Coverage:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(map(is_number, parts)):
        raise ValueError(f"expected k such as 6, or m x n such as 3x2, got {text!r}")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _plane(text: str) -> int:
    """The order of an affine plane; 0 for Fano's."""
    if text.lower() == "fano":
        return 0
    if not is_number(text) or int(text) == 0:
        raise ValueError(f"expected fano or an order such as 3, got {text!r}")
    return int(text)


def _in_plane(image: tuple[int, int], patch: tuple[int, int], *, order: int) -> MaskSet:
    if order == 0:
        return pair_covers.fano_plane(image, patch)
    return pair_covers.affine_plane(image, patch, order=order)


def _tiled(
    build: Callable[..., MaskSet], image: tuple[int, int], patch: tuple[int, int], **keys: object
) -> MaskSet:
    """Masks of 1.5 patches a side unless told otherwise, as in CertMask's paper."""
    usual = tuple(min(n, math.ceil(1.5 * p)) for n, p in zip(image, patch, strict=True))
    return build(image, patch, **{"mask_size": usual, **keys})


def _tight(
    image: tuple[int, int],
    patch: tuple[int, int],
    *,
    coverage: Coverage = 1,
    **keys: tuple[int, int],
) -> MaskSet:
    masks = mask_sets.tight_grid(image, patch, **keys)
    return mask_sets.repeated(masks, coverage=_product(coverage))


def _replicated(
    image: tuple[int, int],
    patch: tuple[int, int],
    *,
    coverage: Coverage = 6,
    **keys: tuple[int, int],
) -> MaskSet:
    return mask_sets.replicated(image, patch, coverage=_product(coverage), **keys)


def _offset(image: tuple[int, int], patch: tuple[int, int], **keys: object) -> MaskSet:
    return mask_sets.offset(image, patch, **{"coverage": 6, **keys})  # type: ignore[arg-type]


def _exact(image: tuple[int, int], patch: tuple[int, int], **keys: object) -> MaskSet:
    return mask_sets.exact_k_fold(image, patch, **{"coverage": 6, **keys})  # type: ignore[arg-type]


def _token_windows(
    image: tuple[int, int],
    patch: tuple[int, int],
    *,
    window: tuple[int, int],
    token: int = 16,
) -> MaskSet:
    return visible_tokens.token_windows(image, patch, token=token, window=window)


def _band(text: str) -> int:
    """Columns of a band; 0 for what papers take, which depends on the image."""
    if text.lower() == "usual":
        return 0
    if not is_number(text) or int(text) == 0:
        raise ValueError(f"expected columns such as 4, or usual, got {text!r}")
    return int(text)


def _column_bands(image: tuple[int, int], threat: Threat, *, band: int, stride: int = 1) -> MaskSet:
    return bands.column_bands(image, threat, band=band or usual_band(image, 19), stride=stride)


def _product(coverage: Coverage) -> int:
    return coverage if isinstance(coverage, int) else coverage[0] * coverage[1]


TILING = Key("tiling", str, "tight, replicated, offset or exact")
"""What chooses among tilings, by its value."""

_SPLIT = Key("split", str, "stride (PatchCleanser's) or even stretches between masks", "stride")
_MASK_SIZE = Key("mask_size", size, "height x width of the masks", "1.5 patches a side")
_TRANSPOSED = Key("transposed", flag, "columns of blocks instead of rows", "false")


def _cover(default: str) -> Key:
    about = "how many masks hide each patch: k, or m x n of them down and across"
    return Key("coverage", _coverage, about, default)


MASKS = (
    MaskEntry(
        "masks_per_axis=6",
        "grid",
        "PatchCleanser's grid; 6x4 for other counts down and across",
        mask_sets.budgeted_grid,
        (Key("masks_per_axis", counts, "how many masks an axis has"), _SPLIT),
    ),
    MaskEntry(
        "mask_stride=4",
        "grid",
        "PatchCleanser's grid, by the pixels from mask to mask",
        mask_sets.budgeted_grid,
        (Key("mask_stride", size, "pixels from one mask to the next"), _SPLIT),
    ),
    MaskEntry(
        "mask_size=9",
        "grid",
        "the fewest masks of that size",
        mask_sets.tight_grid,
        (Key("mask_size", size, "height x width of the masks"),),
    ),
    MaskEntry(
        "tiling=tight",
        "tiling",
        "the fewest masks of a size, each k times",
        functools.partial(_tiled, _tight),
        (TILING, _MASK_SIZE, _cover("1")),
    ),
    MaskEntry(
        "tiling=replicated",
        "tiling",
        "CertMask's: one tiling as printed, each mask k times",
        functools.partial(_tiled, _replicated),
        (TILING, _MASK_SIZE, _cover("6")),
    ),
    MaskEntry(
        "tiling=offset",
        "tiling",
        "CertMask's: m times as many masks down and n times across, as printed",
        functools.partial(_tiled, _offset),
        (
            TILING,
            _MASK_SIZE,
            _cover("6"),
            Key("wrap", flag, "masks that cross the border reappear at the other side", "true"),
            Key("rounded_stride", str, "floor or round a stride that is not whole"),
        ),
    ),
    MaskEntry(
        "tiling=exact",
        "tiling",
        "distinct masks that hide every patch exactly k times",
        functools.partial(_tiled, _exact),
        (
            TILING,
            _MASK_SIZE,
            _cover("6"),
            Key("spread", str, "fewest masks, or even distances", "fewest"),
        ),
    ),
    MaskEntry(
        "budget=15",
        "pairs",
        "of the pairs of blocks of a partition, at most so many masks that hide least",
        pair_covers.pair_cover,
        (Key("budget", int, "masks at most"),),
    ),
    MaskEntry(
        "partition=2/3",
        "pairs",
        "every two blocks of a partition, here two over three; or 3x3",
        pair_covers.pairs_of_blocks,
        (Key("partition", _partition, "blocks in each row", argument="rows"), _TRANSPOSED),
    ),
    MaskEntry(
        "plane=3",
        "pairs",
        "lines of the affine plane of that order; or plane=fano",
        _in_plane,
        (Key("plane", _plane, "a prime power, or fano", argument="order"),),
    ),
    MaskEntry(
        "bands=4",
        "bands",
        "all but so many columns in a row, for votes (De-Randomized Smoothing's bands)",
        _column_bands,
        (
            Key("bands", _band, "columns that are seen, or usual", argument="band"),
            Key("stride", int, "pixels from one band to the next", "1"),
        ),
        of_image=True,
    ),
    MaskEntry(
        "token_windows=2",
        "tokens",
        "every window of so many tokens of a ViT, ViP's; or HxW",
        _token_windows,
        (
            Key("token_windows", counts, "tokens that a window has on a side", argument="window"),
            Key("token", int, "the side of a token, in pixels", "16"),
        ),
    ),
)
"""All kinds of masks, the usual ones first."""

KEYS = tuple(dict.fromkeys(key.name for entry in MASKS for key in entry.keys))
"""The names of all keys of masks."""
