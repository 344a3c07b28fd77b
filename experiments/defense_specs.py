"""``NAME:key=value,...`` -> a defense: the small language of ``--defense``."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import Defense
from certmask_jax.geometry import as_size
from certmask_jax.mask_sets import MaskSet

Sizes = tuple[tuple[int, int], tuple[int, int]]  # image, patch

DESCRIPTIONS = {
    "double_masking": "PatchCleanser, two rounds; recovery [masks_per_axis | mask_stride | "
    "mask_size, ties]",
    "challenger_masking": "PatchCleanser, Appendix C; recovery [masks_per_axis | mask_stride | "
    "mask_size]",
    "minority_reports": "one round of votes against the unmasked label; detection "
    "[masks_per_axis | mask_stride | mask_size, tau]",
    "mrcert": "MRCert, all unions of four masks; recovery that may be asked of a patched image "
    "[masks_per_axis | mask_stride | mask_size, patches]",
    "certmask": "CertMask's one-round rule; claims recovery, proves none "
    "[tiling, mask_size, coverage, spread, wrap, ties]",
    "certmask_detection": "what CertMask's condition does prove; detection "
    "[tiling, mask_size, coverage, spread, wrap, tolerance]",
}
"""Name -> one line, for ``--list``."""

_GRID_KEYS = ("masks_per_axis", "mask_stride", "mask_size")
_TILING_KEYS = ("tiling", "mask_size", "coverage", "spread", "wrap")
_TILINGS = ("tight", "replicated", "offset", "exact")


def build(spec: str, image_size: tuple[int, int], patch_size: tuple[int, int]) -> Defense:
    """The defense that ``spec`` names, for one image and patch size.

    Raises:
      ValueError: for an unknown name, key or value, listing what there is, or a mask set that
        does not cover.
    """
    name, _, rest = spec.partition(":")
    if name not in DESCRIPTIONS:
        close = difflib.get_close_matches(name, DESCRIPTIONS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(
            f"--defense: expected one of {', '.join(DESCRIPTIONS)}, got {name!r}{hint}"
        )
    options = _parsed(spec, rest)
    sizes = (image_size, patch_size)
    try:
        match name:
            case "double_masking":
                masks = _grid(sizes, options)
                found = defenses.double_masking(masks, **_taken(options, ties=str))
            case "challenger_masking":
                found = defenses.challenger_masking(_grid(sizes, options))
            case "minority_reports":
                masks = _grid(sizes, options)
                found = defenses.minority_reports(masks, **_taken(options, tau=float))
            case "mrcert":
                masks = _grid(sizes, options)
                found = defenses.mrcert(masks, **_taken(options, patches=int))
            case "certmask":
                masks = _tiling(sizes, options)
                found = defenses.certmask(masks, **_taken(options, ties=str))
            case _:
                masks = _tiling(sizes, options)
                found = defenses.certmask_detection(masks, **_taken(options, tolerance=int))
    except ValueError as error:
        raise ValueError(f"--defense {spec}: {error}") from error
    if options:
        keys = _TILING_KEYS if name.startswith("certmask") else _GRID_KEYS
        raise ValueError(
            f"--defense {spec}: unknown option {next(iter(options))!r}; expected some of "
            f"{', '.join(keys)} or those of {DESCRIPTIONS[name].rpartition('[')[2].rstrip(']')}"
        )
    return found


def _parsed(spec: str, rest: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or not value or key in options:
            raise ValueError(
                f"--defense {spec}: expected NAME:key=value,key=value (each key once), got {item!r}"
            )
        options[key] = value
    return options


def _taken(options: dict[str, str], **readers: Callable[[str], Any]) -> dict[str, Any]:
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


def _grid(sizes: Sizes, options: dict[str, str]) -> MaskSet:
    """PatchCleanser's grid (6 x 6 unless told otherwise), or the tight grid of a mask size."""
    given = _taken(options, masks_per_axis=size, mask_stride=size, mask_size=size)
    if len(given) > 1:
        raise ValueError(f"expected only one of {', '.join(_GRID_KEYS)}, got {', '.join(given)}")
    if "mask_size" in given:
        return mask_sets.tight_grid(*sizes, **given)
    return mask_sets.budgeted_grid(*sizes, **(given or {"masks_per_axis": 6}))


def _tiling(sizes: Sizes, options: dict[str, str]) -> MaskSet:
    """CertMask's mask sets; masks of 1.5 patches a side unless told otherwise, as in its paper."""
    tiling = options.pop("tiling", "replicated")
    default = tuple(min(n, math.ceil(1.5 * p)) for n, p in zip(*sizes, strict=True))
    mask_size = _taken(options, mask_size=size).get("mask_size", default)
    given = _taken(options, coverage=_coverage)
    match tiling:
        case "tight":
            masks = mask_sets.tight_grid(*sizes, mask_size=mask_size)
            return mask_sets.repeated(masks, coverage=_product(given.get("coverage", 1)))
        case "replicated":
            k = _product(given.get("coverage", 6))
            return mask_sets.replicated(*sizes, mask_size=mask_size, coverage=k)
        case "offset":
            given = {"coverage": 6} | given | _taken(options, wrap=_flag, rounded_stride=str)
            return mask_sets.offset(*sizes, mask_size=mask_size, **given)
        case "exact":
            given = {"coverage": 6} | given | _taken(options, spread=str)
            return mask_sets.exact_k_fold(*sizes, mask_size=mask_size, **given)
        case _:
            raise ValueError(f"tiling: expected one of {', '.join(_TILINGS)}, got {tiling!r}")


def size(text: str) -> int | tuple[int, int]:
    """``"5"`` -> 5, ``"5x9"`` -> (5, 9): height x width in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"expected pixels such as 5 or 5x9 (height x width), got {text!r}")
    numbers = tuple(int(part) for part in parts)
    return as_size(numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1]))


def _coverage(text: str) -> int | tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
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
