"""Two simulated devices, quick compilation, and the development data, if there."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import get_ident

# Runs flush thousands of small files to the disk, and wait for it. In memory that takes no time.
_IN_MEMORY, _ENOUGH = "/dev/shm", 4 << 30
if (
    "TMPDIR" not in os.environ
    and os.access(_IN_MEMORY, os.W_OK)
    and shutil.disk_usage(_IN_MEMORY).free > _ENOUGH
):
    os.environ["TMPDIR"] = tempfile.tempdir = _IN_MEMORY

# Most of the time of these tests goes into compiling small programs that run once. With these they
# take half of it; XLA_FLAGS= in front of the command has all optimisations. A flag that one version
# of XLA does not know ends the process, so they are tried in another one, once for all workers.
_PLAIN = "--xla_backend_optimization_level=0"
_FEWEST_PASSES = (
    f"{_PLAIN} --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    " --xla_llvm_disable_expensive_passes=true"
)
if "XLA_FLAGS" not in os.environ:
    known = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": _FEWEST_PASSES},
        capture_output=True,
        check=False,
    )
    os.environ["XLA_FLAGS"] = _PLAIN if known.returncode else _FEWEST_PASSES

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

# Two devices share every computation. Chunks hold as many items for each device, most of which are
# empty in a test: with eight, runs took three times as long. What needs eight has a process of its
# own, see test_eight_devices.py.
EIGHT = 8
DEVICES = int(os.environ.get("CERTMASK_JAX_DEVICES", "2"))
jax.config.update("jax_num_cpu_devices", DEVICES)
jax.devices()  # programs that tests begin in this process set their number unless there are some
# Tests compile the same programs over and over, in all worker processes. A folder of their own also
# keeps them out of the user's: programs leave a folder that is chosen already alone.
if "CERTMASK_JAX_COMPILED" not in os.environ:
    os.environ["CERTMASK_JAX_COMPILED"] = tempfile.mkdtemp(prefix="certmask_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["CERTMASK_JAX_COMPILED"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["CERTMASK_JAX_COMPILED"])
# To write a program takes as long as to compile a very small one, and few of those are met again.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

# Python looks for cycles after every 700 new objects, and tracing makes hundreds of thousands.
gc.set_threshold(50_000, 50, 100)

# A context of MLIR takes 2 ms to make, a small program 1 ms to lower: programs of a thread share
# one here, but for those that are lowered while another is. What they are lowered to is the same.
# JAX does not promise that name; where there is none, tests take longer.
_new_context = getattr(mlir, "make_ir_context", None)
_context_of = functools.cache(lambda thread: _new_context())


def _shared_context():
    try:
        inside = mlir.ir.Context.current is not None
    except ValueError:  # what older versions say where there is none
        inside = False
    return _new_context() if inside else _context_of(get_ident())


if _new_context is not None:
    mlir.make_ir_context = _shared_context

# Stricter than users have it: the library broadcasts and converts only where it says so.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items):
    if DEVICES >= EIGHT:
        return
    elsewhere = pytest.mark.skip(reason="needs CERTMASK_JAX_DEVICES=8; test_eight_devices.py has")
    for item in items:
        if item.get_closest_marker("eight_devices"):
            item.add_marker(elsewhere)


@pytest.fixture(autouse=True)
def _compiled_in_the_folder_of_the_tests():
    """A test that leaves another folder behind would slow down all that follow it."""
    yield
    assert jax.config.values["jax_compilation_cache_dir"] == os.environ["CERTMASK_JAX_COMPILED"]


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    """Runs of tests write no page, which takes seconds; runs of fixtures of modules do."""
    from certmask_jax.programs import page_of_run

    monkeypatch.setattr(page_of_run, "try_page", lambda *given, **how: ())


@pytest.fixture(scope="module")
def compiled_once():
    """Programs that a module calls one after the other compile equal models and defenses once."""
    from tests.support import small_runs

    with pytest.MonkeyPatch.context() as patched:
        small_runs.compile_once(patched)
        yield


_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Development data beside the checkout: CIFAR-10, weights, golden results."""
    if not (_SHARED / "golden").is_dir():
        pytest.skip("needs ../shared (CIFAR-10, weights, golden results), which is not here")
    return _SHARED


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, for programs that take one: 12 digits, 1x1 patches, 4 masks."""
    from certmask_jax.programs import certify

    folder = tmp_path_factory.mktemp("digits") / "run"
    command = ["--num-images", "12", "--out", str(folder)]
    assert certify.main([*command, "--defense", "double_masking:masks_per_axis=2"]) == 0
    return folder
