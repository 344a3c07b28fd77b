"""Paths as people give them: what they mean, and what is said where they mean nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
from pathlib import Path

import numpy as np
import pytest
import small_runs

from certmask_jax.files import file_systems, storage, whole_files
from certmask_jax.files.local_paths import in_utf8, local_path
from certmask_jax.programs import benchmark, certify, convert_weights, merge, train
from certmask_jax.tables import merging, saved_table
from certmask_jax.training.checkpoints import Checkpoints

LATIN_1 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def nobody(monkeypatch):
    """No HOME, and no entry for this user."""

    def missing(_):
        raise KeyError("no entry")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


def test_dots_mean_what_they_mean_to_the_system(tmp_path, monkeypatch):
    (tmp_path / "far" / "inside").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far" / "inside")
    monkeypatch.chdir(tmp_path / "here")
    for text in (
        "link/../x",
        "../here/link/../x",
        "./link/../y/../x",
        f"{tmp_path}/here/link/../x",
    ):
        assert local_path(text) == tmp_path.resolve() / "far" / "x", text
    assert local_path("link/x") == tmp_path / "here" / "link" / "x"  # links stay
    assert local_path("../here/./x") == tmp_path.resolve() / "here" / "x"
    assert local_path("missing/../x") == tmp_path.resolve() / "here" / "x"


@pytest.mark.parametrize("name", ["-", " a ", "'q\"", "a\nb", "$HOME", "%s", "x~", "./~", LATIN_1])
def test_odd_names_are_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert str(local_path(name)) == os.path.join(tmp_path, name.removeprefix("./"))


def test_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~") == tmp_path
    assert local_path("~/x/../y") == tmp_path.resolve() / "y"
    assert local_path(Path("~/x")) == tmp_path / "x"
    assert local_path("~root/x") == Path(pwd.getpwnam("root").pw_dir) / "x"
    with pytest.raises(ValueError, match=r"^~nobody-there/x: expected a home .* \(no such user\)"):
        local_path("~nobody-there/x")


def test_no_home_matters_only_to_tilde(nobody):
    assert local_path("x") == Path.cwd() / "x"
    with pytest.raises(ValueError, match=r"HOME is not set, and this user has no entry"):
        local_path("~/x")


ADDRESSES = ["gs://b/x.npz", "s3://b/x", "https://h/x", "file:///x", "hf://a/b", "gs:/b/x", "gs:",
             " gs://b/x", "GS://b/x"]  # fmt: skip


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_are_refused_as_they_were_given(text):
    with pytest.raises(ValueError, match="only local files are read here; copy or download") as e:
        local_path(text)
    assert str(e.value).startswith(f"{text}: ")
    with pytest.raises(ValueError, match="write it here, and copy it there then") as e:
        local_path(text, is_written=True)
    assert str(e.value).startswith(f"{text}: ")


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_what_is_no_path(text):
    with pytest.raises(ValueError, match="expected a local path, got "):
        storage.any_path(text)


def test_paths_that_cannot_be_followed(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="its links lead in a loop") as caught:
        local_path(tmp_path / "loop" / "x")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(FileNotFoundError, match=f"it is a link to {tmp_path}/gone, which is not"):
        local_path(tmp_path / "dangling")
    with pytest.raises(OSError, match="file name too long"):
        local_path(tmp_path / ("n" * 300))
    assert local_path(tmp_path / "missing" / "x") == tmp_path / "missing" / "x"


# --- programs ---

OPTIONS = [
    *[(certify, name) for name in
      ("--out", "--from-tables", "--data-dir", "--weights", "--compilation-cache", "--labels",
       "--class-index")],
    *[(train, name) for name in ("--out", "--run-folder", "--data-dir", "--weights")],
    *[(benchmark, name) for name in ("--out", "--compilation-cache")],
    (merge, "--out"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "option"), OPTIONS)
@pytest.mark.parametrize("given", ["https://h/x.npz", "~nobody-there/x", "", "loop/x"])
def test_every_path_option(tmp_path, monkeypatch, capsys, program, option, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    runs = ["a"] if program is merge else []
    assert program.main([*runs, f"{option}={given}"]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {option}: ")
    assert given in lines[0]
    assert os.listdir(tmp_path) == ["loop"]


def test_paths_without_an_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert convert_weights.main(["gs://b/x.npz", "y.npz", "--model", "vit_digits"]) == 2
    assert "error: IN: gs://b/x.npz: expected a local path" in capsys.readouterr().err
    assert convert_weights.main(["x.npz", "gs://b/y.npz", "--model", "vit_digits"]) == 2
    assert "error: OUT: gs://b/y.npz: expected a local path" in capsys.readouterr().err
    assert merge.main(["https://h/x"]) == 2
    assert "error: RUN: https://h/x: expected a local folder, gs:" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


# --- names that are not UTF-8, and dots, down to TensorStore and Orbax ---


@pytest.mark.parametrize("name", [LATIN_1, "x/../r", f"{LATIN_1}/a b"])
def test_tables_under_any_name(tmp_path, name):
    (tmp_path / "x").mkdir()
    folder = os.path.join(tmp_path, name)
    small_runs.evaluate(folder)
    saved = saved_table.load(folder)
    assert saved.labels.shape == (small_runs.COUNT,)
    assert saved_table.is_complete(storage.any_path(folder))
    assert not any("certmask" in entry for entry in os.listdir(tmp_path))


@pytest.mark.parametrize("name", [LATIN_1, "x/../r"])
def test_checkpoints_under_any_name(tmp_path, name):
    (tmp_path / "x").mkdir()
    saved = Checkpoints(Path(tmp_path, name), run={"a": 1})
    saved.save(3, {"w": np.arange(4.0)}, {"b": 2})
    saved.close()
    again = Checkpoints(os.path.join(tmp_path, name), run={"a": 1}, resume=True)
    latest = again.latest()
    assert (latest.step, latest.arrays["w"].tolist(), latest.about["b"]) == (3, [0, 1, 2, 3], 2)
    again.close()


def test_another_name_is_a_link_and_leaves_what_it_leads_to(tmp_path):
    folder = tmp_path / LATIN_1
    folder.mkdir()
    link = in_utf8(folder / "inside")
    str(link).encode()
    assert link.parent.resolve() == folder.resolve()
    assert in_utf8(folder / "inside") == link
    assert in_utf8(tmp_path) == tmp_path
    with pytest.raises(OSError, match="make the folder first"):
        in_utf8(tmp_path / f"{LATIN_1}2")


def test_text_that_cannot_be_encoded_is_written_as_escapes(tmp_path):
    whole_files.write_text(tmp_path / "f", f"{LATIN_1}\n")
    assert (tmp_path / "f").read_bytes() == b"caf\\udce9\n"


# --- one folder given twice ---


def test_a_folder_counts_once_by_whatever_name(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (tmp_path / "link").symlink_to(one)
    told = []
    folders = merging.distinct([one, other, tmp_path / "link", one, tmp_path / "gone"], told.append)
    assert folders == [one, other, tmp_path / "gone"]
    assert told == [
        f"{tmp_path / 'link'}: the same folder as {one}, counted once",
        f"{one}: the same folder as {one}, counted once",
    ]


def test_merge_of_one_table_twice(tmp_path):
    small_runs.evaluate(tmp_path / "a")
    told = []
    merging.merge([tmp_path / "a", str(tmp_path / "a")], tmp_path / "b", warn=told.append)
    assert told == [f"{tmp_path / 'a'}: the same folder as {tmp_path / 'a'}, counted once"]
    assert saved_table.load(tmp_path / "b").about["provenance"]["shares"] == 1


# --- file systems that cannot ---


@pytest.fixture
def refused(monkeypatch):
    """Makes fsync of folders, and locks, fail as asked; each test has its own folders."""

    def refuse(*, sync=None, lock=None):
        real = os.fsync

        def fsync(handle):
            if sync is not None and os.path.isdir(f"/proc/self/fd/{handle}"):
                raise OSError(sync, os.strerror(sync))
            real(handle)

        def flock(handle, how):
            raise OSError(lock, os.strerror(lock))

        monkeypatch.setattr(os, "fsync", fsync)
        if lock is not None:
            monkeypatch.setattr(fcntl, "flock", flock)

    return refuse


CANNOT = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM]


@pytest.mark.parametrize("number", CANNOT)
def test_a_folder_that_cannot_be_synced_is_not(tmp_path, refused, number):
    refused(sync=number)
    whole_files.write(tmp_path / "f", b"x")
    assert (tmp_path / "f").read_bytes() == b"x"
    assert not file_systems.can_sync(tmp_path)
    assert storage.kvstore(tmp_path / "later")["file_io_sync"] is False


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_an_error(tmp_path, refused, number):
    refused(sync=number)
    with pytest.raises(OSError, match=os.strerror(number)) as told:
        whole_files.write(tmp_path / "f", b"x")
    assert told.value.filename == str(tmp_path / "f")
    assert file_systems.can_sync(tmp_path)  # TensorStore is to say so too


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks(tmp_path, refused, number):
    refused(lock=number)
    assert storage.kvstore(tmp_path)["file_io_locking"] == {"mode": "none"}
    small_runs.evaluate(tmp_path / "t")
    assert saved_table.is_complete(tmp_path / "t")


def test_a_lock_that_another_holds_is_a_lock(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert file_systems.tensorstore_options(tmp_path) == {}
    finally:
        os.close(handle)


def test_orbax_is_told_and_has_its_own_ways_back(tmp_path, refused):
    from orbax.checkpoint._src.serialization import tensorstore_utils

    refused(sync=errno.EINVAL)
    before = tensorstore_utils.get_ts_context().spec.to_json()
    with file_systems.orbax_in(tmp_path / "later"):
        assert tensorstore_utils.get_ts_context().spec.to_json()["file_io_sync"] is False
    assert tensorstore_utils.get_ts_context().spec.to_json() == before


# --- checkpoints that cannot be read, and damage ---


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path, run={})
    saved.save(3, {"w": np.arange(4.0)}, {})
    saved.close()
    again = Checkpoints(tmp_path, run={}, resume=True)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "3"))

    monkeypatch.setattr(os, "walk", refuse)
    monkeypatch.setattr(again._manager, "restore", refuse)
    with pytest.raises(PermissionError, match=r"cannot be read \(Permission denied\); it is left"):
        again.latest()
