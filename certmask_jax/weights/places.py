"""Where in a file a model's weights are: under wrappers' names, nested, perhaps more than once.

What a wrapper puts in front of all names (DataParallel ``module.``, torch.compile ``_orig_mod.``,
Lightning ``model.``, any attribute that held the model) is found by comparing with the names that
the model has, so that nothing is taken off that the model needs. A file may hold two sets of
weights, the last ones and their average: which one is meant is asked, not guessed.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from certmask_jax._settings import SettingError
from certmask_jax.weights import families, google, orbax_folders
from certmask_jax.weights.families import Shapes
from certmask_jax.weights.gate import FLOATING
from certmask_jax.weights.names import from_path
from certmask_jax.weights.stored import Entry, WeightsFile

TOP = "."
"""The name of the top level of a file, where another set of weights is nested beside it."""

# Names inside of names that torch's wrappers of single layers leave.
_INNER = re.compile(r"(?<![^./])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Counters beside weights, of one number each: batch normalisation's, torch's AveragedModel's.
_COUNTERS = ("num_batches_tracked", "n_averaged")
# What optimisers keep has the names of the weights too.
_OPTIMISER = re.compile(
    r"(?<![^./])(?:opt_state|optimi[sz]er\w*|optim\w*|opt/state|moments|momentum\w*|mu|nu|trace|"
    r"exp_avg\w*|grads?|gradients)[./]"
)
_ENDS = re.compile(r"[./](?=[^./]*$)")
_WRAPPERS = ("module", "params", "variables")  # left out of the name of a set, but for the first
# What certmask_jax's own training writes: the average is the result, where there is one.
_OWN = ("average", "variables")
# Where training programs put the weights, for errors about a file that does not fit.
_USUAL = ("state_dict", "model_state_dict", "model", "net", "params", "average", "variables")


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
    names = _without_inner(file.entries)
    prefixes = _prefixes(names, shapes)
    if entry is not None:
        return _named(file, names, shapes, prefixes, entry)
    if len(prefixes) > 1:
        return _of_several(file, names, shapes, prefixes)
    prefix = prefixes[0] if prefixes else _likeliest(file, names)
    place = _place(file, names, prefix, _scope(file, prefix), shapes)
    return place, Taken(None)


def num_classes(file: WeightsFile, entry: str | None) -> int | None:
    """How many outputs the head has, of one set or of all alike; None without a head."""
    names = {n: e for n, e in _without_inner(file.entries).items() if not _OPTIMISER.search(n)}
    if entry is not None:
        names = {n: e for n, e in names.items() if _under(n, entry)}
    googles = [
        google.num_classes({n: e.shape for n, e in names.items()}, p) for p in _google(names)
    ]
    if googles:
        return googles[0] if len(set(googles)) == 1 else None
    shapes = _dotted(names)
    found = {
        families.num_classes({n[len(p) :]: s for n, s in shapes.items() if n.startswith(p)})
        for p in families.prefixes(set(shapes)) or [_common(list(shapes))]
    } - {None}
    return found.pop() if len(found) == 1 else None


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
            raise SettingError(
                lambda say: (
                    f"{file.path}: expected a set of weights called {entry!r}, found {got}"
                    + ("" if len(labels) > 1 else f"; leave out {say('entry', entry)}")
                )
            )
        below = {n[len(at) + 1 :]: e for n, e in names.items() if _under(n, at)}
        prefix = f"{at}{min(seps)}{_likeliest(file, below)}"
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
    is_googles = prefix in _google(names)
    entries: dict[str, Entry] = {}
    unexpected = []
    for name, entry in names.items():
        if _is_counter(name, entry) or not name.startswith(scope):
            continue
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            found, laid_out = (rest, entry) if is_googles else _in_torch(rest, entry)
            entries[found] = laid_out
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
    wanted = set(filter(_is_running, shapes)) - set(entries)
    if not wanted or not prefix.endswith("/"):
        return {}
    parent, _, name = prefix.rstrip("/").rpartition("/")
    parent = f"{parent}/" if parent else ""
    beside = {
        found
        for path in names
        if (match := re.match(r"(.*?)(?<![^/])([^/]*batch_stats/)", path))
        and not _OPTIMISER.search(path)
        for found in [match[1] + match[2]]
    }
    own = f"{parent}{name.replace('params', 'batch_stats')}/"
    tried = [own, f"{parent}batch_stats/", *(beside if len(beside) == 1 else ())]
    at = next((place for place in tried if place in beside), None)
    if at is None:
        return {}
    return dict(_in_torch(n[len(at) :], e) for n, e in names.items() if n.startswith(at))


def _is_average(entry: Entry, name: str, entries: Mapping[str, Entry]) -> bool:
    _, _, path = name.partition("batch_stats/")
    return bool(path) and _in_torch(path, entry)[0] in entries


def _in_torch(name: str, entry: Entry) -> tuple[str, Entry]:
    """A name below a set's prefix as PyTorch spells it, and the array in PyTorch's layout."""
    if "/" not in name:
        return name, entry
    found, axes = from_path(name, len(entry.shape))
    return found, entry.laid_out(axes)


def _prefixes(names: Mapping[str, Entry], shapes: Shapes) -> list[str]:
    """Prefixes under which most of a model's names are: with its shapes, else with any."""
    fits: Counter[str] = Counter()
    like: Counter[str] = Counter()
    half = sum(not _is_running(name) for name in shapes) / 2
    for name, entry in names.items():
        if _OPTIMISER.search(name):
            continue
        starts = [0, *(match.end() for match in re.finditer(r"[./]", name))]
        for start in starts:
            found, axes = name[start:], tuple(range(len(entry.shape)))
            if "/" in found:
                found, axes = from_path(found, len(entry.shape))
            if found in shapes and not _is_running(found):
                like[name[:start]] += 1
                fits[name[:start]] += shapes[found] == tuple(entry.shape[a] for a in axes)
    googles = _google(names)
    for counted in (fits, like):
        enough = [prefix for prefix, count in counted.items() if count >= half]
        if enough or googles:
            return list(dict.fromkeys([*googles, *enough]))
    return []


