"""``certify --shard`` and ``merge`` with defenses on evidence, alone and beside those that mask."""

from __future__ import annotations

import functools
import json
import re
import shutil

import pytest
import small_runs

from certmask_jax import weights
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.programs import certify, merge
from certmask_jax.tables import evidence_merging, evidence_store, saved_table
from tests.support.small_models import first_params, small_bagnet

EVIDENCE = ["patchguard", "clipped_bagnet:clip=3"]
MIXED = [EVIDENCE[0], "double_masking:masks_per_axis=2", "smoothed_vit:band=2"]
GUARD = ["--margin-guard", "0.001"]
GUARDS = {tuple(EVIDENCE): [], tuple(MIXED): GUARD}


@pytest.fixture(autouse=True, scope="module")
def _blocks_of_few():
    with pytest.MonkeyPatch.context() as patched:
        small_runs.blocks_of(patched, BlockSizes(chunks=7, least_blocks=1, moment=0, stretch=0))
        small_runs.compile_once(patched)
        yield


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "small.npz"
    weights.save(file, first_params(small_bagnet()))
    model = ["--model", "tests.support.small_models:small_bagnet", "--weights", str(file)]
    return ["--dataset", "digits", "--num-images", "12", *model, "--chunk", "8"]


@pytest.fixture(scope="module")
def certified(command):
    def run(specs, out, *options):
        named = [word for spec in specs for word in ("--defense", spec)]
        to = ["--out", str(out), "--no-page"] if out else []
        sizes = ["--sizes", "1,2", "--whole-images", *GUARD]
        against = sizes if specs == MIXED else ["--patch", "1"]
        return certify.main([*command, *named, *against, *to, *options])

    return run


@pytest.fixture(scope="module")
def made(certified, tmp_path_factory):
    """Of some defenses, made when asked for: a run alone, and two shares; not to be changed."""

    @functools.cache
    def make(specs):
        folder = tmp_path_factory.mktemp("made")
        specs = list(specs)
        assert certified(specs, folder / "alone") == 0
        for part in range(2):
            assert certified(specs, folder / "run", "--shard", f"{part}/2") == 0
        return folder

    return make


def _check_same(run, alone):
    names = sorted(file.name for file in alone.glob("*.csv"))
    assert names == sorted(file.name for file in run.glob("*.csv"))
    for name in names:
        assert (run / name).read_bytes() == (alone / name).read_bytes()
    assert small_runs.results_of(run) == small_runs.results_of(alone)
    mine, theirs = (small_runs.contents(folder) for folder in (run, alone))
    blocks = [name for name in theirs if name.startswith(("evidence/block", "tables/"))]
    assert len(blocks) > 1
    for name in blocks:
        if not name.endswith(saved_table.ABOUT):
            assert mine[name] == theirs[name], name


@pytest.mark.parametrize("specs", [EVIDENCE, MIXED], ids=["alone", "beside masks"])
def test_two_shares_merged_are_one_run(made, certified, tmp_path, capsys, specs):
    folder = made(tuple(specs))
    run = shutil.copytree(folder / "run", tmp_path / "run")
    capsys.readouterr()
    assert certified(specs, folder / "alone") == 0
    table = capsys.readouterr().out.split("\n\nthis run was complete")[0].strip()
    guard = GUARDS[tuple(specs)]
    assert merge.main([str(run), *guard]) == 0
    said = capsys.readouterr()
    assert ("margin guard: " in table) == bool(guard)
    assert said.out.strip() == f"{table}\n\nresults of 2 shares in {run}"
    _check_same(run, folder / "alone")
    provenance = json.loads((run / "results.json").read_text())["provenance"]
    assert provenance["shares"] == 2
    assert not {"shard", "command_of_all_shares"} & {*provenance}
    assert "--shard" not in provenance["command"]
    assert (run / "tables").exists() == (specs is MIXED)
    # The command of the whole run finds it complete, and its folder is read as any other.
    assert certified(specs, run) == 0
    assert "this run was complete already" in capsys.readouterr().out
    assert certify.main(["--from-tables", str(run), *guard]) == 0
    assert capsys.readouterr().out.strip() == table


def test_a_share_says_what_comes_next(certified, made, tmp_path, capsys):
    folder = made(tuple(EVIDENCE))
    assert sorted(one.name for one in (folder / "run" / "shard-1-of-2").iterdir()) == ["evidence"]
    shutil.copytree(folder / "run" / "shard-1-of-2", tmp_path / "shard-1-of-2")
    capsys.readouterr()
    assert certified(EVIDENCE, tmp_path, "--shard", "1/2") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^share 1/2 is done, \d of 12 images, in .*shard-1-of-2$", printed, re.M)
    assert f"python -m experiments.merge {tmp_path}" in printed
    assert "worst case" not in printed


