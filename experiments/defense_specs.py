"""``NAME:key=value,...`` -> a defense: the small language of ``--defense``."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import Defense
from certmask_jax.geometry import as_size
from certmask_jax.mask_sets import MaskSet, for_smaller_patch

Sizes = tuple[tuple[int, int], tuple[int, int]]  # image, patch that masks are built for

DESCRIPTIONS = {
    "double_masking": "PatchCleanser, two rounds; recovery [masks_per_axis | mask_stride | "
    "mask_size, ties]",
    "challenger_masking": "PatchCleanser, Appendix C; recovery [masks_per_axis | mask_stride | "
    "mask_size]",
    "minority_reports": "one round of votes against the unmasked label; detection "
    "[masks_per_axis | mask_stride | mask_size, tau]",
    "certmask": "CertMask's one-round rule; claims recovery, proves none "
    "[tiling, mask_size, coverage, spread, wrap, ties]",
    "certmask_detection": "what CertMask's condition does prove; detection "
    "[tiling, mask_size, coverage, spread, wrap, tolerance]",
}
"""Name -> one line, for ``--list``; every one of them takes ``built_for`` as well."""

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
    try:
        built_for = _taken(options, built_for=size).get("built_for", patch_size)
        sizes = (image_size, as_size(built_for))
        match name:
            case "double_masking":
                masks = for_smaller_patch(_grid(sizes, options), patch_size)
                found = defenses.double_masking(masks, **_taken(options, ties=str))
            case "challenger_masking":
                masks = for_smaller_patch(_grid(sizes, options), patch_size)
                found = defenses.challenger_masking(masks)
            case "minority_reports":
                masks = for_smaller_patch(_grid(sizes, options), patch_size)
                found = defenses.minority_reports(masks, **_taken(options, tau=float))
            case "certmask":
                masks = for_smaller_patch(_tiling(sizes, options), patch_size)
                found = defenses.certmask(masks, **_taken(options, ties=str))
            case _:
                masks = for_smaller_patch(_tiling(sizes, options), patch_size)
                found = defenses.certmask_detection(masks, **_taken(options, tolerance=int))
    except ValueError as error:
        raise ValueError(f"--defense {spec}: {error}") from error
    if options:
        keys = (*(_TILING_KEYS if name.startswith("certmask") else _GRID_KEYS), "built_for")
        raise ValueError(
            f"--defense {spec}: unknown option {next(iter(options))!r}; expected some of "
            f"{', '.join(keys)} or those of {DESCRIPTIONS[name].rpartition('[')[2].rstrip(']')}"
        )
    if sizes[1] == patch_size:
        return found
    if found.mask_set.patch_size != patch_size:
        raise ValueError(f"--defense {spec}: {name} has no masks built_for larger patches")
    return dataclasses.replace(found, options={**found.options, "built_for": sizes[1]})


def split_built_for(spec: str) -> tuple[str, str | None]:
    """``"NAME:key=value,built_for=12"`` -> (``"NAME:key=value"``, ``"12"``)."""
    name, _, rest = spec.partition(":")
    options = _parsed(spec, rest)
    built_for = options.pop("built_for", None)
    if built_for is None:
        return spec, None
    return ":".join([name, *[",".join(map("=".join, options.items()))] * bool(options)]), built_for


def with_built_for(spec: str, patch_size: tuple[int, int]) -> str:
    """The same defense with masks built for one patch, whatever patch it is certified against."""
    height, width = patch_size
    side = str(height) if height == width else f"{height}x{width}"
    return f"{spec}{',' if ':' in spec else ':'}built_for={side}"


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
