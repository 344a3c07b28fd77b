"""How a program meets JAX: devices on a CPU, compiled programs kept on disk, other processes.

The library leaves jax.config alone; programs call ``start`` before JAX wakes up.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import socket
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from certmask_jax._text import counted
from certmask_jax.files.local_paths import in_utf8
from certmask_jax.programs import jax_settings, paths, program
from certmask_jax.programs.number_options import whole

_USUAL = object()  # stands for the folder of this user, which is looked for when it is needed

_MOST_CPU_DEVICES = 8  # each has its own copy of the model
_SECONDS_TO_MEET = 300  # as JAX's own
_SECONDS_BETWEEN = 1
_SECONDS_TO_END = 30  # all processes end together; if one ends before, it has failed


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One field for each option of ``add``."""

    cpu_devices: int | None
    compilation_cache: Path | None
    distributed: str | None
    note: str | None = None  # what there is to say of them


def add(group: Any) -> None:
    """Adds the options to a group of a command line."""
    group.add_argument(
        "--cpu-devices",
        type=whole(1),
        metavar="N",
        help="on a CPU, share the work out among N devices of JAX, which is faster than one that "
        f"uses all cores (default: one a core, at most {_MOST_CPU_DEVICES})",
    )
    group.add_argument(
        "--compilation-cache",
        type=paths.local_output,
        metavar="DIR",
        default=_USUAL,
        help="where compiled programs are kept for the next time (default: certmask_jax/compiled "
        "in $XDG_CACHE_HOME or ~/.cache)",
    )
    group.add_argument(
        "--no-compilation-cache",
        dest="compilation_cache",
        action="store_const",
        const=None,
        help="compile anew (default: --compilation-cache)",
    )
    group.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT,I/N",
        help="this is one of several processes of one run: on TPU pod slices and under Slurm "
        "without more, elsewhere process I of N, where the first one's address is HOST:PORT "
        "(default: the only process)",
    )


def read(arguments: argparse.Namespace) -> Runtime:
    """Arguments -> options; ``ValueError`` for what makes no sense."""
    count, text = arguments.cpu_devices, arguments.distributed
    most = max(_MOST_CPU_DEVICES, _all_cores())
    if count is not None and count > most:
        raise ValueError(
            f"--cpu-devices: expected at most {most} on this machine of {_all_cores()} cores, got "
            f"{count}"
        )
    if text:
        match = re.fullmatch(r"\S+:([0-9]{1,5}),([0-9]{1,6})/([0-9]{1,6})", text)
        if not match or int(match[2]) >= int(match[3]) or not 0 < int(match[1]) < 65536:
            raise ValueError(
                "--distributed: expected HOST:PORT,I/N with 0 <= I < N, such as "
                f"10.0.0.1:1234,0/4, got {text!r}"
            )
    cache, note = arguments.compilation_cache, None
    if cache is _USUAL:
        cache = default_cache()
        if cache is None:
            note = "no home folder: compiled programs are not kept (--compilation-cache DIR does)"
    elif cache is not None and cache.exists() and not cache.is_dir():
        raise ValueError(f"--compilation-cache {cache}: expected a folder, got a file")
    return Runtime(count, cache, text, note)


def start(runtime: Runtime) -> None:
    """Configures JAX and wakes it up; before any other use of it, or the devices are as they are.

    Raises:
      ValueError: when the processes do not find each other; for settings in the environment with
        which JAX does not start, or nothing could be computed: names them.
    """
    import jax

    jax_settings.check()
    if runtime.note is not None:
        program.say(runtime.note)
    # A disk that fills up costs time to compile again, and not a warning for each program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    cache = runtime.compilation_cache
    if cache is not None and not jax.config.values["jax_compilation_cache_dir"]:
        if why := _unwritable(cache):
            program.say(f"{cache}: compiled programs cannot be kept there ({why})")
        else:
            jax.config.update("jax_compilation_cache_dir", str(in_utf8(cache)))
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
    jax_settings.wake()


def default_cache() -> Path | None:
    """The folder of this user for compiled programs, made or not; None without a home folder.

    As the XDG base directory specification says, a relative ``XDG_CACHE_HOME`` is ignored.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, ".cache")
    return Path(base) / "certmask_jax" / "compiled"


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written to a folder, which is made if need be; None where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def cores() -> int:
    """How many devices a CPU is seen as: one for each core that this process may use."""
    return min(_all_cores(), _MOST_CPU_DEVICES)


def _all_cores() -> int:
    may = getattr(os, "sched_getaffinity", None)
    return len(may(0)) if may else os.cpu_count() or 1


def _check_answers(text: str, address: str, seconds: float) -> None:
    """``ValueError`` unless the first process listens at ``HOST:PORT`` before so many seconds."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"--distributed {text}: expected the first process of this run to listen at "
                    f"{address}, but: {error.strerror or error}; start it there, as 0 of as many"
                ) from error
        time.sleep(_SECONDS_BETWEEN)


def _meet(jax: Any, text: str) -> None:
    from certmask_jax.files import processes

    place: dict[str, Any] = {}
    if text:
        address, which = text.rsplit(",", 1)
        number, count = which.split("/")
        if int(count) > 1:  # JAX itself says nothing meanwhile, and ends the process after it
            minutes = counted(_SECONDS_TO_MEET // 60, "minute")
            others = counted(int(count) - 1, "other process", "other processes")
            program.say(f"waiting at {address} for {others} of this run, for {minutes} at most")
        if int(number) > 0:
            _check_answers(text, address, _SECONDS_TO_MEET)
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
