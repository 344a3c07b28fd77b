"""Shares of a run: put together they are the run, and what is missing or foreign is named."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import killed_certification
import numpy as np
import pytest
import small_runs
from small_runs import BLOCKS, COUNT, DEFENSE, PARAMS, SmallTestSet, contents, evaluate, file_of

from certmask_jax import data, models, weights
from certmask_jax.certification import evaluation, verdicts
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import certify, merge
from certmask_jax.tables import merging, saved_table
from certmask_jax.tables.blocks import FILES_A_BLOCK, Blocks
from certmask_jax.tables.table_writer import TableWriter

# --- tables: ten images in four blocks ---


def _share(folder, part, parts, test_set=None, **options):
    share = {"share": (part, parts), "provenance": {"shard": f"{part}/{parts}", "mine": "kept"}}
    assert evaluate(folder, test_set, **share, **options) is None or parts == 1
    return folder


def _shares(tmp_path, parts=4, **options):
    return [_share(tmp_path / f"share {i}", i, parts, **options) for i in range(parts)]


def _bytes(folder):
    """All of a table but the facts of the session that made it."""
    files = contents(folder)
    about = json.loads(files.pop(saved_table.ABOUT))
    return files, about["fingerprint"], about["format"]


@pytest.mark.parametrize("decide", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_shares_in_any_order_are_the_table_of_one_run(tmp_path, parts, decide):
    evaluate(tmp_path / "alone", decide=decide)
    test_sets = [SmallTestSet() for _ in range(parts)]
    shares = [
        _share(tmp_path / f"share {i}", i, parts, test_set, decide=decide)
        for i, test_set in enumerate(test_sets)
    ]
    # Every n-th block, from block i on; nobody reads another's.
    assert [t.blocks for t in test_sets] == [BLOCKS[i::parts] for i in range(parts)]
    warned = []
    order = np.random.default_rng(parts).permutation(parts)
    merging.merge([shares[i] for i in order], tmp_path / "merged", warn=warned.append)
    assert _bytes(tmp_path / "merged") == _bytes(tmp_path / "alone")
    assert warned == []
    about = saved_table.recorded(tmp_path / "merged")["provenance"]
    assert about["mine"] == "kept"
    assert about["shares"] == parts
    assert "shard" not in about


def test_processes_of_a_share_do_the_blocks_of_the_share(monkeypatch):
    """Whatever the number of processes: else a share could not go on with another number."""
    for parts in range(1, 5):
        for part in range(parts):
            for count in range(1, 4):
                monkeypatch.setattr("jax.process_count", lambda n=count: n)
                blocks = []
                for index in range(count):
                    monkeypatch.setattr("jax.process_index", lambda i=index: i)
                    first, step = evaluation.processes.share_of_this((part, parts))
                    blocks += range(first, 48, step)
                assert sorted(blocks) == list(range(part, 48, parts)), (part, parts, count)


@pytest.mark.parametrize(
    ("given", "images", "which"),
    [
        ([0, 1, 3], "6 to 8", "2/4"),
        ([3, 1], "0 to 2, 6 to 8", "0/4, 2/4"),
        ([2], "0 to 2, 3 to 5, 9 to 9", "0/4, 1/4, 3/4"),
    ],
)
def test_missing_images_and_their_shares_are_named_and_nothing_is_written(
    tmp_path, given, images, which
):
    shares = _shares(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        merging.merge([shares[i] for i in given], tmp_path / "merged")
    assert f"images {images} are in none" in str(caught.value)
    assert str(caught.value).endswith(f"share {which}")
    assert not (tmp_path / "merged").exists()


def test_many_missing_images_are_cut_short(tmp_path):
    shares = [_shares(tmp_path)[3]]
    with pytest.raises(FileNotFoundError, match="0 to 2, 3 to 5 and 1 more blocks are in none"):
        merging.merge(shares, tmp_path / "merged", most_named=2)
    with pytest.raises(FileNotFoundError, match="0 to 2, 3 to 5, 6 to 8 are in none"):
        merging.merge(shares, tmp_path / "merged", most_named=3)


def test_a_stopped_share_lacks_its_last_blocks_and_goes_on(tmp_path):
    stopped, other = tmp_path / "stopped", _share(tmp_path / "other", 1, 2)
    with pytest.raises(KeyboardInterrupt):
        _share(stopped, 0, 2, SmallTestSet(stop_before=1))
    with pytest.raises(FileNotFoundError, match=r"images 6 to 8 are in none; .* share 0/2$"):
        merging.merge([other, stopped], tmp_path / "merged")
    rest = SmallTestSet()
    _share(stopped, 0, 2, rest)
    assert rest.blocks == [BLOCKS[2]]
    merging.merge([other, stopped], tmp_path / "merged")
    evaluate(tmp_path / "alone")
    assert _bytes(tmp_path / "merged") == _bytes(tmp_path / "alone")


def test_shares_of_different_partitions_are_put_together(tmp_path):
    shares = [_share(tmp_path / "a", 0, 2), _share(tmp_path / "b", 1, 4)]
    with pytest.raises(FileNotFoundError, match=r"9 to 9 are in none; run the shares that are mis"):
        merging.merge(shares, tmp_path / "merged")
    merging.merge([*shares, _share(tmp_path / "c", 3, 4)], tmp_path / "merged")
    evaluate(tmp_path / "alone")
    assert _bytes(tmp_path / "merged") == _bytes(tmp_path / "alone")


def test_a_doubled_share_is_warned_of_and_must_be_the_same(tmp_path):
    shares = _shares(tmp_path, 2)
    copy = tmp_path / "copy"
    shutil.copytree(shares[1], copy)
    warned = []
    merging.merge([*shares, copy], tmp_path / "merged", warn=warned.append)
    assert [line.split(" are in ")[0] for line in warned] == ["images 3 to 5, 9 to 9"]
    assert all(str(copy) in line and str(shares[1]) in line for line in warned)
    evaluate(tmp_path / "alone")
    assert _bytes(tmp_path / "merged") == _bytes(tmp_path / "alone")


@pytest.mark.parametrize("name", ["predictions", "margins", "confidences", "labels", "ids"])
def test_shares_that_contradict_each_other_are_refused(tmp_path, name):
    shares = _shares(tmp_path, 2)
    copy = tmp_path / "copy"
    shutil.copytree(shares[1], copy)
    blocks = saved_table.layout(copy, saved_table.recorded(copy))
    block = blocks.read(3)
    if name == "labels":
        changed = block._replace(labels=np.array([7], np.int32))
    elif name == "ids":
        changed = block._replace(rows=block.rows._replace(ids=("x",)))
    else:
        array = np.array(getattr(block.outputs, name))
        array[0, 10] = np.nextafter(array[0, 10], np.float16(9)) if name != "predictions" else 1000
        changed = block._replace(outputs=dataclasses.replace(block.outputs, **{name: array}))
    blocks.write(3, changed)
    with pytest.raises(ValueError, match=r"9 to 9 are in .*share 1 and in .*copy, and differ"):
        merging.merge([*shares, copy], tmp_path / "merged")
    assert not saved_table.is_complete(tmp_path / "merged")
    merging.merge(shares, tmp_path / "merged")  # without it


def test_nan_is_the_same_as_itself(tmp_path):
    """Of the logits of a masked image that are not finite, the margin is NaN."""
    bright = SmallTestSet()
    bright.images[0], bright.images[1:] = 10, 255  # the first image must have logits

    def steep(params, x):
        return jnp.where(x.sum((1, 2, 3), keepdims=True)[:, 0, 0] > 60, jnp.inf, x[:, 0, :4, 0])

    def share(name):
        with mock.patch.object(small_runs, "linear", steep):
            return _share(tmp_path / name, 1, 2, bright)

    shares = [share("a"), share("b")]
    margins = saved_table.layout(shares[0], saved_table.recorded(shares[0])).read(1).outputs.margins
    assert np.isnan(margins).any()
    merging.merge(shares, tmp_path / "merged", partial=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"params": PARAMS * 2}, "weights_sha256 is '"),
        ({"preprocessing": Preprocessing(fill=(255.0,))}, "preprocessing.fill is None there, "),
        ({"chunk": 16}, "chunk is 8 there, 16 here"),
        ({"identity": {"split": "train"}}, "split is None there, 'train' here"),
        ({"decide": True}, "defenses_sha256 is None there"),
    ],
)
def test_a_share_of_another_run_is_refused_by_what_differs(tmp_path, change, named):
    shares = [_share(tmp_path / "a", 0, 2), _share(tmp_path / "b", 1, 2, **change)]
    with pytest.raises(ValueError, match="expected a share of the same run") as caught:
        merging.merge(shares, tmp_path / "merged")
    assert named in str(caught.value)
    assert str(shares[1]) in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_the_merged_table_is_not_put_over_another_run_or_over_files(tmp_path):
    shares = _shares(tmp_path, 2)
    evaluate(tmp_path / "other", params=PARAMS * 2)
    before = contents(tmp_path / "other")
    with pytest.raises(FileExistsError, match="got that of another: weights_sha256"):
        merging.merge(shares, tmp_path / "other")
    assert contents(tmp_path / "other") == before
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        merging.merge(shares, tmp_path / "files")
    assert contents(tmp_path / "files") == {"mine.txt": b"mine"}


def test_what_the_merged_table_held_before_must_not_contradict_the_shares(tmp_path):
    shares = _shares(tmp_path, 2)
    merging.merge(shares, tmp_path / "merged")
    merging.merge(shares, tmp_path / "merged")  # nothing to do
    blocks = saved_table.layout(shares[1], saved_table.recorded(shares[1]))
    block = blocks.read(3)
    blocks.write(3, block._replace(labels=block.labels + 1))
    with pytest.raises(ValueError, match=r"in .*merged what .* images 9 to 9 in .*share 1 differ"):
        merging.merge(shares, tmp_path / "merged")


def test_folders_without_a_table_and_no_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1 share, got none"):
        merging.merge([], tmp_path / "merged")
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{folder}: expected a folder with a share"):
            merging.merge([folder], tmp_path / "merged")


@pytest.mark.parametrize("part", ["predictions", "margins", "confidences", "labels", "ids"])
def test_damage_in_a_share_is_named_and_the_mended_share_is_gone_on_with(tmp_path, part):
    shares = _shares(tmp_path, 2)
    file = file_of(shares[1], part, 3)
    content = bytearray(file.read_bytes())
    content[-7] ^= 16
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        merging.merge(shares, tmp_path / "merged")
    assert saved_table.images_done(tmp_path / "merged") == (9, 10)  # what was whole
    again = SmallTestSet()
    _share(shares[1], 1, 2, again)
    assert again.blocks == [BLOCKS[3]]
    merging.merge(shares, tmp_path / "merged")
    evaluate(tmp_path / "alone")
    assert _bytes(tmp_path / "merged") == _bytes(tmp_path / "alone")


def test_damaged_masks_of_a_share_are_named(tmp_path):
    shares = _shares(tmp_path, 2)
    (shares[0] / saved_table.MASKS).write_bytes(b"no masks")
    named = re.escape(str(shares[0] / saved_table.MASKS))
    with pytest.raises(ValueError, match=rf"{named}.*; give the command of this share again"):
        merging.merge(shares, tmp_path / "merged")


@pytest.mark.parametrize("written", [None, 0, 2, FILES_A_BLOCK])
@pytest.mark.parametrize("number", range(4))
def test_a_merge_that_was_stopped_is_called_again(tmp_path, monkeypatch, number, written):
    """Stopped before a block, or killed when some of its files were there."""
    shares = _shares(tmp_path, 2)
    real, folder = TableWriter.write, tmp_path / "merged"

    def write(writer, block_number, block):
        if block_number == number and written is None:
            raise KeyboardInterrupt
        real(writer, block_number, block)
        if block_number == number:
            blocks = saved_table.layout(folder, saved_table.recorded(folder))
            for file in blocks.files(number)[written:]:
                file.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TableWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            merging.merge(shares, folder)
    whole = number + (written == FILES_A_BLOCK)  # blocks
    images = BLOCKS[whole - 1][1] if whole else 0
    assert saved_table.images_done(folder) == (images, COUNT)
    merging.merge(shares, folder)
    evaluate(tmp_path / "alone")
    assert _bytes(folder) == _bytes(tmp_path / "alone")


def test_part_of_the_shares_begins_a_table_that_evaluation_goes_on_with(tmp_path):
    shares = _shares(tmp_path)
    merging.merge([shares[3], shares[1]], tmp_path / "merged", partial=True)
    assert saved_table.images_done(tmp_path / "merged") == (4, 10)
    rest = SmallTestSet()
    saved = evaluate(tmp_path / "merged", rest)
    assert rest.blocks == [BLOCKS[0], BLOCKS[2]]
    alone = evaluate(tmp_path / "alone")
    assert _bytes(tmp_path / "merged") == _bytes(tmp_path / "alone")
    one, two = (verdicts.certify(s, [DEFENSE]) for s in (saved, alone))
    assert one.defenses[0].worst_case_accuracy == two.defenses[0].worst_case_accuracy


@pytest.mark.parametrize("share", [(4, 4), (-1, 4), (0, 0)])
def test_a_share_that_cannot_be(tmp_path, share):
    with pytest.raises(ValueError, match=r"share: expected \(i, n\) with 0 <= i < n"):
        evaluate(tmp_path / "t", share=share)
    assert not (tmp_path / "t").exists()


def test_more_shares_than_blocks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"at most 4 shares, as the table has 4 blocks .* got 5;"):
        evaluate(tmp_path / "t", share=(0, 5))
    assert not (tmp_path / "t").exists()


# --- the programs: twelve digits in six blocks ---

SMALL = ["--num-images", "12", "--chunk", "8", "--no-compilation-cache"]
SMALL += ["--defense", "double_masking:masks_per_axis=2", "--defense", "certmask:tiling=tight"]
DECIDE = ["--decide", "--no-decide"]


both = pytest.mark.parametrize("made", DECIDE, indirect=True)


@pytest.fixture(autouse=True, scope="module")
def _blocks_of_two():
    with pytest.MonkeyPatch.context() as patched:
        # Of 8, for 27 masked images.
        small_runs.blocks_of(patched, BlockSizes(chunks=7, least_blocks=1, moment=0, stretch=0))
        small_runs.compile_once(patched)
        yield


def _certify(out, *options):
    return certify.main([*SMALL, "--out", str(out), *options])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of ``--decide`` or not: a run alone, and the same in four shares; made when asked for."""

    @functools.cache
    def make(decide):
        folder = tmp_path_factory.mktemp("made")
        assert _certify(folder / "alone", decide) == 0
        for part in range(4):
            assert _certify(folder / "run", decide, "--shard", f"{part}/4") == 0
        return folder

    return make


