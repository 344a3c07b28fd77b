"""JAX's settings that people have in their environment, and with which a program cannot run."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys

_PLATFORMS = ("cpu", "cuda", "rocm", "gpu", "tpu", "METAL")


def check() -> None:
    """Before JAX wakes up.

    Raises:
      ValueError: naming a setting that would end the process, or without which nothing is compiled.
    """
    import jax

    if jax.config.values["jax_disable_jit"]:
        raise ValueError(
            "JAX_DISABLE_JIT: expected that programs are compiled, as all of this is; unset it"
        )
    if jax.config.values["jax_transfer_guard"] == "disallow_explicit":
        raise ValueError(
            "JAX_TRANSFER_GUARD=disallow_explicit: expected that images may be moved to the "
            "device; disallow would do"
        )
    count = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if count != "-1" and int(count) < 1:  # -1: JAX's own "not set"
        raise ValueError(f"JAX_NUM_CPU_DEVICES={count}: expected at least 1")
    flags = os.environ.get("XLA_FLAGS")
    if flags and (why := _refused(flags)):
        raise ValueError(f"XLA_FLAGS={flags}: expected flags that XLA knows ({why}); correct it")


def wake() -> None:
    """Starts the backend.

    Raises:
      ValueError: when it does not start, naming the setting that chose it.
    """
    import jax

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        why = str(error).split("\n")[0] or "JAX finds none of them"
        platforms = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
        if not platforms:
            raise ValueError(
                f"expected JAX to start on this machine, but: {why} (JAX_PLATFORMS=cpu chooses the "
                "CPU)"
            ) from error
        name = "JAX_PLATFORMS" if os.environ.get("JAX_PLATFORMS") else "JAX_PLATFORM_NAME"
        lower = platforms.lower()
        like = f"; {name}={lower}?" if lower != platforms and lower in _PLATFORMS else ""
        raise ValueError(
            f"{name}={platforms}: expected devices that are here and start, such as cpu, but: "
            f"{why}{like}"
        ) from error


@functools.cache
def _refused(flags: str) -> str | None:
    """Why XLA would end the process over its flags: a process of their own tries them, once."""
    environment = {**os.environ, "XLA_FLAGS": flags}
    code = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    tried = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    )
    said = [line for line in tried.stderr.decode(errors="replace").splitlines() if line.strip()]
    if tried.returncode == 0 or not said or "Traceback" in said[0]:
        return None
    return re.sub(r"^[EF]\d{4} [^\]]*\] ", "", said[0])[:200]
