"""Where in a file a model's weights are: under wrappers' names, nested, perhaps more than once.

A file may hold two sets of weights, the last ones and their average: which one is meant is asked,
not guessed. What stands in front of the names of a set is found in ``wrappers``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from certmask_jax._settings import SettingError
from certmask_jax.weights import families, google, wrappers
from certmask_jax.weights.families import Shapes
from certmask_jax.weights.gate import FLOATING
from certmask_jax.weights.stored import Entry, WeightsFile

TOP = "."
"""The name of the top level of a file, where another set of weights is nested beside it."""

_WRAPPERS = ("module", "params", "variables")  # left out of the name of a set, but for the first
# What certmask_jax's own training writes: the average is the result, where there is one.
_OWN = ("average", "variables")


@dataclasses.dataclass(frozen=True)
class Place:
    """One set of weights in a file.

    Attributes:
      prefix: what stands in front of all its names.
      entry: how a user names it.
      entries: its arrays under PyTorch's names and in PyTorch's layouts (Google's: as they are).
      unexpected: names beside it, in the same place of the file, that are not of the model.
      others: names of what is no array there, with its type.
      is_googles: whether the names are Google's.
    """

    prefix: str
    entry: str
    entries: Mapping[str, Entry]
    unexpected: tuple[str, ...]
    others: Mapping[str, str]
    is_googles: bool


@dataclasses.dataclass(frozen=True)
class Taken:
    """Which of a file's sets of weights is read.

    Attributes:
      entry: its name; None where there is no other.
      others: names of those that are not.
    """

    entry: str | None
    others: tuple[str, ...] = ()


def choose(file: WeightsFile, shapes: Shapes, entry: str | None) -> tuple[Place, Taken]:
    """The set of weights in a file that a model takes.

    Args:
      file: what was opened.
      shapes: the model's, by PyTorch's name.
      entry: the name of the set, or of the place that it is in; None when there is one to take.

    Raises:
      SettingError: when there are several that differ and none was named, or none of that name.
    """
    names = wrappers.without_inner(file.entries)
    prefixes = wrappers.prefixes_of_model(names, shapes)
    if entry is not None:
        return _named(file, names, shapes, prefixes, entry)
    if len(prefixes) > 1:
        return _of_several(file, names, shapes, prefixes)
    prefix = prefixes[0] if prefixes else wrappers.likeliest(file, names)
    place = _place(file, names, prefix, _scope(file, prefix), shapes)
    return place, Taken(None)


def num_classes(file: WeightsFile, entry: str | None) -> int | None:
    """How many outputs the head has, of one set or of all alike; None without a head."""
    names = {
        n: e
        for n, e in wrappers.without_inner(file.entries).items()
        if not wrappers.OPTIMISER.search(n)
    }
    if entry is not None:
        names = {n: e for n, e in names.items() if _under(n, entry)}
    googles = [
        google.num_classes({n: e.shape for n, e in names.items()}, p)
        for p in wrappers.prefixes_of_google(names)
    ]
    if googles:
        return googles[0] if len(set(googles)) == 1 else None
    shapes = wrappers.dotted(names)
    counts = {
        families.num_classes({n[len(p) :]: s for n, s in shapes.items() if n.startswith(p)})
        for p in families.prefixes(set(shapes)) or [wrappers.common(list(shapes))]
    } - {None}
    return counts.pop() if len(counts) == 1 else None


def _named(
    file: WeightsFile,
    names: Mapping[str, Entry],
    shapes: Shapes,
    prefixes: Sequence[str],
    entry: str,
) -> tuple[Place, Taken]:
    labels = _labels(prefixes)
    at = "" if entry == TOP else entry.rstrip("./")
    exact = [p for p in prefixes if at in (labels[p], p.rstrip("./"))]
    fitting = exact[:1] or [p for p in prefixes if _under(p, at)]
    if len(fitting) > 1:
        return _of_several(file, names, shapes, fitting)
    if fitting:
        prefix = fitting[0]
    else:
        seps = {n[len(at)] for n in names if at and len(n) > len(at) and _under(n, at)}
        if not seps:
            got = ", ".join(labels.values()) or "no weights of this model"
            got = "one without a name" if got == TOP else got
            raise SettingError(
                lambda say: (
                    f"{file.path}: expected a set of weights called {entry!r}, found {got}"
                    + ("" if len(labels) > 1 else f"; leave out {say('entry', entry)}")
                )
            )
        below = {n[len(at) + 1 :]: e for n, e in names.items() if _under(n, at)}
        prefix = f"{at}{min(seps)}{wrappers.likeliest(file, below)}"
    scope = max(_scope(file, prefix), f"{at}{prefix[len(at) : len(at) + 1]}" if at else "", key=len)
    away = [p for p in prefixes if not prefix.startswith(p)]
    names = {n: e for n, e in names.items() if not n.startswith(tuple(away))}
    place = _place(file, names, prefix, scope if at else "", shapes, away)
    others = tuple(labels[p] for p in prefixes if p != prefix)
    return place, Taken(labels.get(prefix, entry), others)


def _of_several(
    file: WeightsFile, names: Mapping[str, Entry], shapes: Shapes, prefixes: Sequence[str]
) -> tuple[Place, Taken]:
    labels = _labels(prefixes)
    places = {}
    for prefix in prefixes:  # the others' names are accounted for
        away = [p for p in prefixes if not prefix.startswith(p)]
        kept = {n: e for n, e in names.items() if not n.startswith(tuple(away))}
        places[prefix] = _place(file, kept, prefix, _scope(file, prefix), shapes, away)
    own = {labels[p]: p for p in prefixes}
    if set(own) == set(_OWN) and file.nested:
        first = places[own[_OWN[0]]]
        return first, Taken(first.entry, _OWN[1:])
    first, *rest = places.values()
    others = tuple(place.entry for place in rest)
    if all(_same(first, place, shapes) for place in rest):
        return first, Taken(first.entry, others)
    named = list(labels.values())
    raise SettingError(
        lambda say: (
            f"{file.path}: expected one set of weights, got {len(named)} that differ: "
            f"{', '.join(named)}. Say which one is meant: "
            f"{' or '.join(say('entry', name) for name in named)}"
        )
    )


def _place(
    file: WeightsFile,
    names: Mapping[str, Entry],
    prefix: str,
    scope: str,
    shapes: Shapes,
    away: Sequence[str] = (),
) -> Place:
    """What lies under ``prefix``; all that is in ``scope`` has to be of the model.

    Args:
      away: prefixes of other sets of weights, which are accounted for.
    """
    is_googles = prefix in wrappers.prefixes_of_google(names)
    entries: dict[str, Entry] = {}
    unexpected = []
    for name, entry in names.items():
        if wrappers.is_counter(name, entry) or not name.startswith(scope):
            continue
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            own_name, laid_out = (rest, entry) if is_googles else wrappers.in_torch(rest, entry)
            entries[own_name] = laid_out
        else:
            unexpected.append(name[len(scope) :])
    if not is_googles:
        entries |= _averages(names, prefix, shapes, entries)
        taken = {name for name in unexpected if _is_average(names[scope + name], name, entries)}
        unexpected = [name for name in unexpected if name not in taken]
    others = {
        name[len(scope) :]: kind
        for name, kind in file.others.items()
        if name.startswith(scope)
        and "/" not in name[len(scope) :]
        and not any(p.startswith(f"{name}/") for p in away)
    }
    return Place(prefix, _label(prefix), entries, tuple(unexpected), others, is_googles)


def _averages(
    names: Mapping[str, Entry], prefix: str, shapes: Shapes, entries: Mapping[str, Entry]
) -> dict[str, Entry]:
    """Running averages, which Flax keeps in a collection of their own beside ``prefix``."""
    wanted = set(filter(wrappers.is_running, shapes)) - set(entries)
    if not wanted or not prefix.endswith("/"):
        return {}
    parent, _, name = prefix.rstrip("/").rpartition("/")
    parent = f"{parent}/" if parent else ""
    beside = {
        begin
        for path in names
        if (match := re.match(r"(.*?)(?<![^/])([^/]*batch_stats/)", path))
        and not wrappers.OPTIMISER.search(path)
        for begin in [match[1] + match[2]]
    }
    own = f"{parent}{name.replace('params', 'batch_stats')}/"
    tried = [own, f"{parent}batch_stats/", *(beside if len(beside) == 1 else ())]
    at = next((place for place in tried if place in beside), None)
    if at is None:
        return {}
    return dict(wrappers.in_torch(n[len(at) :], e) for n, e in names.items() if n.startswith(at))


def _is_average(entry: Entry, name: str, entries: Mapping[str, Entry]) -> bool:
    _, _, path = name.partition("batch_stats/")
    return bool(path) and wrappers.in_torch(path, entry)[0] in entries


def _scope(file: WeightsFile, prefix: str) -> str:
    """What has to be the model's and nothing else: a flat file, else the place of ``prefix``."""
    return prefix[: prefix.rfind("/") + 1] if file.nested else ""


def _labels(prefixes: Sequence[str]) -> dict[str, str]:
    """Prefix -> the name that a user gives, short where that tells them apart."""
    short = {prefix: _label(prefix) for prefix in prefixes}
    if len(set(short.values())) == len(short):
        return short
    return {prefix: prefix.rstrip("./") or TOP for prefix in prefixes}


def _label(prefix: str) -> str:
    words = re.split(r"[./]", prefix.rstrip("./"))
    end = len(words)
    while end > 1 and words[end - 1] in _WRAPPERS:
        end -= 1
    kept = re.match(r"[./]?".join(map(re.escape, words[:end])), prefix)
    return (kept[0] if kept else "") or TOP


def _under(name: str, place: str) -> bool:
    place = place.rstrip("./")
    return not place or place == TOP or name.startswith((f"{place}/", f"{place}."))


def _same(a: Place, b: Place, shapes: Shapes) -> bool:
    """Whether two sets hold the same numbers for the model."""
    for name in shapes:
        x, y = a.entries.get(name), b.entries.get(name)
        if x is None or y is None or x.shape != y.shape or {x.kind, y.kind} - set(FLOATING):
            return False
        if not np.array_equal(np.asarray(x.read(), np.float32), np.asarray(y.read(), np.float32)):
            return False
    return True
