"""``NAME:key=value,...`` -> a defense: what ``--defense`` takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from certmask_jax._text import like, names_of
from certmask_jax.defenses import Defense
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat, as_threat
from certmask_jax.programs import (
    defense_entries,
    evidence_entries,
    imported,
    mask_entries,
    mask_specs,
)
from certmask_jax.programs.defense_entries import BUILT_FOR, SECOND, DefenseEntry
from certmask_jax.programs.mask_specs import UnknownKeyError
from certmask_jax.programs.program import LISTED
from certmask_jax.programs.spec_keys import pairs, values


@dataclasses.dataclass(frozen=True)
class Spec:
    """A defense as it was typed, in its parts.

    Attributes:
      name: of the defense, or its import path.
      keys: each with its value, in the order in which they were typed.
    """

    name: str
    keys: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        keys = ",".join(map("=".join, self.keys))
        return f"{self.name}:{keys}" if keys else self.name


def parsed(text: str) -> Spec:
    """The parts of a spec; the name need not be one that there is.

    Raises:
      ValueError: for what is not ``NAME:key=value,...``.
    """
    name = _name(text)
    rest = text[len(name) :]
    keys = pairs(rest[1:], f"--defense {text}")
    if rest and not keys:
        raise ValueError(f"--defense {text}: expected key=value after the colon, got none")
    return Spec(name, keys)


def check(text: str) -> Spec:
    """The parts of a spec, checked as far as can be before there is an image to build it for.

    Raises:
      ValueError: for an unknown name or key, or what is not ``NAME:key=value,...``.
    """
    if evidence_entries.is_on_evidence(text):
        return Spec(evidence_entries.name_of(text), tuple(evidence_entries.check(text).items()))
    return _checked(text)[0]


def _checked(text: str) -> tuple[Spec, DefenseEntry]:
    if evidence_entries.is_on_evidence(text):
        raise ValueError(
            f"--defense {text}: expected a defense that masks images; those on evidence are for "
            "certify and attack"
        )
    try:
        entry = defense_entries.entry(_name(text), others=evidence_entries.EVIDENCE)
    except ValueError as error:
        raise ValueError(f"--defense: {error}") from error
    spec, known = parsed(text), entry.key_names
    for key, _ in spec.keys:
        if key not in known:
            raise ValueError(
                f"--defense {text}: unknown option {key!r}{like(key, known)}; expected keys of "
                f"{spec.name} and of its masks, {names_of(known, 'keys', LISTED)}"
            )
    return spec, entry


def build(text: str, image_size: tuple[int, int], threat: Threat | tuple[int, int]) -> Defense:
    """The defense that a spec names, for one image size and threat (or bare patch size).

    Raises:
      ValueError: for an unknown name, key or value, listing what there is, or a mask set that
        does not cover, or has more unions than would be done.
    """
    spec, entry = _checked(text)
    attack = as_threat(threat, image_size)
    try:
        return _built(entry, spec, text, attack)
    except UnknownKeyError as error:
        here = [key.name for key in (*entry.keys, *error.entry.keys)]
        raise ValueError(
            f"--defense {text}: unknown option {error.key!r} here{like(error.key, here)}; expected "
            f"{', '.join(here)} of {entry.name} with masks by {error.entry.chosen_by} (--list)"
        ) from error
    except ValueError as error:
        raise ValueError(f"--defense {text}: {error}") from error


def _built(entry: DefenseEntry, spec: Spec, text: str, attack: Threat) -> Defense:
    given = dict(spec.keys)
    built_for = values([BUILT_FOR], given)
    hidden, against = attack, {}
    if built_for:  # what masks are to hide, which is more than what is proved
        hidden = Threat.of(attack.image_size, built_for[BUILT_FOR.name], patches=len(attack))
        against = {"against": attack}
    own = {key.name for key in entry.keys}
    of_masks = {
        key: value for key, value in given.items()
        if key not in own and key in mask_entries.KEYS
    }  # fmt: skip
    hides = _one_patch(hidden) if entry.counts_patches else hidden
    is_other = bool(against) or any(key.startswith(SECOND) for key in given)
    rounds = 0 if is_other else entry.rounds
    masks: list[MaskSet | None] = [
        mask_specs.mask_set(hides, of_masks, default=entry.masks, rounds=rounds)
    ]
    if entry.second_round:
        masks.append(_second_set(hidden, given))
    arguments: dict[str, Any] = values(entry.keys, given)
    if entry.counts_patches:
        arguments["patches"] = len(hidden)
    return dataclasses.replace(entry.build(*masks, **arguments, **against), spec=text)


def is_one_rule(text: str) -> bool:
    """Whether a spec names one that is the same classifier against every patch.

    It asks no mask, or its masks are those of the image and its rule is of their labels alone.
    """
    spec, entry = _checked(text)
    if entry.asks_the_image:
        return True
    of_masks = {key: value for key, value in spec.keys if key in mask_entries.KEYS}
    return entry.counts_labels and mask_specs.chosen(of_masks, entry.masks)[0].of_image


def without_built_for(text: str) -> tuple[str, str | None]:
    """``"NAME:key=value,built_for=12"`` -> (``"NAME:key=value"``, ``"12"``)."""
    spec = parsed(text)
    keys = tuple((key, value) for key, value in spec.keys if key != BUILT_FOR.name)
    return str(Spec(spec.name, keys)), dict(spec.keys).get(BUILT_FOR.name)


def with_built_for(text: str, patch_size: tuple[int, int]) -> str:
    """A spec whose masks are built for one patch, whatever patch it is certified against."""
    height, width = patch_size
    side = str(height) if height == width else f"{height}x{width}"
    spec = parsed(text)
    return str(Spec(spec.name, (*spec.keys, (BUILT_FOR.name, side))))


def registered_paths(texts: Iterable[str]) -> dict[str, str]:
    """Name -> import path, of the specs whose names other packages have registered."""
    own = {*defense_entries.DEFENSES, *evidence_entries.EVIDENCE}
    names = {_name(text) for text in texts} - own
    known = imported.registered(imported.DEFENSES) if names else {}
    return {name: known[name] for name in sorted(names) if name in known}


def _name(text: str) -> str:
    """The name in a spec: all before the first colon, or an import path, which has a colon."""
    name = text.partition(":")[0]
    if name in defense_entries.DEFENSES or name in evidence_entries.EVIDENCE:
        return name
    return imported.begins_with_path(text) or name


def _one_patch(threat: Threat) -> Threat:
    """One of several equal patches."""
    if len(set(threat.patches)) > 1:
        raise ValueError(f"expected patches of the same shapes, got {threat}")
    return Threat(threat.image_size, threat.patches[:1], threat.region)


def _second_set(hidden: Threat, given: Mapping[str, str]) -> MaskSet | None:
    """The masks of the second round, from keys such as ``second_masks_per_axis``; None if none."""
    own = {key.removeprefix(SECOND): v for key, v in given.items() if key.startswith(SECOND)}
    try:
        return mask_specs.mask_set(hidden, own) if own else None
    except UnknownKeyError as error:
        raise UnknownKeyError(SECOND + error.key, error.entry) from error
