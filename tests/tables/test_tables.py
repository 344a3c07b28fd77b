"""Tables on disk: what is there is whole, and damage is named and mended."""

from __future__ import annotations

import errno
import re
import shutil
import types

import numpy as np
import pytest
from small_runs import (
    BLOCKS,
    COUNT,
    DEFENSE,
    PARAMS,
    PARTS,
    SmallTestSet,
    contents,
    evaluate,
    file_of,
    linear,
    writer_of,
)

import certmask_jax as cm
from certmask_jax.certification import verdicts
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.files import whole_files
from certmask_jax.tables import saved_table
from certmask_jax.tables.blocks import FILES_A_BLOCK, Block
from certmask_jax.tables.outputs import SCHEMA, Outputs
from certmask_jax.tables.prediction_table import from_labels
from certmask_jax.tables.run_images import Rows
from certmask_jax.tables.table_writer import check_room


def test_what_is_written_comes_back_row_by_row(tmp_path):
    saved = evaluate(tmp_path / "t")
    test_set = SmallTestSet()
    direct = cm.predict(linear, PARAMS, test_set.images, saved.table.masked_images, chunk=8)
    for name in SCHEMA:
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


def test_a_table_by_hand_has_what_is_said_of_it():
    labels = np.arange(2)[:, None].repeat(len(DEFENSE.masked_images), axis=1)
    plain = from_labels(labels, DEFENSE.masked_images, num_classes=2)
    assert (plain.predictions == labels).all()
    assert plain.known.all()
    assert plain.sure.all()
    said = from_labels(
        labels, DEFENSE.masked_images, num_classes=2, margins=[[0], [3]], confidences=0.5
    )
    assert said.sure.all(axis=1).tolist() == [False, True]
    assert (said.confidences == 0.5).all()
    assert {name: getattr(said, name).dtype for name in SCHEMA} == {
        name: one.dtype for name, one in SCHEMA.items()
    }
    with pytest.raises(ValueError, match=r"margins: expected one value or .*, got \(3,\)"):
        from_labels(labels, DEFENSE.masked_images, num_classes=2, margins=[1, 2, 3])


@pytest.mark.parametrize("written", range(1, FILES_A_BLOCK))
@pytest.mark.parametrize("number", [1, 3])
def test_half_a_block_is_computed_again(tmp_path, number, written):
    """Stopped while a block was written: of its files, in their order, only some are there."""
    evaluate(tmp_path)
    before = contents(tmp_path)
    for part in PARTS[written:]:
        file_of(tmp_path, part, number).unlink()
    _check_mended(tmp_path, number, before, names=None)


def _check_mended(folder, number, before, *, names):
    times = {name: (folder / name).stat().st_mtime_ns for name in contents(folder)}
    test_set, named = SmallTestSet(), []
    evaluate(folder, test_set, hooks=Hooks(warn=named.append))
    assert test_set.blocks == [BLOCKS[number]]
    if names is None:  # nothing is wrong with a run that was stopped
        assert named == []
    else:
        assert len(named) == 1
        assert str(names) in named[0]
        start, stop = BLOCKS[number]
        assert f"images {start} to {stop - 1} are computed again" in named[0]
    assert contents(folder) == before
    own = {str(file_of(folder, part, number).relative_to(folder)) for part in PARTS}
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
    evaluate(tmp_path)
    before = contents(tmp_path)
    file = file_of(tmp_path, part, number)
    if how == "removed":
        file.unlink()
    else:
        file.write_bytes(DAMAGES[how](file.read_bytes()))

    def use():
        saved = saved_table.load(tmp_path)
        return verdicts.certify(saved, [DEFENSE])

    shown = file.relative_to(tmp_path) if how == "removed" else file
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(shown))) as caught:
        use()
    assert "give the same command again to" in str(caught.value)
    assert "\n" not in str(caught.value)
    # Without its mark, which comes last, a block was being written when the run was stopped.
    _check_mended(
        tmp_path, number, before, names=None if (part, how) == ("ids", "removed") else file
    )
    use()


@pytest.mark.parametrize("part", PARTS)
def test_no_single_bit_goes_unnoticed(tmp_path, part):
    evaluate(tmp_path)
    file = file_of(tmp_path, part, 3)
    content = file.read_bytes()
    blocks = saved_table.layout(tmp_path, saved_table.recorded(tmp_path))
    expected = blocks.read(3)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        fresh = saved_table.layout(tmp_path, saved_table.recorded(tmp_path))
        try:
            block = fresh.read(3)
        except ValueError as caught:
            error = str(caught)
        else:  # white space between JSON's tokens
            error = str(file) if part == "ids" and block.rows == expected.rows else ""
        assert str(file) in error, f"bit {bit}"


