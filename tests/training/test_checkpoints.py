"""Checkpoints: whatever happens to a run, what is on disk is whole, and resuming changes no bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import killed_training
import numpy as np
import pytest
from small_models import first_params, small_resnet, write_linear_digits

from certmask_jax import data, training
from certmask_jax.programs import train as program
from certmask_jax.programs import training_job
from certmask_jax.training import checkpoints, training_run
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.input_pipeline import InMemory
from certmask_jax.training.log import LogRow
from certmask_jax.training.recipes import Recipe

KILLS = int(os.environ.get("CERTMASK_JAX_KILLS", "1"))
STATE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(4)}


def _kept(folder, scores, keep_best):
    saved = Checkpoints(folder, run={}, keep_best=keep_best)
    for step, score in enumerate(scores, start=1):
        saved.save(step, STATE, {}, score=score)
    steps = saved.steps()
    saved.close()
    return steps


@pytest.mark.parametrize(
    ("scores", "keep_best", "expected"),
    [
        ([0.5, 0.9, 0.7, 0.6], 1, [2, 4]),
        ([0.5, 0.9, 0.7, 0.6], 2, [2, 3, 4]),
        ([0.5, 0.9, None, 0.9], 1, [4]),  # the later of equals
        ([None, None, None], 1, [3]),  # without scores the latest is all
        ([0.1, None, None], 1, [1, 3]),
    ],
)
def test_the_best_and_the_latest_are_kept(tmp_path, scores, keep_best, expected):
    assert _kept(tmp_path, scores, keep_best) == expected
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"run.json", *map(str, expected)}


def test_what_is_saved_comes_back(tmp_path):
    saved = Checkpoints(tmp_path, run={"a": 1})
    saved.save(7, STATE, {"rows": [[1, 0.1]]}, score=0.25)
    saved.close()
    again = Checkpoints(tmp_path, run={"a": 1}, resume=True)
    latest = again.latest()
    assert (latest.step, latest.about["rows"], again.best()) == (7, [[1, 0.1]], 7)
    state = checkpoints.restored(latest.arrays, STATE)
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    assert state["w"].dtype == np.float32
    with pytest.raises(ValueError, match=r"2 entries differ: v \(None instead of .*, w "):
        checkpoints.restored(latest.arrays, {"v": STATE["w"], "step": STATE["step"]})
    again.close()


def test_another_run_is_refused_by_what_differs(tmp_path):
    run = {"model": "a", "recipe": {"seed": 1, "epochs": 3}}
    Checkpoints(tmp_path, run=run).close()
    with pytest.raises(FileExistsError, match="resume=True continues it"):
        Checkpoints(tmp_path, run=run)
    other = {"model": "b", "recipe": {"seed": 1, "epochs": 4}}
    with pytest.raises(
        ValueError,
        match=r"of another: model is 'a' there, 'b' here; recipe.epochs is 3 there, 4 here\. ",
    ):
        Checkpoints(tmp_path, run=other, resume=True)
    Checkpoints(tmp_path, run=run, resume=True).close()


def test_one_process_trains_in_a_folder_at_a_time(tmp_path):
    """Another would clear away what the first is writing."""
    first = Checkpoints(tmp_path, run={})
    (tmp_path / "5.orbax-checkpoint-tmp-12").mkdir()
    with pytest.raises(FileExistsError, match="another process is writing this training run"):
        Checkpoints(tmp_path, run={}, resume=True)
    assert (tmp_path / "5.orbax-checkpoint-tmp-12").is_dir()
    first.close()
    Checkpoints(tmp_path, run={}, resume=True).close()


def test_a_folder_that_could_not_be_opened_is_let_go(tmp_path):
    saved = Checkpoints(tmp_path, run={})
    saved.save(3, STATE, {})
    saved.close()
    (about,) = (tmp_path / "3" / "about").glob("metadata")
    content = about.read_bytes()
    about.write_bytes(b"{")
    with pytest.raises(ValueError, match="3: this checkpoint is damaged") as told:
        Checkpoints(tmp_path, run={}, resume=True)
    about.write_bytes(content)
    Checkpoints(tmp_path, run={}, resume=True).close()
    assert told.value  # which still knows where it was raised


def test_rubbish_of_a_killed_process_is_not_a_checkpoint(tmp_path):
    saved = Checkpoints(tmp_path, run={})
    saved.save(3, STATE, {})
    saved.close()
    (tmp_path / ".removed-2" / "state").mkdir(parents=True)
    (tmp_path / "5.orbax-checkpoint-tmp-12").mkdir()
    (tmp_path / "run.json.unfinished").write_text("{")
    again = Checkpoints(tmp_path, run={}, resume=True)
    assert again.steps() == [3]
    assert not (tmp_path / ".removed-2").exists()
    again.close()


def test_a_damaged_checkpoint_is_named(tmp_path):
    saved = Checkpoints(tmp_path, run={})
    saved.save(3, STATE, {})
    saved.close()
    for file in (tmp_path / "3" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    again = Checkpoints(tmp_path, run={}, resume=True)
    with pytest.raises(
        ValueError, match=r"3: this checkpoint is damaged .*rename its folder, to 3\.bad"
    ):
        again.latest()
    again.close()


def test_bad_folders(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write checkpoints there"):
        Checkpoints(tmp_path / "file" / "x", run={})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        Checkpoints(tmp_path, run={}, resume=True)
    with pytest.raises(ValueError, match="keep_best"):
        Checkpoints(tmp_path / "new", run={}, keep_best=0)


# --- resuming ---

RECIPE = Recipe(epochs=3, batch_size=64, learning_rate=1e-2, ema=0.8)


def _train(folder, **options):
    images, labels = data.digits_arrays("train")
    saved = None if folder is None else Checkpoints(folder, run={}, resume=True)
    model = small_resnet()
    try:
        return training.train(
            model,
            InMemory(images[:256], labels[:256]),
            recipe=RECIPE,
            params=first_params(model),
            saved=saved,
            **options,
        )
    finally:
        if saved is not None:
            saved.close()


def _timeless(rows):
    return [row._replace(images_per_second=0) for row in rows]


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_stopped_and_resumed_is_undisturbed_bit_by_bit(tmp_path, stop):
    """With batch statistics, momentum and an average; in an epoch, at its end, after it."""
    alone = _train(None)
    seen = []
    first = _train(
        tmp_path,
        should_stop=lambda: len(seen) + 1 == stop,
        progress=lambda now: seen.append(now.step),
    )
    assert (first.step, first.finished, seen[-1]) == (stop, False, stop)
    second = _train(tmp_path)
    assert (second.step, second.finished) == (12, True)
    jax.tree.map(np.testing.assert_array_equal, second.params, alone.params)
    assert _timeless(second.rows) == _timeless(alone.rows)
    again = _train(tmp_path)  # nothing is left to do
    jax.tree.map(np.testing.assert_array_equal, again.params, alone.params)


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    real = training_run.trainer

    def poisoned(*args, **options):
        made = real(*args, **options)
        steps = iter(range(100))

        class Poisoned:
            def __getattr__(self, name):
                return getattr(made, name)

            def step(self, state, batch):
                state, measures = made.step(state, batch)
                if next(steps) == 5:  # finite loss, broken parameters
                    state = state._replace(
                        variables=jax.tree.map(lambda leaf: leaf * np.nan, state.variables)
                    )
                return state, measures

        return Poisoned()

    monkeypatch.setattr(training_run, "trainer", poisoned)
    with pytest.raises(FloatingPointError, match="the last good checkpoint is of step 4"):
        _train(tmp_path, checkpoint_every=2)
    saved = Checkpoints(tmp_path, run={}, resume=True)
    assert saved.steps()[-1] == 4
    assert all(np.isfinite(array).all() for array in saved.latest().arrays.values())
    saved.close()


def _child(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, killed_training.__file__, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "JAX_COMPILATION_CACHE_DIR": os.environ["CERTMASK_JAX_COMPILED"],
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def test_killed_at_random_moments_and_resumed_is_undisturbed(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed_training.main(alone)  # in this process, which is not killed
    rng = np.random.default_rng()
    latest, moments = 0, []
    for number in range(KILLS):
        # Somewhere after the last checkpoint, and on the whole spread over the run.
        last = max(latest, killed_training.STEPS * (number + 1) // (KILLS + 1))
        step, delay = int(rng.integers(latest, last + 1)), float(rng.uniform(0, 0.15))
        moments.append((step, delay))
        child = _child(killed)
        assert child.stdout is not None
        printed = 0
        while printed < step or (step == latest and printed == 0):
            line = child.stdout.readline()
            assert line, f"ended early; {moments}"
            if line.strip() == "ready":
                if step == latest:
                    break
                continue
            printed = int(line)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        printed = int(rest[-1]) if rest and rest[-1] != "ready" else printed
        saved = Checkpoints(killed / "checkpoints", run=killed_training.RUN, resume=True)
        steps = saved.steps()
        for one in steps:  # none is half-written
            saved.read(one)
        saved.close()
        due = max(printed, latest) // killed_training.EVERY * killed_training.EVERY
        assert (steps[-1] if steps else 0) >= due, f"a checkpoint is lost; {moments}"
        latest = steps[-1] if steps else 0
    assert _child(killed).wait(timeout=120) == 0
    with np.load(alone / "final.npz") as a, np.load(killed / "final.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{name}; {moments}")
    assert (alone / "rows.json").read_text() == (killed / "rows.json").read_text()
    print("killed after", moments)


FULL = """
import resource, signal, sys
import numpy as np
from certmask_jax.programs import own_process, program
from certmask_jax.training.checkpoints import Checkpoints

