"""The devices of this process: the 1-D mesh that work is sharded over, and their memory."""

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
    """A 1-D mesh over the given devices, by default all of this process.

    Other processes have meshes of their own: masked forward passes have nothing to tell each other.
    """
    chosen = jax.local_devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """What XLA is told when it compiles a masked forward pass for these devices.

    On GPUs all products are cuBLAS's. Where Triton's may be had XLA tries both out before it
    decides what becomes part of a product, and with cuBLAS's, which mostly are faster, biases,
    activations and residual sums stay kernels of their own.
    """
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    return {"xla_gpu_enable_triton_gemm": False} if on_gpu else {}


def free_memory(device: Any) -> int:
    """Bytes that one program may take on a device: most of what is free, 2 GiB if unknown."""
    if device.platform == "cpu":  # they share what there is
        return _UNKNOWN_MEMORY // jax.local_device_count("cpu")
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return _UNKNOWN_MEMORY
    return int(_SHARE_OF_FREE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