@pytest.fixture
def made(request, runs):
    """Where a run is ``alone``, and how it decides; not to be changed."""
    decide = getattr(request, "param", "--decide")
    return runs(decide), decide


@pytest.fixture
def run(made, tmp_path):
    """The same in four shares, in a folder of its own."""
    shutil.copytree(made[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def _check_same(run, alone):
    assert _bytes(run / "tables") == _bytes(alone / "tables")
    assert (run / "per_image.csv").read_bytes() == (alone / "per_image.csv").read_bytes()
    assert small_runs.results_of(run) == small_runs.results_of(alone)


def test_a_share_writes_no_report_and_says_what_comes_next(tmp_path, capsys):
    assert _certify(tmp_path, "--shard", "1/4") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shard-1-of-4"]
    assert [file.name for file in (tmp_path / "shard-1-of-4").iterdir()] == ["tables"]
    printed = capsys.readouterr().out
    assert f"share 1/4 is done, 4 of 12 images, in {tmp_path / 'shard-1-of-4'}" in printed
    assert f"python -m experiments.merge {tmp_path}" in printed
    assert "worst case" not in printed
    # Images 2 to 3 and 10 to 11: blocks 1 and 5 of 6.
    blocks = saved_table.layout(
        tmp_path / "shard-1-of-4" / "tables",
        saved_table.recorded(tmp_path / "shard-1-of-4" / "tables"),
    )
    assert [n for n in range(6) if not blocks.missing(n)] == [1, 5]


@both
def test_four_shares_merged_are_one_run(made, run, capsys, tmp_path):
    folder, decide = made
    capsys.readouterr()
    assert certify.main([*SMALL, decide, "--out", str(folder / "alone")]) == 0
    table = capsys.readouterr().out.split("\n\nthis run was complete")[0].strip()
    assert "worst case" in table
    assert merge.main([str(run)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == f"{table}\n\nresults of 4 shares in {run}"
    assert printed.err == ""
    _check_same(run, folder / "alone")
    provenance = json.loads((run / "results.json").read_text())["provenance"]
    assert provenance["shares"] == 4
    assert provenance["command"].startswith("python -m experiments.certify ")
    assert not {"shard", "command_of_all_shares"} & {*provenance}
    assert "--shard" not in provenance["command"]  # the command that mends the whole table
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "results.json").write_text("of another run")
    assert merge.main([str(run), "--out", str(foreign)]) == 2
    assert (foreign / "results.json").read_text() == "of another run"
    before = contents(run)
    assert merge.main([str(run)]) == 0
    assert contents(run) == before
    # It is a run like any other: the command without --shard finds it complete.
    capsys.readouterr()
    assert certify.main([*SMALL, decide, "--out", str(run)]) == 0
    assert "this run was complete already" in capsys.readouterr().out
    assert contents(run) == before


@both
@pytest.mark.parametrize("with_tables", [False, True])
def test_explicit_folders_in_any_order_are_one_run(made, run, tmp_path, with_tables):
    elsewhere = [tmp_path / name for name in ("c", "a", "d", "b")]
    for part, place in enumerate(elsewhere):
        (run / f"shard-{part}-of-4").rename(place)
    given = [str(place / "tables" if with_tables else place) for place in sorted(elsewhere)]
    assert merge.main([*given, "--out", str(tmp_path / "merged")]) == 0
    _check_same(tmp_path / "merged", made[0] / "alone")


def test_a_run_is_merged_into_another_folder(made, run, tmp_path):
    before = contents(run)
    assert merge.main([str(run), "--out", str(tmp_path / "merged")]) == 0
    _check_same(tmp_path / "merged", made[0] / "alone")
    assert contents(run) == before


def test_a_run_is_not_merged_into_one_of_its_parts(run, capsys):
    before = contents(run)
    shares = sorted(map(str, run.iterdir()))
    other_name = f"{shares[0]}/../{shares[0].rpartition('/')[2]}"
    tables = [f"{share}/tables" for share in shares]
    for given, out in (
        ([str(run)], shares[0]),
        ([str(run)], other_name),
        (shares, shares[3]),
        (tables, shares[1]),
        (tables, tables[1]),
    ):
        capsys.readouterr()
        assert merge.main([*given, "--out", out]) == 2
        assert "expected a folder of its own for the whole run, got one of its" in _error(capsys)
    assert contents(run) == before


def test_a_run_is_not_written_where_a_file_is(made, run, tmp_path, capsys):
    (tmp_path / "two.txt").write_text("two")
    for out, got in (("two.txt", "a file"), ("two.txt/run", "one below the file")):
        for program, words in ((merge, [run]), (certify, [*SMALL, made[1]])):
            capsys.readouterr()
            assert program.main([*map(str, words), "--out", str(tmp_path / out)]) == 2
            assert f"{out}: expected a folder, got {got}" in _error(capsys)
    assert (tmp_path / "two.txt").read_text() == "two"


def _error(capsys):
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines[-1]


def test_a_missing_share_is_one_error_and_nothing_is_written(run, capsys):
    shutil.rmtree(run / "shard-2-of-4")
    before = contents(run)
    capsys.readouterr()
    assert merge.main([str(run)]) == 2
    error = _error(capsys)
    assert "images 4 to 5 are in none" in error  # blocks 2, of two images
    assert error.endswith("share 2/4")
    assert contents(run) == before
    assert not (run / "tables").exists()


def test_a_share_that_hardly_began_is_a_missing_share(run, capsys):
    """Killed before its first file; the folder is there."""
    shutil.rmtree(run / "shard-2-of-4")
    (run / "shard-2-of-4" / "tables").mkdir(parents=True)
    (run / "shard-2-of-4" / "tables" / "table.json.unfinished").write_text("{")
    capsys.readouterr()
    assert merge.main([str(run)]) == 2
    error = _error(capsys)
    assert "images 4 to 5 are in none" in error
    assert error.endswith("share 2/4")


def test_merge_asks_for_what_it_needs(tmp_path, run, capsys):
    capsys.readouterr()
    for given in ([run, tmp_path], [tmp_path], [tmp_path / "nowhere"]):
        assert merge.main([str(folder) for folder in given]) == 2
        assert "expected a folder with shares (shard-0-of-4, ...), or --out" in _error(capsys)
    assert merge.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "merged")]) == 2
    assert "expected a folder with a share" in _error(capsys)
    assert not (tmp_path / "merged").exists()


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    model = models.create(models.DEFAULT)
    params = weights.load(models.default_weights(models.DEFAULT), model)
    path = tmp_path_factory.mktemp("weights") / "other.npz"
    weights.save(path, {k: _nudged(v) for k, v in params.items()})
    return path


