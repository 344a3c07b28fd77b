"""``NAME:key=value,...`` -> a defense: the small language of ``--defense``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable
from typing import Any

from certmask_jax import combined_sets, defenses, mask_sets, pair_covers
from certmask_jax.defenses import Defense
from certmask_jax.geometry import as_size
from certmask_jax.mask_sets import MaskSet
from certmask_jax.threats import Threat, as_threat

Sizes = tuple[tuple[int, int], Threat]  # image, and what is to be hidden on it

DESCRIPTIONS = {
    "double_masking": "PatchCleanser, two rounds; recovery [masks_per_axis | mask_stride | "
    "mask_size | tiling=..., split, and second_ before any of them, ties]",
    "challenger_masking": "PatchCleanser, Appendix C; recovery [masks_per_axis | mask_stride | "
    "mask_size | tiling=..., split]",
    "minority_reports": "one round of votes against the unmasked label; detection "
    "[masks_per_axis | mask_stride | mask_size, split, tau]",
    "mrcert": "MRCert, all unions of four masks (of four times --patches); recovery that may be "
    "asked of a patched image [masks_per_axis | mask_stride | mask_size | tiling=..., split]",
    "certmask": "CertMask's one-round rule; claims recovery, proves none "
    "[tiling, mask_size, coverage, spread, wrap, ties]",
    "certmask_detection": "what CertMask's condition does prove; detection "
    "[tiling, mask_size, coverage, spread, wrap, tolerance]",
    "pair_cover": "one round whose masks hide every two locations together; recovery "
    "[budget | partition | plane, transposed, ties]",
    "plurality": "one round, the label of most masks; recovery [masks_per_axis | mask_stride | "
    "mask_size | tiling=..., ties]",
    "minimum_explanation": "one round, the label that needs the fewest errors of the model; "
    "recovery [masks_per_axis | mask_stride | mask_size | tiling=..., ties]",
    "robust_masking": "one round, PatchGuard's masking on votes; recovery [masks_per_axis | "
    "mask_stride | mask_size | tiling=..., ties]",
}
"""Name -> one line, for ``--list``; every one of them takes ``built_for`` as well."""

_GRID_KEYS = ("masks_per_axis", "mask_stride", "mask_size")
_PAIR_KEYS = ("budget", "partition", "plane")
_TILING_KEYS = ("tiling", "mask_size", "coverage", "spread", "wrap")
_BUILT_FOR = "built_for"  # any of them takes it
_TILINGS = ("tight", "replicated", "offset", "exact")
_SECOND = "second_"  # before the keys of a second round's masks
_VOTES = {
    "plurality": defenses.plurality,
    "minimum_explanation": defenses.minimum_explanation,
    "robust_masking": defenses.robust_masking,
}


def build(spec: str, image_size: tuple[int, int], threat: Threat | tuple[int, int]) -> Defense:
    """The defense that ``spec`` names, for one image size and threat (or bare patch size).

    Raises:
      ValueError: for an unknown name, key or value, listing what there is, or a mask set that
        does not cover, or has more unions than would be done.
    """
    name, _, rest = spec.partition(":")
    if name not in DESCRIPTIONS:
        close = difflib.get_close_matches(name, DESCRIPTIONS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(
            f"--defense: expected one of {', '.join(DESCRIPTIONS)}, got {name!r}{hint}"
        )
    options = _parsed(spec, rest)
    attack = as_threat(threat, image_size)
    try:
        sizes, against = _built_for(attack, options)
        match name:
            case "double_masking":
                second = _second_set(sizes, options)
                masks = _mask_set(sizes, options)
                given = _taken(options, ties=str)
                found = defenses.double_masking(masks, second, **given, **against)
            case "challenger_masking":
                found = defenses.challenger_masking(_mask_set(sizes, options), **against)
            case "minority_reports":
                masks = _grid(sizes, options)
                found = defenses.minority_reports(masks, **_taken(options, tau=float), **against)
            case "mrcert":
                masks = _mask_set((sizes[0], _one_patch(sizes[1])), options)
                found = defenses.mrcert(masks, patches=len(sizes[1]), **against)
            case "certmask":
                masks = _tiling(sizes, options)
                found = defenses.certmask(masks, **_taken(options, ties=str), **against)
            case "pair_cover":
                masks = _pair_cover(sizes, options)
                found = defenses.pair_cover(masks, **_taken(options, ties=str), **against)
            case "certmask_detection":
                masks = _tiling(sizes, options)
                given = _taken(options, tolerance=int)
                found = defenses.certmask_detection(masks, **given, **against)
            case _:
                masks = _mask_set(sizes, options)
                found = _VOTES[name](masks, **_taken(options, ties=str), **against)
    except ValueError as error:
        raise ValueError(f"--defense {spec}: {error}") from error
    if options:
        keys = _TILING_KEYS if name.startswith("certmask") else _GRID_KEYS
        keys = _PAIR_KEYS if name == "pair_cover" else keys
        raise ValueError(
            f"--defense {spec}: unknown option {next(iter(options))!r}; expected some of "
            f"{', '.join(keys)}, {_BUILT_FOR} or those of "
            f"{DESCRIPTIONS[name].rpartition('[')[2].rstrip(']')}"
        )
    if not against:
        return found
    built_for = [list(shape) for shape in sizes[1].shapes]
    return dataclasses.replace(found, options={**found.options, _BUILT_FOR: built_for})


def split_built_for(spec: str) -> tuple[str, str | None]:
    """``"NAME:key=value,built_for=12"`` -> (``"NAME:key=value"``, ``"12"``)."""
    name, _, rest = spec.partition(":")
    options = _parsed(spec, rest)
    built_for = options.pop(_BUILT_FOR, None)
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


def _built_for(attack: Threat, options: dict[str, str]) -> tuple[Sizes, dict[str, Any]]:
    """What masks are to hide, and what is proved if that is less (``built_for``)."""
    given = _taken(options, built_for=size)
    if not given:
        return (attack.image_size, attack), {}
    larger = Threat.of(attack.image_size, given[_BUILT_FOR], patches=len(attack))
    return (attack.image_size, larger), {"against": attack}


def _one_patch(threat: Threat) -> Threat:
    """One of several equal patches."""
    if len(set(threat.patches)) > 1:
        raise ValueError(f"expected patches of the same shapes, got {threat}")
    return Threat(threat.image_size, threat.patches[:1], threat.region)


def _mask_set(sizes: Sizes, options: dict[str, str]) -> MaskSet:
    """A grid, or with ``tiling`` one of CertMask's mask sets."""
    return (_tiling if "tiling" in options else _grid)(sizes, options)


