"""The devices of this process: the 1-D mesh that work is sharded over, and their memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def compiler_facts(mesh: Mesh) -> dict[str, Any]:
    """The options, for the fingerprint of a run: other products have other last bits."""
    options = compiler_options(mesh)
    return {"compiler_options": options} if options else {}


def put_everywhere(arrays: Any, mesh: Mesh) -> Any:
    """A pytree of arrays, whole on every device of the mesh.

    On CPUs they are all in one memory, so JAX is given what NumPy sees of them, without a copy.
    Handing a hundred arrays from one of its devices to another takes it more than twice as long.
    """
    return jax.device_put(jax.tree.map(_seen, arrays), NamedSharding(mesh, PartitionSpec()))


def _seen(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return leaf
    if jnp.issubdtype(leaf.dtype, dtypes.extended) or leaf.weak_type or len(leaf.devices()) != 1:
        return leaf
    (device,) = leaf.devices()
    return np.asarray(leaf) if device.platform == "cpu" else leaf


def free_memory(device: Any) -> int:
    """Bytes that one program may take on a device: most of what is free, 2 GiB if unknown."""
    if device.platform == "cpu":  # they share what there is
        return _UNKNOWN_MEMORY // jax.local_device_count("cpu")
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return _UNKNOWN_MEMORY
    return int(_SHARE_OF_FREE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
