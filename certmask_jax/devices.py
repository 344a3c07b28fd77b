"""The devices that work is sharded over: one 1-D mesh, and the memory that they have left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXIS = "devices"
"""Name of the mesh's only axis."""

_UNKNOWN_MEMORY = 2 << 30
_SHARE_OF_FREE = 0.8


def device_mesh(devices: Iterable[Any] | None = None) -> Mesh:
    """A 1-D mesh over the given devices, all of all processes by default."""
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def free_memory(device: Any) -> int:
    """Bytes that one program may take on a device: most of what is free, 2 GiB if unknown."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return _UNKNOWN_MEMORY
    return int(_SHARE_OF_FREE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