def _nudged(tree):
    if isinstance(tree, dict):
        return {k: _nudged(v) for k, v in tree.items()}
    return np.asarray(tree) * np.float32(1.01)


@pytest.mark.parametrize("what", ["fill", "weights"])
def test_a_share_of_another_run_is_refused_naming_what_differs(
    made, run, tmp_path, capsys, other_weights, what
):
    options = ["--fill", "black"] if what == "fill" else ["--weights", str(other_weights)]
    share = run / "shard-2-of-4"
    shutil.rmtree(share)
    assert _certify(run, made[1], "--shard", "2/4", *options) == 0
    capsys.readouterr()
    assert merge.main([str(run)]) == 2
    error = _error(capsys)
    assert f"{share / 'tables'}: expected a share of the same run as" in error
    named = "fill is 'mean' there, 'black' here" if what == "fill" else "weights_sha256 is '"
    assert named in error
    assert not (run / "tables").exists()
    # That folder is not this run's share either.
    assert _certify(run, made[1], "--shard", "2/4") == 2
    assert named.replace("'mean' there, 'black'", "'black' there, 'mean'") in _error(capsys)


def test_a_damaged_share_is_named_and_mended_by_its_command(made, run, capsys):
    file = run / "shard-1-of-4" / "tables" / "margins" / "c" / "5" / "0"
    file.write_bytes(file.read_bytes()[:-3])
    capsys.readouterr()
    assert merge.main([str(run)]) == 2
    error = _error(capsys)
    assert str(file) in error
    assert error.endswith("; give the command of this share again to mend it")
    assert not (run / "results.json").exists()
    assert _certify(run, made[1], "--shard", "1/4") == 0
    assert "images 10 to 11 are computed again" in capsys.readouterr().err
    assert merge.main([str(run)]) == 0
    _check_same(run, made[0] / "alone")