def _second_set(sizes: Sizes, options: dict[str, str]) -> MaskSet | None:
    """The masks of the second round, from keys such as ``second_masks_per_axis``; None if none."""
    given = [key for key in options if key.startswith(_SECOND)]
    if not given:
        return None
    own = {key.removeprefix(_SECOND): options.pop(key) for key in given}
    masks = _mask_set(sizes, own)
    options.update({_SECOND + key: value for key, value in own.items()})  # not understood
    return masks


def _grid(sizes: Sizes, options: dict[str, str]) -> MaskSet:
    """PatchCleanser's grid (6 x 6 unless told otherwise), or the tight grid of a mask size."""
    given = _taken(options, masks_per_axis=size, mask_stride=size, mask_size=size)
    if len(given) > 1:
        raise ValueError(f"expected only one of {', '.join(_GRID_KEYS)}, got {', '.join(given)}")
    given = given or {"masks_per_axis": 6}
    builder = mask_sets.tight_grid if "mask_size" in given else mask_sets.budgeted_grid
    if "mask_size" not in given:
        given |= _taken(options, split=str)
    return combined_sets.for_threat(sizes[1], functools.partial(builder, **given))


def _pair_cover(sizes: Sizes, options: dict[str, str]) -> MaskSet:
    """Pairs of blocks (the best of at most 15 masks unless told otherwise), or a finite plane."""
    given = _taken(options, budget=int, partition=_partition, plane=str)
    if len(given) > 1:
        raise ValueError(f"expected only one of {', '.join(_PAIR_KEYS)}, got {', '.join(given)}")
    builder: Callable[..., MaskSet]
    if "partition" in given:
        transposed = _taken(options, transposed=_flag)
        rows = given["partition"]
        builder = functools.partial(pair_covers.pairs_of_blocks, rows=rows, **transposed)
    elif given.get("plane", "").lower() == "fano":
        builder = pair_covers.fano_plane
    elif "plane" in given:
        if not given["plane"].isdecimal():
            raise ValueError(f"plane: expected fano or an order such as 3, got {given['plane']!r}")
        builder = functools.partial(pair_covers.affine_plane, order=int(given["plane"]))
    else:
        builder = functools.partial(pair_covers.pair_cover, **(given or {"budget": 15}))
    return combined_sets.for_threat(sizes[1], builder)


def _tiling(sizes: Sizes, options: dict[str, str]) -> MaskSet:
    """CertMask's mask sets; masks of 1.5 patches a side unless told otherwise, as in its paper."""
    tiling = options.pop("tiling", "replicated")
    if tiling not in _TILINGS:
        raise ValueError(f"tiling: expected one of {', '.join(_TILINGS)}, got {tiling!r}")
    given = _taken(options, mask_size=size)
    coverage = _taken(options, coverage=_coverage).get("coverage", 1 if tiling == "tight" else 6)
    if tiling == "offset":
        given |= _taken(options, wrap=_flag, rounded_stride=str)
    elif tiling == "exact":
        given |= _taken(options, spread=str)

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

    return combined_sets.for_threat(sizes[1], one_shape)


def size(text: str) -> int | tuple[int, int]:
    """``"5"`` -> 5, ``"5x9"`` -> (5, 9): height x width in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"expected pixels such as 5 or 5x9 (height x width), got {text!r}")
    numbers = tuple(int(part) for part in parts)
    return as_size(numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1]))


def _partition(text: str) -> tuple[int, ...]:
    """``"2/3"`` -> (2, 3), rows of 2 and 3 blocks; ``"2x3"`` -> (3, 3), 2 rows of 3 blocks."""
    rows, by, cols = text.lower().partition("x")
    parts = [rows, cols] if by else text.split("/")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(
            f"expected rows x columns of blocks such as 2x3, or the blocks in each row such as "
            f"2/3, got {text!r}"
        )
    numbers = tuple(int(part) for part in parts)
    return (numbers[1],) * numbers[0] if by else numbers


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
