"""Accelerators that are not here, by name: the compilers for them run on any machine.

XLA takes a description of a device in its place, and compiles for it what would run there. Nothing
is run, so what is known afterwards is what the compiler says and no more.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shlex
from typing import Any

import jax

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
"""
_TPU_ENVIRONMENT = {  # of one machine with four chips, which nobody is asked about
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or one process at a time
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      name: as users write it.
      platform: JAX's name, as of a device that is there: ``"gpu"`` or ``"tpu"``.
      compiled_by: what JAX calls the compiler's platform.
      topology: how ``jax.experimental.topologies`` is asked for four of them on one machine.
      packages: what has to be installed beside JAX, without what these ask for themselves; those
        without a version of theirs have the one that JAX asks for.
      flops: a second, of products of each precision (``Preprocessing.precision``).
      bandwidth: bytes a second, to and from its memory.
      memory: bytes.
      clock: cycles a second that the compiler's estimates count; None where it makes none.
      options: of the compiler.
      source: of the figures.
    """

    name: str
    platform: str
    compiled_by: str
    topology: dict[str, str]
    packages: tuple[str, ...]
    flops: dict[str, float]
    bandwidth: float
    memory: float
    clock: float | None
    options: dict[str, Any]
    source: str


TARGETS = {
    target.name: target
    for target in (
        Target(
            "h100",
            "gpu",
            "cuda",
            {"topology": "1x1x4", "target_config": _H100},
            (
                f"jax-cuda12-plugin=={jax.__version__}",
                f"jax-cuda12-pjrt=={jax.__version__}",
                "nvidia-cuda-nvcc-cu12",
            ),
            # 32-bit numbers go through TF32 unless all of their bits are asked for.
            {"bfloat16": 989.4e12, "default": 494.7e12, "high": 494.7e12, "highest": 66.9e12},
            3.35e12,
            80e9,
            None,
            {"xla_gpu_enable_triton_gemm": False},  # it would try its tiles out on the device
            "NVIDIA's data sheet of the H100 SXM5, without sparsity",
        ),
        Target(
            "tpu-v5e",
            "tpu",
            "tpu",
            {"topology_name": "v5e:2x2"},
            ("libtpu",),
            # 32-bit numbers are made of one, three or six products of bfloat16.
            {"bfloat16": 197e12, "default": 197e12, "high": 197e12 / 3, "highest": 197e12 / 6},
            819e9,
            16e9,
            197e12 / (4 * 128 * 128 * 2),  # four arrays of 128 x 128 multiply and add
            {},
            "Google Cloud's page of the TPU v5e",
        ),
    )
}


def begin() -> None:
    """Tells JAX to leave accelerators of this machine alone; before it wakes up."""
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def packages(target: Target) -> list[str]:
    """What has to be installed, as ``pip install`` takes it."""
    asked = [one.partition(";")[0].strip() for one in importlib.metadata.requires("jax") or ()]
    return [
        next((one for one in asked if re.match(rf"{re.escape(name)}[=<>]", one)), name)
        for name in target.packages
    ]


def devices(target: Target) -> list[Any]:
    """Four of them, which can be compiled for and nothing else.

    Raises:
      ValueError: where the compiler is not installed, or is of another version of JAX.
    """
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform=target.compiled_by, **target.topology)
    except Exception as error:  # of many kinds, as it depends on what is there
        why = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise ValueError(
            f"{target.name}: expected XLA's compiler for it, but: {why}; pip install --no-deps "
            f"--target compilers {' '.join(map(shlex.quote, packages(target)))} puts it into a "
            "folder of its own, and PYTHONPATH=compilers finds it there"
        ) from error
    return list(topology.devices)
