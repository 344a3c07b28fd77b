"""Tables on disk: whatever happens to a run or its files, going on ends in the same table."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import killed_certification
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import certification, fingerprint, report, tables, whole_files
from certmask_jax.blocks import FILES_A_BLOCK, Block
from certmask_jax.data import Batch
from certmask_jax.preprocessing import Preprocessing
from certmask_jax.table_writer import TableWriter

KILLS = int(os.environ.get("CERTMASK_JAX_KILLS", "3"))
DEFENSE = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2))
COUNT = 10
BLOCKS = [(0, 3), (3, 6), (6, 9), (9, 10)]  # 5 chunks of 8: 3 images of 11 columns
PARTS = ("predictions", "margins", "confidences", "labels", "ids")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(certification, "_CHUNKS_A_BLOCK", 5)


class _TestSet:
    """Ten random images; notes which blocks are read, and can stop a run before one of them."""

    def __init__(self, *, stop_before=None, count=COUNT):
        rng = np.random.default_rng(5)
        self.images = rng.integers(0, 256, (count, 8, 8, 1), np.uint8)
        self.labels = rng.integers(0, 4, count).astype(np.int32)
        self.blocks, self.stop_before = [], stop_before

    def __len__(self):
        return len(self.images)

    def read(self, start, stop):
        if stop - start > 1 or start > 0:  # more than the look at the first image
            if self.stop_before == len(self.blocks):
                raise KeyboardInterrupt
            self.blocks.append((start, stop))
        ids = tuple(f"Bild {i}\n\u00e4" for i in range(start, stop))
        return Batch(self.images[start:stop], self.labels[start:stop], ids)


def _apply(params, x):
    return jnp.tanh(x.reshape(len(x), -1)) @ params


PARAMS = np.random.default_rng(6).normal(size=(64, 4)).astype(np.float32)


def _evaluate(folder, test_set=None, *, params=PARAMS, defense=DEFENSE, **options):
    options = {"preprocessing": Preprocessing(), "chunk": 8, **options}
    test_set = _TestSet() if test_set is None else test_set
    return certification.evaluate(test_set, _apply, params, [defense], folder, **options)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _file(folder: Path, part: str, number: int) -> Path:
    if part == "ids":
        return folder / "ids" / f"{number:06d}.json"
    return folder / part / "c" / str(number) / ("" if part == "labels" else "0")


def test_what_is_written_comes_back_row_by_row(tmp_path):
    saved = _evaluate(tmp_path / "t")
    test_set = _TestSet()
    direct = cm.predict(_apply, PARAMS, test_set.images, saved.table.masked_images, chunk=8)
    for name in ("predictions", "margins", "confidences"):
        stored, expected = getattr(saved.table, name), getattr(direct, name)
        assert not isinstance(stored, np.ndarray)  # memory does not grow with the test set
        assert (stored.shape, stored.dtype, len(stored)) == (expected.shape, expected.dtype, COUNT)
        np.testing.assert_array_equal(np.asarray(stored), expected)
        for key in (
            slice(2, 5), slice(8, 99), slice(5, 5), slice(None, None, 3), slice(7, 2, -2), 4, -1,
            (slice(1, 7), 2), (slice(1, 7), [0, 3]), (3, 1), [1, 8], ..., (slice(2, 4), None),
        ):  # fmt: skip
            np.testing.assert_array_equal(stored[key], expected[key], err_msg=str(key))
        np.testing.assert_array_equal(stored > 1, expected > 1)
        assert 1.0 * stored[2:3].sum() == 1.0 * expected[2:3].sum()
    np.testing.assert_array_equal(saved.labels, test_set.labels)
    assert saved.labels.dtype == np.int32
    assert saved.ids == tuple(f"Bild {i}\n\u00e4" for i in range(COUNT))
    np.testing.assert_array_equal(DEFENSE.rule(saved.table), DEFENSE.rule(direct))


@pytest.mark.parametrize("stop", range(len(BLOCKS) + 1))
def test_stopped_before_any_block_and_resumed_is_undisturbed(tmp_path, stop):
    alone = _evaluate(tmp_path / "alone")
    first, second = _TestSet(stop_before=stop), _TestSet()
    folder = tmp_path / "stopped"
    if stop < len(BLOCKS):
        with pytest.raises(KeyboardInterrupt):
            _evaluate(folder, first)
        done = ("0", "3", "6", "9")[stop]
        with pytest.raises(FileNotFoundError, match=rf"{done} of 10 images done .*again to go on"):
            tables.load(folder)
    else:
        _evaluate(folder, first)
    seen, named = [], []
    resumed = _evaluate(
        folder, second, progress=lambda *step: seen.append(step), damaged=named.append
    )
    assert (first.blocks, second.blocks, named) == (BLOCKS[:stop], BLOCKS[stop:], [])
    assert _bytes(folder) == _bytes(tmp_path / "alone")
    # Both sum up to all: what was there, and what was computed.
    images = BLOCKS[stop - 1][1] if stop else 0
    assert sum(done for done, _, now in seen if not now) == 11 * images
    assert sum(done for done, _, now in seen if now) == 11 * (COUNT - images)
    assert {total for _, total, _ in seen} == {11 * COUNT}
    reports = [certification.certify(saved, [DEFENSE]) for saved in (alone, resumed)]
    assert report.to_json(reports[0]) == report.to_json(reports[1])
    assert report.as_text(reports[0]) == report.as_text(reports[1])


def test_begun_without_a_chunk_goes_on_with_the_one_it_began_with(tmp_path):
    """What is chosen depends on free memory, and the same command may find less tomorrow."""
    with pytest.raises(KeyboardInterrupt):
        _evaluate(tmp_path, _TestSet(stop_before=1))
    _evaluate(tmp_path, chunk=None)
    assert tables.recorded(tmp_path)["fingerprint"]["chunk"] == 8


@pytest.mark.parametrize("written", range(1, FILES_A_BLOCK))
@pytest.mark.parametrize("number", [1, 3])
def test_half_a_block_is_computed_again(tmp_path, number, written):
    """Stopped while a block was written: of its files, in their order, only some are there."""
    _evaluate(tmp_path)
    before = _bytes(tmp_path)
    for part in PARTS[written:]:
        _file(tmp_path, part, number).unlink()
    _check_mended(tmp_path, number, before, names=_file(tmp_path, PARTS[written], number))


def _check_mended(folder, number, before, *, names):
    times = {name: (folder / name).stat().st_mtime_ns for name in _bytes(folder)}
    test_set, named = _TestSet(), []
    _evaluate(folder, test_set, damaged=named.append)
    assert test_set.blocks == [BLOCKS[number]]
    assert len(named) == 1
    assert str(names) in named[0]
    start, stop = BLOCKS[number]
    assert f"images {start} to {stop - 1} are computed again" in named[0]
    assert _bytes(folder) == before
    own = {str(_file(folder, part, number).relative_to(folder)) for part in PARTS}
    for name in set(times) - own:
        assert (folder / name).stat().st_mtime_ns == times[name], f"{name} was touched"


DAMAGES = {
    "flipped": lambda content: content[:-7] + bytes([content[-7] ^ 16]) + content[-6:],
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "longer": lambda content: content + b"\0",
}


@pytest.mark.parametrize("how", [*DAMAGES, "removed"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("number", [1, 3])
def test_damage_is_named_and_mended_and_nothing_else_touched(tmp_path, part, number, how):
    _evaluate(tmp_path)
    before = _bytes(tmp_path)
    file = _file(tmp_path, part, number)
    if how == "removed":
        file.unlink()
    else:
        file.write_bytes(DAMAGES[how](file.read_bytes()))

    def use():
        saved = tables.load(tmp_path)
        return certification.certify(saved, [DEFENSE])

    shown = file.relative_to(tmp_path) if how == "removed" else file
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(shown))) as caught:
        use()
    assert "give 'its command' again to" in str(caught.value)
    assert "\n" not in str(caught.value)
    _check_mended(tmp_path, number, before, names=file)
    use()


@pytest.mark.parametrize("part", PARTS)
def test_no_single_bit_goes_unnoticed(tmp_path, part):
    _evaluate(tmp_path)
    file = _file(tmp_path, part, 3)
    content = file.read_bytes()
    blocks = tables.layout(tmp_path, tables.recorded(tmp_path))
    expected = blocks.read(3)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        fresh = tables.layout(tmp_path, tables.recorded(tmp_path))
        try:
            found = fresh.read(3)
        except ValueError as caught:
            error = str(caught)
        else:  # white space between JSON's tokens
            error = str(file) if part == "ids" and found.ids == expected.ids else ""
        assert str(file) in error, f"bit {bit}"


def test_other_files_of_a_table_are_mended_too(tmp_path):
    _evaluate(tmp_path)
    before = _bytes(tmp_path)
    (tmp_path / "predictions" / "zarr.json").write_text("{")
    (tmp_path / "labels" / "zarr.json").unlink()
    (tmp_path / "masked_images.npy").write_bytes(before["masked_images.npy"][:-1] + b"\1")
    with pytest.raises(ValueError, match=r"masked_images\.npy: is damaged .* again to mend it"):
        tables.load(tmp_path)
    test_set = _TestSet()
    _evaluate(tmp_path, test_set)
    assert test_set.blocks == []
    assert _bytes(tmp_path) == before


def test_rows_that_equal_the_fill_value_are_data(tmp_path):
    nan = np.full((3, 11), np.nan, np.float16)
    outputs = cm.forward.Outputs(np.full((3, 11), -32768, np.int16), nan, nan)
    with _writer(tmp_path, num_images=6) as writer:
        writer.write(1, Block(outputs, np.full(3, -(2**31), np.int32), ("a", "b", "c")))
    with _writer(tmp_path, num_images=6) as writer:
        assert writer.read(0) is None
        found = writer.read(1)
    np.testing.assert_array_equal(found.outputs.margins, nan)
    assert found.ids == ("a", "b", "c")


def _writer(folder, *, num_images=COUNT, **options):
    masks = cm.masked_images.merge([cm.masked_images.unmasked((8, 8)), DEFENSE.masked_images])[0]
    options = {"run": {}, "about": {}, "num_classes": 4, **options}
    return TableWriter(
        folder, num_images=num_images, masked_images=masks, images_per_block=3, **options
    )


OTHER_GRID = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(8, 2, masks_per_axis=2))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"params": PARAMS * 2}, "weights_sha256 is '"),
        ({"params": PARAMS[:, :3]}, "num_classes is 4 there, 3 here"),
        ({"defense": OTHER_GRID}, "masked_images_sha256 is '"),
        ({"test_set": _TestSet(count=9)}, "num_images is 10 there, 9 here"),
        ({"chunk": 16}, "chunk is 8 there, 16 here"),
        ({"preprocessing": Preprocessing(fill=(255.0,))}, r"preprocessing.fill is None there"),
        ({"preprocessing": Preprocessing(precision="high")}, "precision is 'highest' there"),
        ({"identity": {"dataset": "other"}}, "dataset is None there, 'other' here"),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path, change, field):
    with pytest.raises(KeyboardInterrupt):
        _evaluate(tmp_path, _TestSet(stop_before=2))
    before = _bytes(tmp_path)
    with pytest.raises(FileExistsError, match=f"got that of another: .*{field}.*another --out"):
        _evaluate(tmp_path, **change)
    assert _bytes(tmp_path) == before


def test_other_images_versions_and_devices_are_other_runs(tmp_path, monkeypatch):
    _evaluate(tmp_path)
    changed = _TestSet()
    changed.images[0, 0, 0] ^= 1
    with pytest.raises(FileExistsError, match="another: first_image_sha256 is"):
        _evaluate(tmp_path, changed)
    real = fingerprint.environment()
    real["versions"]["jaxlib"], real["devices"]["count"] = "9.9", 7
    real["versions"]["python"] = "3.99"  # decides nothing
    monkeypatch.setattr(fingerprint, "environment", lambda: real)
    with pytest.raises(
        FileExistsError,
        match=r"another: devices\.count is 8 there, 7 here; versions\.jaxlib is [^;]* here\. ",
    ):
        _evaluate(tmp_path)


def test_folders_that_are_no_table_are_refused(tmp_path):
    (tmp_path / "table.json.unfinished").write_text("{")  # rubbish of a process that was killed
    assert tables.recorded(tmp_path) is None
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="it holds other files; choose another --out"):
        _evaluate(tmp_path)
    with pytest.raises(FileExistsError, match="it holds other files"):
        _evaluate(tmp_path / "notes.txt")
    (tmp_path / "table.json").write_text('{"format": "certmask_jax table 1"}')
    for use in (tables.load, _evaluate):
        with pytest.raises(
            ValueError, match=r"table 2', got 'certmask_jax table 1', which another"
        ):
            use(tmp_path)
    for text in ("{", "[]", "{}", '{"format": "certmask_jax table 2"}'):
        (tmp_path / "table.json").write_text(text)
        for use in (tables.load, _evaluate):
            with pytest.raises(ValueError, match=r"table\.json: expected .* it is damaged"):
                use(tmp_path)


def test_one_process_writes_at_a_time(tmp_path):
    first, second = _writer(tmp_path), _writer(tmp_path)
    with first, pytest.raises(FileExistsError, match="another process is writing this table"):
        second.__enter__()
    with second:
        assert second.read(0) is None


def test_a_disk_that_fails_keeps_what_is_done(tmp_path, monkeypatch):
    alone, folder = tmp_path / "alone", tmp_path / "t"
    _evaluate(alone)
    with pytest.raises(KeyboardInterrupt):
        _evaluate(folder, _TestSet(stop_before=1))
    # TensorStore's own error: its chunk cannot be moved to where a folder is.
    blocked = folder / "margins" / "c" / "2" / "0" / "in the way"
    blocked.mkdir(parents=True)
    with pytest.raises(
        OSError, match=r"Is a directory.*\. 6 images are on disk; .* goes on"
    ) as caught:
        _evaluate(folder)
    assert caught.value.errno == errno.EISDIR
    blocked.rmdir()
    blocked.parent.rmdir()

    real = whole_files.write

    def full(path, content):
        if path.name == "000003.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(whole_files, "write", full)
    with pytest.raises(OSError, match=r"the disk is full\. 9 images are on disk; free some space"):
        _evaluate(folder)
    monkeypatch.setattr(whole_files, "write", real)
    _evaluate(folder)
    assert _bytes(folder) == _bytes(alone)


def test_room_is_needed_only_for_what_is_missing(tmp_path, monkeypatch):
    _evaluate(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    _evaluate(tmp_path)
    _file(tmp_path, "ids", 2).unlink()
    with pytest.raises(OSError, match=r"\(3 images x 11 masked images\), got 0\.0 MB"):
        _evaluate(tmp_path)


def test_a_data_set_that_ends_early_is_an_error(tmp_path):
    test_set = _TestSet()
    test_set.images = np.concatenate([test_set.images, test_set.images[:1]])  # 11, 10 labels
    with pytest.raises(ValueError, match="expected 2 integers, got shape"):
        _evaluate(tmp_path / "t", test_set)


# --- killed ---


def _child(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, killed_certification.__file__],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
    )


def _results(folder: Path) -> dict:
    results = json.loads((folder / "run" / "results.json").read_text())
    for name in ("started", "seconds", "masked_images_computed"):
        del results["provenance"][name]
    return results


def _is_done(folder: Path, line: str) -> bool:
    number = int(line.removeprefix("block ")) // killed_certification.IMAGES_PER_BLOCK
    return not tables.layout(folder, tables.recorded(folder)).missing(number)


def test_killed_at_random_moments_and_resumed_is_undisturbed(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    child = _child(alone)
    undisturbed = child.communicate(timeout=120)[0].splitlines()
    assert child.returncode == 0
    every = [line for line in undisturbed if line.startswith("block")]
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
