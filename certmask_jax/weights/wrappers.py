"""What wrappers put in front of the names of weights, found by the names that a model has.

DataParallel puts ``module.`` there, torch.compile ``_orig_mod.``, Lightning ``model.``, and others
the attribute that held the model. Comparing with the model's own names takes nothing off that the
model needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from certmask_jax.weights import families, google, orbax_folders
from certmask_jax.weights.families import Shapes
from certmask_jax.weights.names import from_path
from certmask_jax.weights.stored import Entry, WeightsFile

# Names inside of names that torch's wrappers of single layers leave.
_INNER = re.compile(r"(?<![^./])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Counters beside weights, of one number each: batch normalisation's, torch's AveragedModel's.
_COUNTERS = ("num_batches_tracked", "n_averaged")
# What optimisers keep has the names of the weights too.
OPTIMISER = re.compile(
    r"(?<![^./])(?:opt_state|optimi[sz]er\w*|optim\w*|opt/state|moments|momentum\w*|mu|nu|trace|"
    r"exp_avg\w*|grads?|gradients)[./]"
)
_ENDS = re.compile(r"[./](?=[^./]*$)")
# Where training programs put the weights, for errors about a file that does not fit.
_USUAL = ("state_dict", "model_state_dict", "model", "net", "params", "average", "variables")


def prefixes_of_model(names: Mapping[str, Entry], shapes: Shapes) -> list[str]:
    """Prefixes under which most of a model's names are: with its shapes, else with any."""
    fits: Counter[str] = Counter()
    like: Counter[str] = Counter()
    half = sum(not is_running(name) for name in shapes) / 2
    for name, entry in names.items():
        if OPTIMISER.search(name):
            continue
        starts = [0, *(match.end() for match in re.finditer(r"[./]", name))]
        for start in starts:
            spelled, axes = name[start:], tuple(range(len(entry.shape)))
            if "/" in spelled:
                spelled, axes = from_path(spelled, len(entry.shape))
            if spelled in shapes and not is_running(spelled):
                like[name[:start]] += 1
                fits[name[:start]] += shapes[spelled] == tuple(entry.shape[a] for a in axes)
    googles = prefixes_of_google(names)
    for counted in (fits, like):
        enough = [prefix for prefix, count in counted.items() if count >= half]
        if enough or googles:
            return list(dict.fromkeys([*googles, *enough]))
    return []


def prefixes_of_google(names: Mapping[str, Entry]) -> list[str]:
    """Prefixes under which Google's own names are."""
    return [
        name[: len(name) - len(mark)]
        for mark in google.MARKS
        for name in names
        if (name == mark or name.endswith(f"/{mark}")) and not OPTIMISER.search(name)
    ]


def likeliest(file: WeightsFile, names: Mapping[str, Entry]) -> str:
    """The prefix of what looks most like weights, in a file that is not the model."""
    if not names:
        raise ValueError(f"{file.path}: expected weights, got a file without a single array")
    kept = {n: e for n, e in names.items() if not OPTIMISER.search(n) and not is_counter(n, e)}
    kept = kept or dict(names)
    if file.nested and not any("." in name for name in kept):  # a Flax tree
        prefixes = {match[0] for name in kept if (match := re.match(r"(?:.*/)?\w*params/", name))}
        if not prefixes:
            tops = dict.fromkeys(name.split("/")[0] for name in names)
            raise orbax_folders.no_variables(file.path, ", ".join(tops))
        return min(prefixes, key=len)
    places = Counter(name[: name.rfind("/") + 1] for name in kept)
    usual = [f"{name}/" for name in _USUAL if f"{name}/" in places]
    scope = usual[0] if usual else max(places, key=lambda place: places[place])
    below = {n[len(scope) :]: e for n, e in kept.items() if n.startswith(scope)}
    prefix = common(list(below))
    marked = families.prefixes({n[len(prefix) :] for n in below})
    return scope + prefix + (marked[0] if marked else "")


def common(names: Sequence[str]) -> str:
    """What stands in front of all names, whole words; nothing of a family's own names."""
    prefix = ""
    while names and "" not in families.prefixes({name[len(prefix) :] for name in names}):
        heads = {re.split(r"(?<=[./])", name[len(prefix) :], maxsplit=1)[0] for name in names}
        head = heads.pop()
        if heads or not head.endswith((".", "/")):
            break
        prefix += head
    return prefix


def dotted(names: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    """Shapes by names with dots throughout, whatever their spelling."""
    renamed = {}
    for name, entry in names.items():
        if "/" in name and "." not in name:
            spelled, axes = from_path(name, len(entry.shape))
            renamed[spelled] = tuple(entry.shape[a] for a in axes)
        else:
            renamed[name.replace("/", ".")] = entry.shape
    return renamed


def without_inner(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Names without what wrappers put in the middle, unless two become the same."""
    shorter = {_INNER.sub("", name): entry for name, entry in entries.items()}
    return shorter if len(shorter) == len(entries) else entries


def in_torch(name: str, entry: Entry) -> tuple[str, Entry]:
    """A name below a set's prefix as PyTorch spells it, and the array in PyTorch's layout."""
    if "/" not in name:
        return name, entry
    own_name, axes = from_path(name, len(entry.shape))
    return own_name, entry.laid_out(axes)


def is_counter(name: str, entry: Entry) -> bool:
    """Whether an entry counts steps or batches, and is no weight."""
    return _ENDS.split(name)[-1] in _COUNTERS and int(np.prod(entry.shape)) == 1


def is_running(name: str) -> bool:
    """Whether a name in PyTorch's spelling is that of a running average."""
    return name.rpartition(".")[2].startswith("running_")