def test_other_files_of_a_table_are_mended_too(tmp_path):
    evaluate(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "predictions" / "zarr.json").write_text("{")
    (tmp_path / "labels" / "zarr.json").unlink()
    (tmp_path / "masked_images.npy").write_bytes(before["masked_images.npy"][:-1] + b"\1")
    with pytest.raises(ValueError, match=r"masked_images\.npy: is damaged .* again to mend it"):
        saved_table.load(tmp_path)
    test_set = SmallTestSet()
    evaluate(tmp_path, test_set)
    assert test_set.blocks == []
    assert contents(tmp_path) == before


def test_rows_that_equal_the_fill_value_are_data(tmp_path):
    nan = np.full((3, 11), np.nan, np.float16)
    outputs = Outputs(*(np.full((3, 11), one.missing, one.dtype) for one in SCHEMA.values()))
    with writer_of(tmp_path, num_images=6) as writer:
        writer.write(1, Block(outputs, np.full(3, -(2**31), np.int32), Rows(("a", "b", "c"))))
    with writer_of(tmp_path, num_images=6) as writer:
        assert writer.read(0) is None
        block = writer.read(1)
    np.testing.assert_array_equal(block.outputs.margins, nan)
    assert block.rows.ids == ("a", "b", "c")


def test_folders_that_are_no_table_are_refused(tmp_path):
    (tmp_path / "table.json.unfinished").write_text("{")  # rubbish of a process that was killed
    assert saved_table.recorded(tmp_path) is None
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="it holds other files; choose another folder"):
        evaluate(tmp_path)
    with pytest.raises(FileExistsError, match="it holds other files"):
        evaluate(tmp_path / "notes.txt")
    (tmp_path / "table.json").write_text('{"format": "certmask_jax table 1"}')
    for use in (saved_table.load, evaluate):
        with pytest.raises(
            ValueError, match=r"table 2', got 'certmask_jax table 1', which another"
        ):
            use(tmp_path)
    for text in ("{", "[]", "{}", '{"format": "certmask_jax table 2"}'):
        (tmp_path / "table.json").write_text(text)
        for use in (saved_table.load, evaluate):
            with pytest.raises(ValueError, match=r"table\.json: expected .* it is damaged"):
                use(tmp_path)


def test_one_process_writes_at_a_time(tmp_path):
    first, second = writer_of(tmp_path), writer_of(tmp_path)
    with first, pytest.raises(FileExistsError, match="another process is writing this table"):
        second.__enter__()
    with second:
        assert second.read(0) is None


def test_a_disk_that_fails_keeps_what_is_done(tmp_path, monkeypatch):
    alone, folder = tmp_path / "alone", tmp_path / "t"
    evaluate(alone)
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, SmallTestSet(stop_before=1))
    # TensorStore's own error: its chunk cannot be moved to where a folder is.
    blocked = folder / "margins" / "c" / "2" / "0" / "in the way"
    blocked.mkdir(parents=True)
    with pytest.raises(
        OSError, match=r"Is a directory.*\. 6 images are on disk; .* goes on"
    ) as caught:
        evaluate(folder)
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
        evaluate(folder)
    monkeypatch.setattr(whole_files, "write", real)
    evaluate(folder)
    assert contents(folder) == contents(alone)


def test_room_is_needed_only_for_what_is_missing(tmp_path, monkeypatch):
    evaluate(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    evaluate(tmp_path)
    file_of(tmp_path, "ids", 2).unlink()
    with pytest.raises(OSError, match=r"\(3 images x 11 masked images\), got 0\.0 MB"):
        evaluate(tmp_path)


def test_a_data_set_that_ends_early_is_an_error(tmp_path):
    test_set = SmallTestSet()
    test_set.images = np.concatenate([test_set.images, test_set.images[:1]])  # 11, 10 labels
    with pytest.raises(ValueError, match="expected 2 integers, got shape"):
        evaluate(tmp_path / "t", test_set)


def test_needed_room_to_the_byte(tmp_path, monkeypatch):
    """Six bytes a prediction today, a megabyte for reports, a block of the disk for each file."""
    bytes_each = sum(np.dtype(column.dtype).itemsize for column in SCHEMA.values())
    needed = 10 * 11 * bytes_each + (1 << 20) + 4 * (len(SCHEMA) + 2) * 4096

    def free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=size))

    free(needed)
    check_room(tmp_path / "new", 10, 11, 4)
    free(needed - 1)
    with pytest.raises(OSError, match=r"expected 1\.1 MB of free disk .* got 1\.1 MB") as caught:
        check_room(tmp_path / "new", 10, 11, 4)
    assert caught.value.errno == errno.ENOSPC
    check_room(tmp_path / "new", 10, 11, 0)  # nothing is to be written