def _google(names: Mapping[str, Entry]) -> list[str]:
    """Prefixes under which Google's own names are."""
    return [
        name[: len(name) - len(mark)]
        for mark in google.MARKS
        for name in names
        if (name == mark or name.endswith(f"/{mark}")) and not _OPTIMISER.search(name)
    ]


def _likeliest(file: WeightsFile, names: Mapping[str, Entry]) -> str:
    """The prefix of what looks most like weights, in a file that is not the model."""
    if not names:
        raise ValueError(f"{file.path}: expected weights, got a file without a single array")
    kept = {n: e for n, e in names.items() if not _OPTIMISER.search(n) and not _is_counter(n, e)}
    kept = kept or dict(names)
    if file.nested and not any("." in name for name in kept):  # a Flax tree
        found = {match[0] for name in kept if (match := re.match(r"(?:.*/)?\w*params/", name))}
        if not found:
            tops = dict.fromkeys(name.split("/")[0] for name in names)
            raise orbax_folders.no_variables(file.path, ", ".join(tops))
        return min(found, key=len)
    places = Counter(name[: name.rfind("/") + 1] for name in kept)
    usual = [f"{name}/" for name in _USUAL if f"{name}/" in places]
    scope = usual[0] if usual else max(places, key=lambda place: places[place])
    below = {n[len(scope) :]: e for n, e in kept.items() if n.startswith(scope)}
    prefix = _common(list(below))
    marked = families.prefixes({n[len(prefix) :] for n in below})
    return scope + prefix + (marked[0] if marked else "")


def _common(names: Sequence[str]) -> str:
    """What stands in front of all names, whole words; nothing of a family's own names."""
    prefix = ""
    while names and "" not in families.prefixes({name[len(prefix) :] for name in names}):
        heads = {re.split(r"(?<=[./])", name[len(prefix) :], maxsplit=1)[0] for name in names}
        head = heads.pop()
        if heads or not head.endswith((".", "/")):
            break
        prefix += head
    return prefix


def _dotted(names: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    """Shapes by names with dots throughout, whatever their spelling."""
    found = {}
    for name, entry in names.items():
        if "/" in name and "." not in name:
            spelled, axes = from_path(name, len(entry.shape))
            found[spelled] = tuple(entry.shape[a] for a in axes)
        else:
            found[name.replace("/", ".")] = entry.shape
    return found


def _without_inner(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Names without what wrappers put in the middle, unless two become the same."""
    shorter = {_INNER.sub("", name): entry for name, entry in entries.items()}
    return shorter if len(shorter) == len(entries) else entries


def _scope(file: WeightsFile, prefix: str) -> str:
    """What has to be the model's and nothing else: a flat file, else the place of ``prefix``."""
    return prefix[: prefix.rfind("/") + 1] if file.nested else ""


def _is_counter(name: str, entry: Entry) -> bool:
    return _ENDS.split(name)[-1] in _COUNTERS and int(np.prod(entry.shape)) == 1


def _is_running(name: str) -> bool:
    return name.rpartition(".")[2].startswith("running_")


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
