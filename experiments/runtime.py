"""How a program meets JAX: devices on a CPU, compiled programs kept on disk, other processes.

The library leaves jax.config alone; programs call :func:`start` before JAX wakes up.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
from pathlib import Path
from typing import Any

_MOST_CPU_DEVICES = 8  # each has its own copy of the model
_SECONDS_TO_END = 30  # all processes end together; if one ends before, it has failed


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One field for each option of :func:`add`."""

    cpu_devices: int | None
    compilation_cache: Path | None
    distributed: str | None


def add(group: Any) -> None:
    """Adds the options to a group of a command line."""
    group.add_argument(
        "--cpu-devices",
        type=int,
        metavar="N",
        help="on a CPU, share the work out among N devices of JAX, which is faster than one that "
        f"uses all cores (default: one a core, at most {_MOST_CPU_DEVICES})",
    )
    group.add_argument(
        "--compilation-cache",
        type=Path,
        metavar="DIR",
        default=default_cache(),
        help="where compiled programs are kept for the next time (default: %(default)s)",
    )
    group.add_argument(
        "--no-compilation-cache",
        dest="compilation_cache",
        action="store_const",
        const=None,
        help="compile anew",
    )
    group.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT,I/N",
        help="this is one of several processes of one run: on TPU pod slices and under Slurm "
        "without more, elsewhere process I of N, where the first one's address is HOST:PORT",
    )


def read(arguments: argparse.Namespace) -> Runtime:
    """Arguments -> options; ``ValueError`` for what makes no sense."""
    count, text = arguments.cpu_devices, arguments.distributed
    if count is not None and count < 1:
        raise ValueError(f"--cpu-devices: expected at least 1, got {count}")
    if text:
        found = re.fullmatch(r"\S+:\d+,(\d+)/(\d+)", text)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(
                "--distributed: expected HOST:PORT,I/N with 0 <= I < N, such as "
                f"10.0.0.1:1234,0/4, got {text!r}"
            )
    return Runtime(count, arguments.compilation_cache, text)


def start(runtime: Runtime) -> None:
    """Configures JAX; before any other use of it, or what concerns the devices has no effect.

    Raises:
      ValueError: when the processes do not find each other.
    """
    import jax

    if runtime.compilation_cache is not None and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(runtime.compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    chosen_elsewhere = "JAX_NUM_CPU_DEVICES" in os.environ or (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if runtime.cpu_devices is not None or not chosen_elsewhere:
        try:
            jax.config.update("jax_num_cpu_devices", runtime.cpu_devices or cores())
        except RuntimeError as error:  # JAX is awake: as in a notebook, or a test
            if runtime.cpu_devices not in (None, jax.local_device_count("cpu")):
                raise ValueError(
                    f"--cpu-devices: expected {runtime.cpu_devices}, but JAX is in use already, "
                    f"with {jax.local_device_count('cpu')}"
                ) from error
    if runtime.distributed is not None:
        _meet(jax, runtime.distributed)


def default_cache() -> Path:
    """The folder of this user for compiled programs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "certmask_jax" / "compiled"


def cores() -> int:
    """How many devices a CPU is seen as: one for each core that this process may use."""
    may = getattr(os, "sched_getaffinity", None)
    count = len(may(0)) if may else os.cpu_count() or 1
    return min(count, _MOST_CPU_DEVICES)


def _meet(jax: Any, text: str) -> None:
    from certmask_jax import processes

    place: dict[str, Any] = {}
    if text:
        address, which = text.rsplit(",", 1)
        number, count = which.split("/")
        place = {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(number),
        }
    if "shutdown_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:
        place["shutdown_timeout_seconds"] = _SECONDS_TO_END  # older JAX waits for minutes
    try:
        jax.distributed.initialize(**place)
        # Gloo gives the first exchange half a minute: now, and not when one still reads its data.
        processes.wait_for_all("met")
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--distributed{' ' + text if text else ''}: expected to meet the other processes of "
            f"this run, but: {str(error).splitlines()[0]}; outside TPU pods and Slurm give "
            "HOST:PORT,I/N"
        ) from error
