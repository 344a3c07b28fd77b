"""What rows and columns are called: defenses, and the patches that they are proved against."""

from __future__ import annotations

import collections
import itertools
import string
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from certmask_jax.certification.report.layout import printable
from certmask_jax.masks.threats import Threat

_SHAPES_NAMED = 4


class Named(Protocol):
    """A defense, or what was found of one."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> str: ...
    @property
    def threat(self) -> Threat: ...


class Entry(NamedTuple):
    """A defense, as a table names it at all the patches that it is proved against."""

    spec: str  # as on the command line
    name: str  # short, and a letter where another defense has the same
    name_key: str  # that letter, or nothing
    key: str  # a letter that does without the name


def entries(defenses: Sequence[Named]) -> tuple[list[Entry], list[int]]:
    """The distinct defenses of a report, and which one each of its results is of.

    A defense that was given twice is two.
    """
    numbers: dict[tuple[str, int], int] = {}
    names: list[tuple[str, str]] = []
    seen: collections.Counter[tuple[str, Threat]] = collections.Counter()
    places = []
    for defense in defenses:
        spec = defense.spec or defense.name
        time = seen[spec, defense.threat]
        seen[spec, defense.threat] += 1
        place = numbers.setdefault((spec, time), len(numbers))
        if place == len(names):
            names.append((printable(spec), printable(defense.name)))
        places.append(place)
    counts = collections.Counter(name for _, name in names)
    rows, some_letters, letters = [], _letters(), _letters()
    for spec, name in names:
        letter = next(some_letters) if counts[name] > 1 else ""
        rows.append(Entry(spec, f"{name} {letter}".rstrip(), letter, next(letters)))
    return rows, places


def in_a_line(defenses: Sequence[Named]) -> list[str]:
    """What each is called where nothing is explained: its name, or as on the command line where
    others have that name; and its patch, where there are several."""
    rows, places = entries(defenses)
    several = len({defense.threat for defense in defenses}) > 1
    names = [
        " ".join(
            [rows[place].spec if rows[place].name_key else rows[place].name]
            + [patch(defense.threat)] * several
        )
        for place, defense in zip(places, defenses, strict=True)
    ]
    return unique(names)


def patch(threat: Threat) -> str:
    """The patches of a threat in few words: ``5x5``, ``2 patches of 2x2``, ``5x5 within ...``."""
    height, width = threat.image_size
    text = against(threat).removesuffix(f" on {height}x{width}")
    return text.replace(" patches", "", 1) if len(threat) == 1 else text


def against(threat: Threat) -> str:
    """The threat as text, of many shapes the first, the last and their number."""
    names = [f"{height}x{width}" for height, width in threat.shapes]
    if len(names) <= _SHAPES_NAMED:
        return str(threat)
    every = f"{', '.join(names[:-1])} or {names[-1]}"
    return str(threat).replace(every, f"{names[0]} to {names[-1]} ({len(names)} shapes)")


def masks(mask_set: str, threat: Threat) -> str:
    """The masks of a defense, without what is said of its threat elsewhere."""
    height, width = threat.image_size
    text = mask_set.replace(f", against {threat}", "", 1).replace(f" for {threat}", "", 1)
    return printable(text.replace(f" on {height}x{width}", ""))


def unique(names: Sequence[str]) -> list[str]:
    """The names, with ``#2``, ``#3``, ... where one stands again."""
    taken, distinct = set(names), []
    seen: collections.Counter[str] = collections.Counter()
    for name in names:
        seen[name] += 1
        own = name
        if seen[name] > 1:
            tries = itertools.count(seen[name])
            own = next(text for n in tries if (text := f"{name} #{n}") not in taken)
            taken.add(own)
        distinct.append(own)
    return distinct


def _letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_uppercase, repeat=length):
            yield "".join(letters)
