"""Fingerprints: the JSON-able facts that decide a run's numbers; hashed, compared and named."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from certmask_jax._version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_DEVICE_FACTS = ("platform", "kind", "count", "machine")


def environment() -> dict[str, Any]:
    """Versions and devices, for the provenance of a result."""
    versions = {"python": platform.python_version(), "certmask_jax": __version__}
    versions |= {package: _installed(package) for package in _PACKAGES}
    devices = jax.local_devices()  # a chunk is one process's: these decide how it is cut
    return {
        "versions": versions,
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "machine": platform.machine(),
        },
    }


@functools.cache
def _installed(package: str) -> str:
    """Its version; what is imported stays what it is, and looking it up reads files."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def of_environment() -> dict[str, Any]:
    """What of ``environment`` may change the last bit of a logit."""
    known = environment()
    return {
        "versions": {name: known["versions"][name] for name in ("certmask_jax", *_PACKAGES)},
        "devices": {name: known["devices"][name] for name in _DEVICE_FACTS},
    }


def plain(facts: Any) -> Any:
    """Facts as JSON gives them back, so that they compare equal to what was read from a file."""
    return json.loads(json.dumps(facts))


def of_facts(facts: Any) -> str:
    """SHA-256 of JSON-able facts, whatever the order of their keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def of_arrays(tree: Any) -> str:
    """SHA-256 of a pytree of arrays (paths, shapes, dtypes, numbers), in hexadecimal."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        _add(digest, jax.tree_util.keystr(path), leaf)
    return digest.hexdigest()


def differences(there: Any, wanted: Any, name: str = "") -> list[str]:
    """``recipe.seed is 1 there, 2 here`` for each leaf of two JSON values that differs.

    Of two lists that have something in common only the rest is named.
    """
    if isinstance(there, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted({*there, *wanted}):
            inner = f"{name}.{key}" if name else key
            lines += differences(there.get(key), wanted.get(key), inner)
        return lines
    if there == wanted:
        return []
    if isinstance(there, list) and isinstance(wanted, list):
        gone = [one for one in there if one not in wanted]
        new = [one for one in wanted if one not in there]
        if (gone or new) and len(gone) < len(there):
            return [f"{name} has {_alone(gone)} there alone, {_alone(new)} here alone"]
    return [f"{name} is {_in_order(there)!r} there, {_in_order(wanted)!r} here"]


def _alone(items: list[Any]) -> str:
    return ", ".join(repr(_in_order(item)) for item in items) or "nothing"


def _in_order(value: Any) -> Any:
    """The value with the keys of its dictionaries in order, so that two can be read together."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value)}
    return [_in_order(one) for one in value] if isinstance(value, list) else value


def _add(digest: Any, name: str, leaf: ArrayLike) -> None:
    array = np.asarray(leaf)
    digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
