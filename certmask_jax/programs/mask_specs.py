"""Masks from ``key=value,...``: one key chooses their kind, and the others are its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from certmask_jax.masks import combined_sets
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.command_line import hint
from certmask_jax.programs.mask_entries import DEFAULT, KEYS, MASKS, TILING, MaskEntry
from certmask_jax.programs.spec_keys import pairs, values

_FAMILIES = ("tiling", "pairs", "bands", "tokens", "grid")  # the first that is asked for decides


def mask_set(
    threat: Threat, given: Mapping[str, str], *, default: str = DEFAULT, rounds: int = 0
) -> MaskSet:
    """The masks that keys say, for a threat.

    Args:
      threat: what the masks are to hide.
      given: keys and their values, of masks alone.
      default: what stands for masks that nothing is said of: ``"key=value"``.
      rounds: how many of them are united, see ``combined_sets.several_patches``.

    Raises:
      UnknownKeyError: for a key that these masks do not have.
      ValueError: for values that cannot be read, masks that do not cover, or keys that exclude
        each other.
    """
    entry, own = chosen(given, default)
    for key in own:
        if key not in {one.name for one in entry.keys}:
            raise UnknownKeyError(key, entry)
    more = entry.keys[1:] if entry.family == "tiling" else entry.keys
    build = functools.partial(entry.build, **values(more, own))
    try:
        if entry.of_image:
            return build(threat.image_size, threat)
        return combined_sets.for_threat(threat, build, rounds=rounds)
    except ValueError as error:  # which may call a key by the builder's word for it
        argument, _, rest = str(error).partition(":")
        typed = {key.argument: key.name for key in more if key.argument}.get(argument)
        if typed is None:
            raise
        raise ValueError(f"{typed}:{rest}") from error


class UnknownKeyError(ValueError):
    """A key that there is, but not of these masks.

    Attributes:
      key: which.
      entry: the masks.
    """

    def __init__(self, key: str, entry: MaskEntry) -> None:
        super().__init__(f"{key}: expected a key of masks by {entry.chosen_by}")
        self.key, self.entry = key, entry


def chosen(given: Mapping[str, str], default: str = DEFAULT) -> tuple[MaskEntry, dict[str, str]]:
    """The kind of masks that keys choose, and the keys with what stands for those left out.

    Raises:
      ValueError: for two keys that each choose a kind, or a tiling that there is not.
    """
    key, _, value = default.partition("=")
    usual = _entry(key, value)
    beside = {one.name for one in usual.keys[1:]}  # mask_size is that of a tiling, if that is usual
    for family in _FAMILIES:
        names = list(dict.fromkeys(one.chosen_by for one in MASKS if one.family == family))
        asked = [name for name in given if name in names and name not in beside]
        if len(asked) > 1:
            raise ValueError(f"expected only one of {', '.join(names)}, got {', '.join(asked)}")
        if asked:
            return _entry(asked[0], given[asked[0]]), dict(given)
    return usual, {key: value, **given}


def read(text: str, threat: Threat, option: str) -> MaskSet:
    """The masks of ``"key=value,..."`` alone; ``ValueError`` names the option that it is from."""
    given = dict(pairs(text, option))
    try:
        unknown = next((key for key in given if key not in KEYS), None)
        if unknown is None:
            return mask_set(threat, given)
    except UnknownKeyError as error:
        unknown = error.key
    except ValueError as error:
        raise ValueError(f"{option} {text}: {error}") from error
    like = hint(unknown, set(KEYS) - {unknown})
    raise ValueError(
        f"{option} {text}: unknown key {unknown!r} here{like}; certify --list has them"
    )


def _entry(key: str, value: str) -> MaskEntry:
    """The entry that a key chooses, of tilings with its value."""
    entries: Sequence[MaskEntry] = [entry for entry in MASKS if entry.chosen_by == key]
    if key != TILING.name:
        return entries[0]
    tilings = {entry.example.partition("=")[2]: entry for entry in entries}
    if value not in tilings:
        raise ValueError(
            f"tiling: expected one of {', '.join(tilings)}, got {value!r}{hint(value, tilings)}"
        )
    return tilings[value]