def test_a_stopped_merge_is_called_again(made, run, capsys, monkeypatch):
    real = TableWriter.write

    def write(writer, number, block):
        if number == 3:
            raise KeyboardInterrupt
        real(writer, number, block)

    with monkeypatch.context() as patched:
        patched.setattr(TableWriter, "write", write)
        assert merge.main([str(run)]) == 130
    assert "give the same command again to go on" in capsys.readouterr().err
    assert saved_table.images_done(run / "tables") == (6, 12)
    assert merge.main([str(run)]) == 0
    _check_same(run, made[0] / "alone")


def _reads(monkeypatch):
    real, reads = data.Dataset.read, []

    def noted(dataset, start, stop):
        if stop - start == 2:
            reads.append(start)
        return real(dataset, start, stop)

    monkeypatch.setattr(data.Dataset, "read", noted)
    return reads


@both
@pytest.mark.parametrize("stopped", [False, True])
def test_the_whole_command_goes_on_from_some_shares(made, run, capsys, monkeypatch, stopped):
    folder, decide = made
    shutil.rmtree(run / "shard-2-of-4")
    shutil.rmtree(run / "shard-0-of-4")
    if stopped:  # while it takes over what the shares have done
        real = TableWriter.write

        def write(writer, number, block):
            if number == 3:
                raise KeyboardInterrupt
            real(writer, number, block)

        with monkeypatch.context() as patched:
            patched.setattr(TableWriter, "write", write)
            assert _certify(run, decide) == 130
        assert saved_table.images_done(run / "tables") == (2, 12)
    reads = _reads(monkeypatch)
    capsys.readouterr()
    assert _certify(run, decide) == 0
    assert "going on with what 2 shares have done" in capsys.readouterr().err
    assert reads == [0, 4, 8]  # blocks 0, 4 of share 0/4 and 2 of share 2/4
    _check_same(run, folder / "alone")


