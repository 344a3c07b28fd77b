"""Two real processes of one run: what they make is what one makes, and errors end both."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils
from small_runs import contents

from certmask_jax.certification import report
from certmask_jax.files import processes
from certmask_jax.programs import certify, runtime
from certmask_jax.tables import evidence_store, saved_table

OPTIONS = ["--num-images", "12", "--defense", "double_masking:masks_per_axis=2"]
OPTIONS += ["--defense", "certmask:tiling=tight"]
EVIDENCE = ["--defense", "smoothed_vit:band=4,stride=4,wrap=false"]
SECONDS = 100  # then it hangs


def _start(out, *options, cache, devices=4):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.certify", *OPTIONS, "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def _ends(*started):
    """Exit status, output and errors of each."""
    try:
        said = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(started, said, strict=True)]


def _two(out, *options, cache):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return _ends(
        *(_start(out, *options, "--distributed", f"{address},{i}/2", cache=cache) for i in range(2))
    )


def _fingerprint(run):
    return saved_table.recorded(run / "tables")["fingerprint"]


def _arrays(run):
    files = contents(run / "tables")
    del files[saved_table.ABOUT]
    return files


def _evidence(run):
    files = contents(run / "evidence")
    record = json.loads(files.pop(evidence_store.RECORD))
    return {**files, "fingerprint": record["fingerprint"]}


def _results(run):
    results = json.loads((run / "results.json").read_text())
    for name in ("command", "started", "seconds", "masked_images_settled", "passes"):
        del results["provenance"][name]
    return results


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def two(tmp_path_factory, cache):
    """A run of two processes with four devices each."""
    out = tmp_path_factory.mktemp("two") / "run"
    said = _two(out, "--chunk", "8", *EVIDENCE, cache=cache)
    for status, _, errors in said:
        assert status == 0, errors
    return out, said


def test_two_processes_make_the_run_of_one(two, tmp_path, cache):
    """Each with four devices: even the fingerprint is the same then: either continues the other."""
    out, _ = two
    ((status, printed, errors),) = _ends(
        _start(tmp_path / "one", "--chunk", "8", *EVIDENCE, cache=cache)
    )
    assert status == 0, errors
    assert _fingerprint(out) == _fingerprint(tmp_path / "one")
    assert _arrays(out) == _arrays(tmp_path / "one")
    assert _evidence(out) == _evidence(tmp_path / "one")
    assert len(_evidence(out)) == 4  # three blocks, so that each process has some
    assert (out / "per_image.csv").read_bytes() == (tmp_path / "one/per_image.csv").read_bytes()
    ours, alone = _results(out), _results(tmp_path / "one")
    assert (ours["provenance"]["devices"]["processes"], ours["provenance"]["devices"]["count"]) == (
        (2, 4)
    )
    ours["provenance"]["devices"]["processes"] = 1
    assert ours == alone
    assert two[1][0][1].split("\n\nresults in")[0].endswith(printed.split("\n\nresults in")[0])


def test_two_devices_of_one_process_find_the_same(two, tmp_path):
    """As many masked images on each device at once: the same bits. The fingerprints say so."""
    out = tmp_path / "alone"
    assert certify.main([*OPTIONS, *EVIDENCE, "--out", str(out), "--chunk", "4"]) == 0
    assert _arrays(out) == _arrays(two[0])
    ours, theirs = _fingerprint(two[0]), _fingerprint(out)
    assert (ours.pop("chunk"), theirs.pop("chunk")) == (8, 4)
    assert (ours["devices"].pop("count"), theirs["devices"].pop("count")) == (4, 2)
    assert ours == theirs
    # With the same --chunk each has twice as many: labels are the same, the last bit need not be.
    other = tmp_path / "other"
    assert certify.main([*OPTIONS, "--out", str(other), "--chunk", "8"]) == 0
    parts = [{k: v for k, v in _arrays(run).items() if "predictions" in k} for run in (other, out)]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 5  # 4 blocks and zarr.json


def test_the_first_process_alone_reports(two):
    out, ((_, first, first_errors), (_, second, second_errors)) = two
    assert "worst case" in first
    assert f"results in {out}" in first
    assert "worst case" not in second
    assert "results" not in second
    assert "passes/s" not in second_errors
    assert "evidence: 8 of 8 images" in first_errors  # two blocks of the three
    assert "evidence: " not in second_errors
    assert {file.name for file in out.iterdir()} == {
        *report.FILES,
        "report.html",
        "tables",
        "evidence",
    }


def test_two_processes_go_on_with_what_is_missing(two, tmp_path, cache):
    """Blocks of both: one is missing, one is damaged; and of evidence that of the second."""
    whole, out = two[0], tmp_path / "run"
    for name, content in contents(whole).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    (out / "tables" / "labels" / "c" / "2").unlink()
    (out / "tables" / "margins" / "c" / "3" / "0").write_bytes(b"damaged")
    (out / "evidence" / "block-000001.npz.sha256").unlink()
    (out / "results.json").unlink()
    (status, printed, errors), (other_status, _, other_errors) = _two(
        out, "--chunk", "8", *EVIDENCE, cache=cache
    )
    assert (status, other_status) == (0, 0), errors + other_errors
    assert "labels/c/2: is missing; images 6 to 8 are computed again" in errors
    assert "margins/c/3/0: is damaged" in other_errors
    assert contents(out).keys() == contents(whole).keys()
    assert _arrays(out) == _arrays(whole)
    assert _evidence(out) == _evidence(whole)
    assert _results(out) == _results(whole)
    settled = json.loads((out / "results.json").read_text())["provenance"]["masked_images_settled"]
    assert settled == 12 * 27  # of all that is evaluated together with a block of this process
    assert "worst case" in printed


def test_a_folder_with_other_files_ends_both(tmp_path, cache):
    (tmp_path / "notes.txt").write_text("mine")
    for status, printed, errors in _two(tmp_path, cache=cache):
        assert status == 2
        assert f"error: --out {tmp_path}: expected a new or empty folder" in errors
        assert "worst case" not in printed
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_what_only_the_first_process_finds_ends_both(tmp_path, cache):
    """A lock of another run: the other process would have been let in."""
    (tmp_path / "tables").mkdir()
    handle = os.open(tmp_path / "tables", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first, second = _two(tmp_path, cache=cache)
    finally:
        os.close(handle)
    assert first[0] == second[0] == 2
    assert "error: " in first[2]
    assert "another process is writing this table" in first[2]
    assert "error: the first process of this run could not begin; its error says why" in second[2]
    assert "Traceback" not in first[2] + second[2]
    assert contents(tmp_path) == {}


def test_a_first_process_that_nobody_started_is_one_line():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        address = f"localhost:{listening.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"--distributed x: expected .* listen at {address}"):
            runtime._check_answers("x", address, 0)  # bound, and nobody listens
        listening.listen()
        runtime._check_answers("x", address, 0)


def test_a_process_that_ended_meanwhile_is_named_in_one_line(monkeypatch):
    def gone(_):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: closed\nmore")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gone)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", gone)
    for waits in (lambda: processes.any_says(True), lambda: processes.wait_for_all("table")):
        with pytest.raises(ConnectionError, match=r"Gloo AllGather failed: closed.*; its own last"):
            waits()
