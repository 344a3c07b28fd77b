"""``NAME:key=value,...`` -> a defense: the small language of ``--defense``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from certmask_jax import defenses
from certmask_jax.defenses import Defense
from certmask_jax.masks.mask_sets import MaskSet
from certmask_jax.masks.threats import Threat, as_threat
from certmask_jax.programs import mask_set_specs
from certmask_jax.programs.command_line import hint
from certmask_jax.programs.mask_set_specs import mask_set, parsed, size, taken

DESCRIPTIONS = {
    "double_masking": "PatchCleanser, two rounds; recovery [second_ before keys of masks: those of "
    "the second round; ties]",
    "challenger_masking": "PatchCleanser, Appendix C; recovery",
    "minority_reports": "one round of votes against the unmasked label; detection [tau]",
    "mrcert": "MRCert, all unions of four masks (four times --patches); recovery that may be asked "
    "of a patched image",
    "pair_cover": "one round whose masks hide every two locations together; recovery [ties; masks: "
    "budget=15]",
    "certmask": "CertMask's one-round rule; claims recovery, proves none [ties; masks: "
    "tiling=replicated]",
    "certmask_detection": "what CertMask's condition does prove; detection [tolerance; masks: "
    "tiling=replicated]",
    "plurality": "one round, the label of most masks; recovery [ties]",
    "minimum_explanation": "one round, the label that needs the fewest errors of the model; "
    "recovery [ties]",
    "robust_masking": "one round, PatchGuard's masking on votes; recovery [ties]",
}
"""Name -> one line, for ``--list``."""

MASKS = {
    **mask_set_specs.DESCRIPTIONS,
    "built_for=SIZE": "masks for that patch, anywhere, whatever is proved against",
}
"""What every defense takes as its masks (masks_per_axis=6 unless it says otherwise)."""

_BUILT_FOR = "built_for"
_SECOND = "second_"
_OWN_KEYS = ("ties", "tau", "tolerance")
_VOTES: dict[str, Callable[..., Defense]] = {
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
    name, options = check(spec)
    attack = as_threat(threat, image_size)
    found: Defense
    try:
        hidden, against = _built_for(attack, options)
        match name:
            case "double_masking":
                second = _second_set(hidden, options)
                masks = mask_set(hidden, options)
                found = defenses.double_masking(
                    masks, second, **taken(options, ties=str), **against
                )
            case "challenger_masking":
                found = defenses.challenger_masking(mask_set(hidden, options), **against)
            case "minority_reports":
                masks = mask_set(hidden, options)
                found = defenses.minority_reports(masks, **taken(options, tau=float), **against)
            case "mrcert":
                masks = mask_set(_one_patch(hidden), options)
                found = defenses.mrcert(masks, patches=len(hidden), **against)
            case "pair_cover":
                masks = mask_set(hidden, options, default="budget=15")
                found = defenses.pair_cover(masks, **taken(options, ties=str), **against)
            case "certmask":
                masks = _tiling(hidden, options)
                found = defenses.certmask(masks, **taken(options, ties=str), **against)
            case "certmask_detection":
                masks = _tiling(hidden, options)
                given = taken(options, tolerance=int)
                found = defenses.certmask_detection(masks, **given, **against)
            case _:
                masks = mask_set(hidden, options)
                found = _VOTES[name](masks, **taken(options, ties=str), **against)
    except ValueError as error:
        raise ValueError(f"--defense {spec}: {error}") from error
    if options:
        own = DESCRIPTIONS[name].partition("[")[2].partition(";")[0].rstrip("]")
        key = next(iter(options))
        raise ValueError(
            f"--defense {spec}: unknown option {key!r} here{hint(key, set(_keys(name)) - {key})}; "
            f"expected {own + ', and ' if own else ''}keys of one kind of masks (--list)"
        )
    return dataclasses.replace(found, spec=spec)


def check(spec: str) -> tuple[str, dict[str, str]]:
    """Name and keys of a defense, before there is an image to build it for.

    Raises:
      ValueError: for an unknown name or key, or what is not ``NAME:key=value,...``.
    """
    name, colon, rest = spec.partition(":")
    if name not in DESCRIPTIONS:
        like = hint(re.split("[,= ]", name)[0], DESCRIPTIONS)
        raise ValueError(
            f"--defense: expected one of {', '.join(DESCRIPTIONS)}, got {name!r}{like}"
        )
    options = parsed(rest, f"--defense {spec}")
    if colon and not options:
        raise ValueError(f"--defense {spec}: expected key=value after the colon, got none")
    known = _keys(name)
    for key in options:
        if key not in known:
            raise ValueError(
                f"--defense {spec}: unknown option {key!r}{hint(key, known)}; expected keys of "
                f"{name} and of its masks (--list): {', '.join(known)}"
            )
    return name, options


def _keys(name: str) -> tuple[str, ...]:
    """The keys that a defense may have, its own first."""
    own = tuple(key for key in _OWN_KEYS if key in DESCRIPTIONS[name].partition("[")[2])
    second = tuple(map(_SECOND.__add__, mask_set_specs.KEYS)) if name == "double_masking" else ()
    return (*own, *mask_set_specs.KEYS, *second, _BUILT_FOR)


def split_built_for(spec: str) -> tuple[str, str | None]:
    """``"NAME:key=value,built_for=12"`` -> (``"NAME:key=value"``, ``"12"``)."""
    name, _, rest = spec.partition(":")
    options = parsed(rest, f"--defense {spec}")
    built_for = options.pop(_BUILT_FOR, None)
    if built_for is None:
        return spec, None
    return ":".join([name, *[",".join(map("=".join, options.items()))] * bool(options)]), built_for


def with_built_for(spec: str, patch_size: tuple[int, int]) -> str:
    """The same defense with masks built for one patch, whatever patch it is certified against."""
    height, width = patch_size
    side = str(height) if height == width else f"{height}x{width}"
    return f"{spec}{',' if ':' in spec else ':'}built_for={side}"


def _built_for(attack: Threat, options: dict[str, str]) -> tuple[Threat, dict[str, Any]]:
    """What masks are to hide, and what is proved if that is less (``built_for``)."""
    given = taken(options, built_for=size)
    if not given:
        return attack, {}
    larger = Threat.of(attack.image_size, given[_BUILT_FOR], patches=len(attack))
    return larger, {"against": attack}


def _tiling(hidden: Threat, options: dict[str, str]) -> MaskSet:
    """CertMask's masks: its tilings, unless other masks are asked for by name."""
    if not any(key in options for key in ("tiling", *mask_set_specs.OTHER_KEYS)):
        options["tiling"] = "replicated"  # mask_size is that of the tiling
    return mask_set(hidden, options)


def _one_patch(threat: Threat) -> Threat:
    """One of several equal patches."""
    if len(set(threat.patches)) > 1:
        raise ValueError(f"expected patches of the same shapes, got {threat}")
    return Threat(threat.image_size, threat.patches[:1], threat.region)


def _second_set(hidden: Threat, options: dict[str, str]) -> MaskSet | None:
    """The masks of the second round, from keys such as ``second_masks_per_axis``; None if none."""
    given = [key for key in options if key.startswith(_SECOND)]
    if not given:
        return None
    own = {key.removeprefix(_SECOND): options.pop(key) for key in given}
    masks = mask_set(hidden, own)
    options.update({_SECOND + key: value for key, value in own.items()})  # not understood
    return masks