def main():
    saved = Checkpoints(sys.argv[1], run={"a": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    arrays = {f"x{i}": np.random.rand(9999) for i in range(9)}
    try:
        return program.run(lambda: saved.save(1, arrays, {}))
    finally:
        saved.close()

own_process.leave(main)
"""


def test_a_write_that_fails_is_one_line_whatever_orbax_leaves_running(tmp_path):
    """Not the tracebacks of its threads, and not those of an event loop that it closed."""
    pytest.importorskip("resource", reason="limits of a process are Unix's")
    out = tmp_path / "run"
    child = subprocess.run(
        [sys.executable, "-c", FULL, str(out)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 2
    assert child.stdout == ""
    wanted = f"error: {out}: writing the checkpoint of step 1 failed (File too large); earlier"
    (line,) = child.stderr.splitlines()
    assert line.startswith(wanted)
    assert line.endswith("Make room, and --resume goes on from there")


# --- the program ---


def test_sigterm_writes_a_checkpoint_and_resume_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    linear = write_linear_digits(tmp_path / "w.npz")
    options = [
        "--dataset", "digits", *linear, "--epochs", "2", "--batch-size", "256", "--held-out", "100",
        "--test-images", "20", "--run-folder", "run",
    ]  # fmt: skip
    real = training_job.write_csv
    sent = []

    def terminating(path: Path, rows: list[LogRow]) -> None:
        real(path, rows)
        if len(rows) == 1 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(training_job, "write_csv", terminating)
    assert program.main(options) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "--resume goes on" in capsys.readouterr().err
    monkeypatch.setattr(training_job, "write_csv", real)
    assert program.main(options) == 2
    assert "--resume continues it" in capsys.readouterr().err
    assert program.main([*options, "--seed", "1", "--resume"]) == 2
    assert "recipe.seed is 0 there, 1 here" in capsys.readouterr().err
    assert program.main([*options, "--resume"]) == 0
    assert "clean" in capsys.readouterr().out
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",") == list(LogRow._fields)
    assert [line.split(",")[0] for line in lines[1:]] == ["4", "8"]
    assert all(0.5 < float(line.split(",")[4]) <= 1 for line in lines[1:])  # held out
    assert (tmp_path / "run" / "linear_digits.npz").is_file()