def _error(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("shard-1-of-2", "run, or go on with, share 1/2"),
        ("shard-1-of-2/tables", "run, or go on with, share 1/2"),
        ("shard-0-of-2/evidence", "run, or go on with, share 0/2"),
        ("*/tables", "expected shares with tables, of --defense double_masking"),
        ("*/evidence", "expected shares with evidence, of --defense patchguard"),
    ],
)
def test_what_is_missing_is_one_error_and_nothing_is_written(made, tmp_path, capsys, gone, words):
    run = shutil.copytree(made(tuple(MIXED)) / "run", tmp_path / "run")
    for folder in run.glob(gone):
        shutil.rmtree(folder)
    before = small_runs.contents(run)
    capsys.readouterr()
    assert merge.main([str(run)]) == 2
    assert words in _error(capsys)
    assert small_runs.contents(run) == before


def test_folders_elsewhere_are_merged_and_no_other_margin_guard(made, tmp_path, capsys):
    folder = made(tuple(MIXED))
    shares = [str(share) for share in sorted((folder / "run").iterdir(), reverse=True)]
    to = ["--out", str(tmp_path / "merged")]
    capsys.readouterr()
    assert merge.main([*shares, *to, "--margin-guard", "0.1"]) == 2
    words = (
        "margin guard: expected 0 or 0.001, which the run on evidence was evaluated with, got 0.1"
    )
    assert words in _error(capsys)
    assert not (tmp_path / "merged").exists()
    assert merge.main([*shares, *to, *GUARD]) == 0
    _check_same(tmp_path / "merged", folder / "alone")
    tables = [f"{share}/tables" for share in shares]
    capsys.readouterr()
    assert merge.main([*tables, "--out", str(tmp_path / "tables")]) == 2
    assert "give their own folders" in _error(capsys)


def test_the_whole_command_goes_on_from_some_shares(made, certified, tmp_path, capsys):
    folder = made(tuple(MIXED))
    run = shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(run / "shard-0-of-2")
    (next((run / "shard-1-of-2" / "evidence").glob("block-*"))).unlink()
    capsys.readouterr()
    assert certified(MIXED, run) == 0
    assert "going on with what 1 shares have done" in capsys.readouterr().err
    _check_same(run, folder / "alone")


def test_a_share_of_another_run_is_refused(made, certified, tmp_path, capsys):
    run = shutil.copytree(made(tuple(EVIDENCE)) / "run", tmp_path / "run")
    shutil.rmtree(run / "shard-1-of-2")
    assert certified(EVIDENCE, run, "--shard", "1/2", "--precision", "high") == 0
    capsys.readouterr()
    assert merge.main([str(run)]) == 2
    assert "precision is 'highest' there, 'high' here" in _error(capsys)
    assert not (run / "evidence").exists()


def test_a_share_that_is_stopped_goes_on(made, certified, tmp_path, capsys):
    run = tmp_path / "run"
    share = ["--shard", "0/2"]
    assert certified(EVIDENCE, run, *share, "--max-minutes", "1e-9") == 3
    assert "give the same command again" in capsys.readouterr().out
    assert evidence_store.images_done(run / "shard-0-of-2" / "evidence")[0] == 0
    assert certified(EVIDENCE, run, *share) == 0
    assert not evidence_merging.is_complete(run / "shard-0-of-2" / "evidence")
    mine, theirs = (
        small_runs.contents(one / "shard-0-of-2") for one in (run, made(tuple(EVIDENCE)) / "run")
    )
    assert {*mine} == {*theirs}
    assert all(mine[name] == theirs[name] for name in mine if "block" in name)


def test_more_shares_than_the_table_has_blocks_are_refused_before_evidence(
    command, tmp_path, monkeypatch, capsys
):
    """Evidence has six blocks here, and the table two."""
    small_runs.blocks_of(monkeypatch, BlockSizes(fewest_blocks=2, least_blocks=2))
    words = [*command, "--chunk", "2", "--defense", EVIDENCE[0], "--patch", "1"]
    words.remove("8")
    words.remove("--chunk")
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert certify.main([*words, "--out", str(alone), "--shard", "0/6", "--no-page"]) == 0
    mixed = [*words, "--defense", MIXED[1], "--out", str(both), "--shard", "0/6"]
    capsys.readouterr()
    assert certify.main(mixed) == 2
    assert "as the table has 2 blocks of images, got 6" in _error(capsys)
    assert not both.exists()


def test_more_shares_than_blocks_and_a_plan(certified, tmp_path, capsys):
    assert certified(EVIDENCE, tmp_path / "run", "--shard", "0/99") == 2
    assert "as the evidence has" in _error(capsys)
    assert not (tmp_path / "run").exists()
    assert certified(EVIDENCE, None, "--shard", "0/2", "--dry-run") == 0
    planned = capsys.readouterr().out
    assert "6 images (about; share 0 of 2), 2 defenses on evidence" in planned
    assert "forward passes: 6, one an image for all of these" in planned
