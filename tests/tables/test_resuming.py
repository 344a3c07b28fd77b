"""Runs that were stopped: going on ends in the same bits, and another run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import killed_certification
import numpy as np
import pytest
from small_runs import BLOCKS, COUNT, DEFENSE, PARAMS, SmallTestSet, blocks_of, contents, evaluate

import certmask_jax as cm
from certmask_jax import data
from certmask_jax.certification import evaluation, report, verdicts
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.files import fingerprint
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import certify
from certmask_jax.tables import saved_table

KILLS = int(os.environ.get("CERTMASK_JAX_KILLS", "2"))
OPTIONS = ["--num-images", "12", "--defense", "double_masking:masks_per_axis=2"]
OPTIONS += ["--defense", "certmask:tiling=tight"]


@pytest.mark.parametrize("stop", range(len(BLOCKS) + 1))
def test_stopped_before_any_block_and_resumed_is_undisturbed(tmp_path, stop):
    alone = evaluate(tmp_path / "alone")
    first, second = SmallTestSet(stop_before=stop), SmallTestSet()
    folder = tmp_path / "stopped"
    if stop < len(BLOCKS):
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, first)
        done = ("0", "3", "6", "9")[stop]
        with pytest.raises(FileNotFoundError, match=rf"{done} of 10 images done .*again to go on"):
            saved_table.load(folder)
    else:
        evaluate(folder, first)
    seen, named = [], []
    resumed = evaluate(folder, second, hooks=Hooks(progress=seen.append, warn=named.append))
    assert (first.blocks, second.blocks, named) == (BLOCKS[:stop], BLOCKS[stop:], [])
    assert contents(folder) == contents(tmp_path / "alone")
    # Both sum up to all: what was there, and what was computed.
    images = BLOCKS[stop - 1][1] if stop else 0
    assert sum(step.settled for step in seen if not step.is_new) == 11 * images
    assert sum(step.settled for step in seen if step.is_new) == 11 * (COUNT - images)
    assert {step.total for step in seen} == {11 * COUNT}
    assert all(step.evaluated == step.settled for step in seen)
    reports = [verdicts.certify(saved, [DEFENSE]) for saved in (alone, resumed)]
    assert report.to_json(reports[0]) == report.to_json(reports[1])
    assert report.as_text(reports[0]) == report.as_text(reports[1])


def test_begun_without_a_chunk_goes_on_with_the_one_it_began_with(tmp_path):
    """What is chosen depends on free memory, and the same command may find less tomorrow."""
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, SmallTestSet(stop_before=1))
    evaluate(tmp_path, chunk=None)
    assert saved_table.recorded(tmp_path)["fingerprint"]["chunk"] == 8


OTHER_GRID = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(8, 2, masks_per_axis=2))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"params": PARAMS * 2}, "weights_sha256 is '"),
        ({"params": PARAMS[:, :3]}, "num_classes is 4 there, 3 here"),
        ({"defense": OTHER_GRID}, "masked_images_sha256 is '"),
        ({"test_set": SmallTestSet(count=9)}, "num_images is 10 there, 9 here"),
        ({"chunk": 16}, "chunk is 8 there, 16 here"),
        ({"preprocessing": Preprocessing(fill=(255.0,))}, r"preprocessing.fill is None there"),
        ({"preprocessing": Preprocessing(precision="high")}, "precision is 'highest' there"),
        ({"identity": {"dataset": "other"}}, "dataset is None there, 'other' here"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path, change, field):
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, SmallTestSet(stop_before=2))
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=f"got that of another: .*{field}.*another folder"):
        evaluate(tmp_path, **change)
    assert contents(tmp_path) == before


def test_other_images_versions_and_devices_are_other_runs(tmp_path, monkeypatch):
    evaluate(tmp_path)
    changed = SmallTestSet()
    changed.images[0, 0, 0] ^= 1
    with pytest.raises(FileExistsError, match="another: first_image_sha256 is"):
        evaluate(tmp_path, changed)
    real = fingerprint.environment()
    real["versions"]["jaxlib"], real["devices"]["count"] = "9.9", 7
    real["versions"]["python"] = "3.99"  # decides nothing
    monkeypatch.setattr(fingerprint, "environment", lambda: real)
    with pytest.raises(
        FileExistsError,
        match=r"another: devices\.count is 2 there, 7 here; versions\.jaxlib is [^;]* here\. ",
    ):
        evaluate(tmp_path)


def _child(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, killed_certification.__file__],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "JAX_NUM_CPU_DEVICES": str(jax.local_device_count()),  # else it is another run
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def _results(folder: Path) -> dict:
    results = json.loads((folder / "run" / "results.json").read_text())
    for name in ("started", "seconds", "masked_images_settled", "passes"):
        del results["provenance"][name]
    return results


def _is_done(folder: Path, line: str) -> bool:
    number = int(line.removeprefix("block "))
    return not saved_table.layout(folder, saved_table.recorded(folder)).missing(number)


def test_killed_at_random_moments_and_resumed_is_undisturbed(tmp_path, monkeypatch):
    """Undisturbed is what this process makes, which is not killed."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    every = []
    with monkeypatch.context() as there:
        there.chdir(alone)
        told = lambda number: every.append(f"block {number}")  # noqa: E731
        assert killed_certification.certified([], told) == 0
    assert len(every) == len(set(every)) == killed_certification.BLOCKS
    rng = np.random.default_rng()
    computed, moments = [], []
    for number in range(KILLS):
        # Spread over the run; anywhere from the start of a block on.
        last = max(len(computed), killed_certification.BLOCKS * (number + 1) // (KILLS + 1))
        target = int(rng.integers(len(computed), last + 1))
        delay = float(rng.uniform(0, 0.05))
        moments.append((target, delay))
        child = _child(killed)
        lines = []
        while len(computed) + len(lines) < target:
            line = child.stdout.readline().strip()
            assert line, f"ended early; {moments}"
            lines += [line] if line.startswith("block") else []
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        lines += [line for line in child.stdout.read().splitlines() if line.startswith("block")]
        child.wait()
        lost = [line for line in lines if not _is_done(killed / "run" / "tables", line)]
        assert len(lost) <= 1, f"{lost} of {lines} are lost; {moments}"
        computed += lines
    child = _child(killed)
    printed = child.communicate(timeout=120)[0].splitlines()
    assert child.returncode == 0
    computed += [line for line in printed if line.startswith("block")]
    assert set(computed) == set(every)
    repeated = len(computed) - len(set(computed))
    assert repeated <= KILLS, f"{repeated} blocks were computed twice; {moments}"
    assert _results(killed) == _results(alone), moments
    for name in ("per_image.csv", "tables/predictions/c/0/0", "tables/ids/000003.json"):
        assert (killed / "run" / name).read_bytes() == (alone / "run" / name).read_bytes()
    print("killed after", moments, "repeated", repeated)


# --- the program ---


def _timeless(out):
    results = json.loads((out / "results.json").read_text())
    for name in ("started", "seconds", "command", "masked_images_settled", "passes"):
        del results["provenance"][name]
    return results, (out / "per_image.csv").read_text()


def test_the_same_command_goes_on_and_then_prints_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    three_images = BlockSizes(chunks=11, least_blocks=1, moment=0, stretch=0)  # of 27 masked ones
    blocks_of(monkeypatch, three_images)
    command = [*OPTIONS, "--chunk", "8"]
    alone = tmp_path / "alone"
    assert certify.main([*command, "--out", str(alone)]) == 0
    capsys.readouterr()

    real, reads = data.Dataset.read, []

    def interrupted(dataset, start, stop):
        reads.append(start)
        if start == 6:
            raise KeyboardInterrupt
        return real(dataset, start, stop)

    monkeypatch.setattr(data.Dataset, "read", interrupted)
    assert certify.main(command) == 130
    assert "give the same command again to go on" in capsys.readouterr().err
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("digits-vit_digits-")
    assert certify.main(["--from-tables", str(out)]) == 2
    error = capsys.readouterr().err
    assert "got one with 6 of 12 images done" in error
    assert "give the same command again (python -m experiments.certify --num-images 12" in error

    monkeypatch.setattr(data.Dataset, "read", real)
    (out / "tables" / "margins" / "c" / "1" / "0").write_bytes(b"damaged")
    assert certify.main(command) == 0
    captured = capsys.readouterr()
    assert "margins/c/1/0: is damaged" in captured.err
    assert "images 3 to 5 are computed again" in captured.err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [out.name]
    assert _timeless(out) == _timeless(alone)
    origin = json.loads((out / "results.json").read_text())["provenance"]
    assert origin["masked_images_settled"] == 9 * origin["masked_images"]
    table = captured.out.split("\n\nresults in")[0]

    before = (out / "results.json").read_bytes()
    assert certify.main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(table)
    assert "this run was complete already" in captured.out
    assert (out / "results.json").read_bytes() == before
    (out / "per_image.csv").unlink()  # killed between the table and its reports
    assert certify.main(command) == 0
    assert _timeless(out) == _timeless(alone)


@pytest.mark.parametrize(
    "options",
    [["--chunk", "16"], ["--patch", "2"], ["--fill", "black"], ["--split", "test[1:]"]],
)
def test_other_commands_get_other_folders(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate", _no_work)
    for given in ([], [], options):
        assert certify.main([*OPTIONS, *given]) == 2
    assert len(set(_asked)) == 2
    assert len(_asked) == 3
    _asked.clear()


_asked = []


def _no_work(dataset, apply_fn, params, chosen, folder, **options):
    _asked.append(folder)
    raise ValueError("no work today")