def test_the_whole_command_takes_unfinished_shares_and_those_that_hardly_began(
    made, run, monkeypatch
):
    (run / "shard-1-of-4" / "tables" / "ids" / "000005.json").unlink()
    shutil.rmtree(run / "shard-0-of-4")
    (run / "shard-0-of-4" / "tables").mkdir(parents=True)
    reads = _reads(monkeypatch)
    assert _certify(run, made[1]) == 0
    assert reads == [0, 8, 10]
    _check_same(run, made[0] / "alone")


def test_the_whole_command_refuses_shares_of_another_run(made, run, capsys):
    before = contents(run)
    capsys.readouterr()
    assert _certify(run, made[1], "--fill", "black") == 2
    assert "fill is 'mean' there, 'black' here" in _error(capsys)
    assert {k: v for k, v in contents(run).items() if k.startswith("shard")} == before
    assert not (run / "results.json").exists()
    assert _certify(run, made[1]) == 0
    _check_same(run, made[0] / "alone")


@both
def test_a_stopped_share_goes_on(made, tmp_path, capsys, monkeypatch):
    real = data.Dataset.read

    def interrupted(dataset, start, stop):
        if start == 10:
            raise KeyboardInterrupt
        return real(dataset, start, stop)

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(data.Dataset, "read", interrupted)
        assert _certify(out, made[1], "--shard", "1/4") == 130
    assert saved_table.images_done(out / "shard-1-of-4" / "tables") == (2, 12)
    reads = _reads(monkeypatch)
    assert _certify(out, made[1], "--shard", "1/4") == 0
    assert reads == [10]
    name = Path("shard-1-of-4") / "tables"
    assert _bytes(out / name) == _bytes(made[0] / "run" / name)


