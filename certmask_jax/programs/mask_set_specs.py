"""``key=value,...`` -> masks: the part of ``--defense`` that is the same for every defense."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

from certmask_jax.masks import combined_sets, mask_sets, pair_covers
from certmask_jax.masks.geometry import as_size
from certmask_jax.masks.mask_sets import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.command_line import hint

DESCRIPTIONS = {
    "masks_per_axis=6": "PatchCleanser's grid; or by mask_stride; split=even for equal stretches",
    "mask_size=9": "the fewest masks of that size",
    "tiling=exact": "CertMask's: tight, replicated, offset or exact [mask_size, coverage, spread, "
    "wrap]",
    "partition=2/3": "every two blocks of a partition, here two over three; 3x3; transposed=true",
    "budget=15": "of the pairs of a partition, at most so many masks that hide least",
    "plane=3": "lines of the affine plane of that order; plane=fano",
}
"""Keys -> one line, for ``--list``."""

_GRID_KEYS = ("masks_per_axis", "mask_stride", "mask_size")
_PAIR_KEYS = ("budget", "partition", "plane")
OTHER_KEYS = ("masks_per_axis", "mask_stride", *_PAIR_KEYS)
"""Keys that no tiling has."""

KEYS = (
    *("masks_per_axis", "mask_stride", "split", "mask_size"),
    *("tiling", "coverage", "spread", "wrap", "rounded_stride"),
    *("partition", "transposed", "budget", "plane"),
)
"""All keys of masks."""

_TILINGS = ("tight", "replicated", "offset", "exact")


def mask_set(
    threat: Threat, options: dict[str, str], *, default: str = "masks_per_axis=6"
) -> MaskSet:
    """The masks that ``options`` say, for a threat; what is read is removed.

    Args:
      threat: what the masks are to hide.
      options: keys and values; some may be the defense's.
      default: what stands for keys that are missing.

    Raises:
      ValueError: for values that cannot be read, masks that do not cover, or keys that exclude
        each other.
    """
    kinds = [kind for keys, kind in _KINDS.items() if any(key in options for key in keys)]
    if not kinds:
        key, _, value = default.partition("=")
        options[key] = value
        return mask_set(threat, options)
    return combined_sets.for_threat(threat, kinds[0](options))


def _grid(options: dict[str, str]) -> Callable[..., MaskSet]:
    """PatchCleanser's grid, or the tight grid of a mask size."""
    given = taken(options, masks_per_axis=size, mask_stride=size, mask_size=size)
    if len(given) > 1:
        raise ValueError(f"expected only one of {', '.join(_GRID_KEYS)}, got {', '.join(given)}")
    builder = mask_sets.tight_grid if "mask_size" in given else mask_sets.budgeted_grid
    if "mask_size" not in given:
        given |= taken(options, split=str)
    return functools.partial(builder, **given)


def _pair_cover(options: dict[str, str]) -> Callable[..., MaskSet]:
    """Pairs of blocks, or a finite plane."""
    given = taken(options, budget=int, partition=_partition, plane=str)
    if len(given) > 1:
        raise ValueError(f"expected only one of {', '.join(_PAIR_KEYS)}, got {', '.join(given)}")
    if "partition" in given:
        transposed = taken(options, transposed=_flag)
        rows = given["partition"]
        return functools.partial(pair_covers.pairs_of_blocks, rows=rows, **transposed)
    if given.get("plane", "").lower() == "fano":
        return pair_covers.fano_plane
    if "plane" in given:
        if not is_number(given["plane"]):
            raise ValueError(f"plane: expected fano or an order such as 3, got {given['plane']!r}")
        return functools.partial(pair_covers.affine_plane, order=int(given["plane"]))
    return functools.partial(pair_covers.pair_cover, **given)


def _tiling(options: dict[str, str]) -> Callable[..., MaskSet]:
    """CertMask's mask sets; masks of 1.5 patches a side unless told otherwise, as in its paper."""
    tiling = options.pop("tiling")
    if tiling not in _TILINGS:
        raise ValueError(
            f"tiling: expected one of {', '.join(_TILINGS)}, got {tiling!r}{hint(tiling, _TILINGS)}"
        )
    given = taken(options, mask_size=size)
    coverage = taken(options, coverage=_coverage).get("coverage", 1 if tiling == "tight" else 6)
    if tiling == "offset":
        given |= taken(options, wrap=_flag, rounded_stride=str)
    elif tiling == "exact":
        given |= taken(options, spread=str)

    def one_shape(image: tuple[int, int], patch: tuple[int, int]) -> MaskSet:
        usual = tuple(min(n, math.ceil(1.5 * p)) for n, p in zip(image, patch, strict=True))
        keys = {"mask_size": usual, **given}
        match tiling:
            case "tight":
                masks = mask_sets.tight_grid(image, patch, **keys)
                return mask_sets.repeated(masks, coverage=_product(coverage))
            case "replicated":
                return mask_sets.replicated(image, patch, **keys, coverage=_product(coverage))
            case "offset":
                return mask_sets.offset(image, patch, **keys, coverage=coverage)
            case _:
                return mask_sets.exact_k_fold(image, patch, **keys, coverage=coverage)

    return one_shape


# The first that is asked for: a tiling has a mask_size too.
_KINDS: dict[tuple[str, ...], Callable[[dict[str, str]], Callable[..., MaskSet]]] = {
    ("tiling",): _tiling,
    _PAIR_KEYS: _pair_cover,
    _GRID_KEYS: _grid,
}


def read(text: str, threat: Threat, option: str) -> MaskSet:
    """The masks of ``"key=value,..."`` alone; ``ValueError`` names the option that it is from."""
    options = parsed(text, option)
    try:
        masks = mask_set(threat, options)
    except ValueError as error:
        raise ValueError(f"{option} {text}: {error}") from error
    if options:
        key = next(iter(options))
        like = hint(key, set(KEYS) - {key})
        raise ValueError(
            f"{option} {text}: unknown key {key!r} here{like}; certify --list has them"
        )
    return masks


def parsed(text: str, where: str) -> dict[str, str]:
    """``"key=value,..."`` as keys and values."""
    options: dict[str, str] = {}
    for item in text.split(",") if text else ():
        key, equals, value = item.partition("=")
        if not equals or not key or not value or key in options:
            raise ValueError(f"{where}: expected key=value,key=value (each key once), got {item!r}")
        options[key] = value
    return options


def taken(options: dict[str, str], **readers: Callable[[str], Any]) -> dict[str, Any]:
    """Reads and removes the given keys."""
    found = {}
    for key, reader in readers.items():
        if key in options:
            text = options.pop(key)
            try:
                found[key] = reader(text)
            except ValueError as error:
                raise ValueError(f"{key}: cannot read {text!r} ({error})") from error
    return found


def size(text: str) -> int | tuple[int, int]:
    """``"5"`` -> 5, ``"5x9"`` -> (5, 9): height x width in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(is_number(part) and int(part) > 0 for part in parts):
        raise ValueError(f"expected pixels such as 5 or 5x9 (height x width), got {text!r}")
    numbers = tuple(int(part) for part in parts)
    return as_size(numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1]))


def is_number(text: str) -> bool:
    """Whether it is a whole number in plain digits, of a size that can be a number of pixels."""
    return re.fullmatch(r"\s*[0-9]{1,9}\s*", text) is not None


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


def _coverage(text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(map(is_number, parts)):
        raise ValueError(f"expected k such as 6, or m x n such as 3x2, got {text!r}")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _product(coverage: int | tuple[int, int]) -> int:
    return coverage if isinstance(coverage, int) else coverage[0] * coverage[1]


def _flag(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError(f"expected true or false, got {text!r}")