def test_a_killed_share_goes_on(tmp_path, monkeypatch):
    """SIGKILL in a share of five blocks, in a process of its own."""

    def child(folder, **environment):
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, killed_certification.__file__, "--shard", "1/4"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "JAX_NUM_CPU_DEVICES": str(jax.local_device_count()),  # else it is another run
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                **environment,
            },
        )

    def blocks(process):
        lines = process.communicate(timeout=120)[0].splitlines()
        return [int(line.removeprefix("block ")) for line in lines if line.startswith("block")]

    folders = tmp_path / "alone", tmp_path / "killed"
    shares = [folder / "run" / "shard-1-of-4" / "tables" for folder in folders]
    killed, alone = child(folders[1], CERTMASK_JAX_KILLED_BEFORE="9"), []
    folders[0].mkdir()
    with monkeypatch.context() as there:
        there.chdir(folders[0])
        assert killed_certification.certified(["--shard", "1/4"], alone.append) == 0
    assert blocks(killed) == [1, 5, 9]
    assert killed.returncode == -signal.SIGKILL
    assert saved_table.images_done(shares[1]) == (4, 40)
    assert alone == [1, 5, 9, 13, 17]
    assert blocks(child(folders[1])) == [9, 13, 17]
    assert _bytes(shares[1]) == _bytes(shares[0])


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("4/4", "--shard: expected I/N with I from 0 to N-1"),
        ("0/0", "--shard: expected I/N with I from 0 to N-1"),
        ("x", "got 'x'"),
        ("-1/4", "got '-1/4'"),
        ("1/4/2", "got '1/4/2'"),
        ("1.5/4", "got '1.5/4'"),
        ("0/7", "as the table has 6 blocks of images, got 7; a smaller --chunk makes more blocks"),
        ("0/13", "6 blocks of images, got 13; 12 images cannot have more than 12 shares"),
    ],
)
def test_shares_that_cannot_be_are_one_line(tmp_path, capsys, shard, message):
    assert _certify(tmp_path / "run", f"--shard={shard}") == 2
    assert message in _error(capsys)
    assert not (tmp_path / "run").exists()


def test_a_share_of_one_is_the_run(made, tmp_path):
    assert _certify(tmp_path / "run", made[1], "--shard", "0/1") == 0
    _check_same(tmp_path / "run", made[0] / "alone")


def test_blocks_are_those_that_the_tests_say():
    assert len(Blocks(Path(), (12, 27), 2)) == 6
