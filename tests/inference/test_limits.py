"""Runs within limits: of knowledge (dry run), time, memory, margins and precision."""

from __future__ import annotations

import csv
import itertools
import json
import re
import threading
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from small_runs import BLOCKS, COUNT, DEFENSE, PARAMS, SmallTestSet, contents, evaluate

import certmask_jax as cm
from certmask_jax.certification import evaluation, planning, precision_check, report, verdicts
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.reading_ahead import ahead
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.inference import whole_images
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import (
    certification_config,
    certification_options,
    certification_run,
    certify,
    merge,
    progress,
    runtime,
)
from certmask_jax.tables import saved_table
from certmask_jax.tables.outputs import SCHEMA
from certmask_jax.tables.prediction_table import from_labels
from certmask_jax.tables.saved_table import SavedTable
from certmask_jax.tables.table_writer import TableWriter

SMALL = ["--num-images", "12", "--chunk", "8", "--no-compilation-cache"]
SMALL += ["--defense", "double_masking:masks_per_axis=2"]
# The image itself, and of 2 x 2 masks 4 alone and 6 pairs.
COLUMNS = 11


@pytest.fixture(autouse=True, scope="module")
def _compiled_once():
    with pytest.MonkeyPatch.context() as patched:
        small_runs.compile_once(patched)
        yield


@pytest.fixture
def blocks_of_two(monkeypatch):
    # Of 8, for 11 masked images.
    small_runs.blocks_of(monkeypatch, BlockSizes(chunks=3, least_blocks=1, moment=0, stretch=0))


def _error(capsys):
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    line = captured.err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


# --- what it would take ---


@pytest.mark.parametrize(
    ("share", "images"),
    # Blocks of 3, 3, 3 and 1 images.
    [((0, 1), 10), ((0, 2), 6), ((1, 2), 4), ((0, 4), 3), ((3, 4), 1)],
)
def test_plan_counts_the_images_of_the_share(share, images):
    plan = planning.plan(
        SmallTestSet(),
        small_runs.linear,
        PARAMS,
        [DEFENSE],
        preprocessing=Preprocessing(),
        share=share,
        chunk=8,
        block_sizes=small_runs.BLOCK_SIZES,
    )
    assert (plan.num_images, plan.masked_images) == (images, 11)
    assert (plan.passes_most, plan.passes_expected) == (11 * images, 11 * images)
    assert (plan.chunk, plan.images_per_block) == (8, 3)
    a_masked_image = sum(np.dtype(column.dtype).itemsize for column in SCHEMA.values())
    assert plan.table_bytes == 11 * images * a_masked_image
    assert plan.calibrated_on == COUNT  # all of them: a second's work
    assert plan.seconds_expected == pytest.approx(plan.passes_expected / plan.passes_per_second)
    # 64 pixels times 4 classes, a product and a sum each; tanh is counted elsewhere.
    assert 2 * 64 * 4 <= plan.flops_a_pass <= 2 * 64 * 4 + 10 * 64


@pytest.mark.parametrize("decide", [True, False])
@pytest.mark.parametrize("module", [planning, evaluation])
def test_the_engine_hears_how_much_is_asked_for_bit_by_bit(module, decide, monkeypatch, tmp_path):
    class HeardError(Exception):
        pass

    def engine_for(*given, asked_bit_by_bit, **how):
        raise HeardError(asked_bit_by_bit)

    monkeypatch.setattr(module, "engine_for", engine_for)
    begin = {planning: planning.plan, evaluation: evaluation.evaluate}[module]
    given = [SmallTestSet(), small_runs.linear, PARAMS, [DEFENSE]]
    given += [tmp_path / "table"] * (module is evaluation)
    with pytest.raises(HeardError, match=str(11 * COUNT if decide else 0)):
        begin(*given, preprocessing=Preprocessing(), decide=decide)


def test_plan_expects_what_early_exit_leaves():
    """Of logits that do not depend on the image, all is decided by the image and four masks."""
    test_set = SmallTestSet()
    test_set.labels[:] = 2

    def constant(params, x):
        return jnp.zeros((len(x), 4)).at[:, 2].set(1) + 0 * x.sum() + 0 * params.sum()

    plan = planning.plan(
        test_set, constant, PARAMS, [DEFENSE],
        preprocessing=Preprocessing(), decide=True, chunk=8,
    )  # fmt: skip
    assert plan.passes_expected == 11 * COUNT  # what is certified needs all of its pairs
    test_set.labels[:] = 1  # and what is wrong needs none
    wrong = planning.plan(
        test_set, constant, PARAMS, [DEFENSE],
        preprocessing=Preprocessing(), decide=True, chunk=8,
    )  # fmt: skip
    assert wrong.passes_expected == 5 * COUNT
    assert wrong.passes_most == 11 * COUNT


def test_plan_stops_calibrating_when_time_is_up():
    clock = itertools.count(0, 6)  # each look at it is 6 seconds later
    plan = planning.plan(
        SmallTestSet(), small_runs.linear, PARAMS, [DEFENSE],
        preprocessing=Preprocessing(), chunk=8, seconds=10, images_a_turn=2,
        clock=lambda: next(clock),
    )  # fmt: skip
    # Two turns of 6 seconds and two images: 44 passes in 12 seconds, so 110 in 30.
    assert plan.calibrated_on == 4
    assert plan.passes_per_second == pytest.approx(44 / 12)
    assert plan.seconds_expected == pytest.approx(30)


def test_dry_run_prints_counts_and_makes_no_files(tmp_path, capsys, monkeypatch, blocks_of_two):
    monkeypatch.chdir(tmp_path)
    assert certify.main([*SMALL, "--no-decide", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "12 images, 11 masked images each\n" in printed
    assert "forward passes: at most 132, expected 132 (11.0 an image)\n" in printed
    # The shipped model has 16 tokens; its products alone are some millions of operations.
    each = float(re.search(r"FLOP expected \((\S+) a pass\)", printed)[1])
    assert 1e5 < each < 1e8
    assert f"operations: {132 * each:.3g}"[:15] in printed
    assert "table on disk: at most 0.0 MB, in blocks of 2 images\n" in printed
    assert "in chunks of 8, 8% of them padding (measured on 12 images)" in printed
    assert list(tmp_path.rglob("*")) == []
    # Shares of six blocks of two images: 0, 4 and 1, 5, and 2, and 3.
    for part, images in enumerate((4, 4, 2, 2)):
        assert certify.main([*SMALL, "--no-decide", "--dry-run", "--shard", f"{part}/4"]) == 0
        printed = capsys.readouterr().out
        assert f"{images} images (share {part} of 4), 11 masked images each" in printed
        assert f"at most {11 * images}, expected {11 * images} (11.0 an image)" in printed
    assert certify.main([*SMALL, "--dry-run", "--shard", "0/7"]) == 2
    assert "at most 6 shares, as the table has 6 blocks of images, got 7" in _error(capsys)
    assert list(tmp_path.rglob("*")) == []


# --- time ---


def _results(run):
    results = json.loads((run / "results.json").read_text())
    for name in ("command", "started", "seconds", "masked_images_settled", "passes"):
        results["provenance"].pop(name)
    return results


def test_a_run_ends_before_its_time_is_over_and_goes_on(
    tmp_path, capsys, monkeypatch, blocks_of_two
):
    assert certify.main([*SMALL, "--out", str(tmp_path / "alone")]) == 0
    out = tmp_path / "run"
    now = [1000.0]
    real = TableWriter.write

    def write(writer, number, block):  # a block takes a minute
        now[0] += 60
        real(writer, number, block)

    monkeypatch.setattr(TableWriter, "write", write)
    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(certification_run, "time", clock)
    command = [*SMALL, "--out", str(out), "--max-minutes", "2.5"]
    for blocks in (2, 4):  # the third block would end after 3 minutes
        capsys.readouterr()
        assert certify.main(command) == 3
        printed = capsys.readouterr().out
        assert f"stopped: {2 * blocks} of 12 images done, in {out}" in printed
        assert "give the same command again" in printed
        assert "worst case" not in printed
        assert sorted(file.name for file in out.iterdir()) == ["tables"]
    capsys.readouterr()
    assert certify.main(command) == 0  # the last two, and there is nothing more to begin
    assert "results in" in capsys.readouterr().out
    assert _results(out) == _results(tmp_path / "alone")
    assert (out / "per_image.csv").read_bytes() == (tmp_path / "alone/per_image.csv").read_bytes()
    before = contents(out)
    assert certify.main([*command[:-1], "0.001"]) == 0  # complete: no time is needed
    assert contents(out) == before


def test_a_share_ends_before_its_time_is_over(tmp_path, capsys, monkeypatch, blocks_of_two):
    stops = iter([False, True])

    def stop(shown):
        shown.stopped = next(stops)
        return shown.stopped

    monkeypatch.setattr(progress.Progress, "_stop", stop)
    command = [*SMALL, "--out", str(tmp_path), "--max-minutes", "1", "--shard", "0/2"]
    assert certify.main(command) == 3
    printed = capsys.readouterr().out
    assert "stopped: 2 of 12 images" in printed
    assert "experiments.merge" not in printed


@pytest.mark.parametrize("stop", range(5))
def test_stop_is_asked_before_each_block(tmp_path, stop):
    test_set, asked = SmallTestSet(), []

    def stops():
        asked.append(len(saved_table.recorded(tmp_path)["fingerprint"]))
        return len(asked) > stop

    saved = evaluate(tmp_path, test_set, hooks=Hooks(stop=stops))
    assert (saved is None) == (stop < 4)
    assert len(asked) == min(stop + 1, 4)
    assert saved_table.images_done(tmp_path) == ((0, 3, 6, 9, 10)[stop], 10)


# --- margins ---


def _by_hand(margins):
    """Two images, all labels 1 under the 2 x 2 masks; each its own smallest margin."""
    masks = DEFENSE.masked_images
    columns, _ = cm.distinct_unions.merge([cm.distinct_unions.unmasked((8, 8)), masks])
    shape = (len(margins), len(columns))
    all_margins = np.full(shape, 5, np.float16)
    all_margins[:, -1] = margins
    table = from_labels(np.ones(shape, int), columns, num_classes=4, margins=all_margins)
    labels = np.ones(len(margins), np.int32)
    return SavedTable(table, labels, tuple(map(str, range(len(margins)))), {})


@pytest.mark.parametrize(
    ("guard", "certified"),
    [(0, [1, 1, 1]), (0.25, [0, 1, 1]), (0.4, [0, 1, 1]), (0.5, [0, 0, 1]), (4, [0, 0, 0])],
)
def test_margin_guard_certifies_only_strictly_above(guard, certified):
    saved = _by_hand([0.25, 0.5, 2])  # exact in float16
    plain = verdicts.certify(saved, [DEFENSE]).defenses[0]
    result = verdicts.certify(saved, [DEFENSE], margin_guard=guard)
    (guarded,) = result.defenses
    assert result.margin_guard == guard
    for name in ("worst_case", "certificate"):
        assert guarded.per_image[name].tolist() == [bool(c) for c in certified]
    assert guarded.worst_case_accuracy == guarded.certified_accuracy == sum(certified) / 3
    low, high = guarded.intervals["worst_case_accuracy"]
    assert low <= sum(certified) / 3 <= high
    # What the rule answers and what the paper says is not touched.
    assert guarded.per_image["two_mask_correct"].tolist() == [True] * 3
    assert (guarded.conditions, guarded.clean_accuracy) == ({"two_mask_correct": 1.0}, 1.0)
    assert plain.conditions == guarded.conditions
    assert guarded.near_ties == {"0.001": 0, "0.01": 0, "0.1": 0}
    assert ("margin guard: no image" in report.as_text(result)) == (guard > 0)


def test_margin_guard_certifies_no_nan():
    (guarded,) = verdicts.certify(_by_hand([np.nan, 2]), [DEFENSE], margin_guard=0.1).defenses
    assert guarded.per_image["worst_case"].tolist() == [False, True]


def test_margin_guard_is_about_the_masked_images_of_each_defense():
    other = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=3))
    columns, (_, own, others) = cm.distinct_unions.merge(
        [cm.distinct_unions.unmasked((8, 8)), DEFENSE.masked_images, other.masked_images]
    )
    alone = np.setdiff1d(own, others)[0]
    margins = np.full((1, len(columns)), 5, np.float16)
    margins[0, alone] = 0.01
    table = from_labels(np.ones(margins.shape, int), columns, num_classes=4, margins=margins)
    saved = SavedTable(table, np.ones(1, np.int32), ("a",), {})
    guarded = verdicts.certify(saved, [DEFENSE, other], margin_guard=0.1).defenses
    assert [d.per_image["worst_case"].tolist() for d in guarded] == [[False], [True]]


@pytest.mark.parametrize("guard", [-1, -1e-9, np.nan, np.inf])
def test_margin_guard_that_is_none(guard, capsys):
    with pytest.raises(ValueError, match="margin guard: expected a number of at least 0, got"):
        verdicts.certify(_by_hand([1]), [DEFENSE], margin_guard=guard)
    assert certify.main([*SMALL, f"--margin-guard={guard}"]) == 2
    assert "--margin-guard: expected at least 0" in _error(capsys)


def test_another_guard_rewrites_the_report_and_says_so(tmp_path, capsys):
    command = [*SMALL, "--no-decide", "--out", str(tmp_path)]
    assert certify.main(command) == 0
    plain, tables_before = _results(tmp_path), contents(tmp_path / "tables")
    rows = (tmp_path / "per_image.csv").read_bytes()
    capsys.readouterr()
    assert certify.main([*command, "--margin-guard", "2.5"]) == 0
    captured = capsys.readouterr()
    assert "are now those of --margin-guard 2.5, before of 0" in captured.err
    assert "margin guard: no image is certified with a logit margin of 2.5 or less" in captured.out
    assert "results in" in captured.out
    guarded = _results(tmp_path)
    assert (plain["margin_guard"], guarded["margin_guard"]) == (0, 2.5)
    worst = [r["defenses"][0]["worst_case_accuracy"] for r in (plain, guarded)]
    assert worst[1] < worst[0]
    assert guarded["defenses"][0]["conditions"] == plain["defenses"][0]["conditions"]
    assert contents(tmp_path / "tables") == tables_before
    before = contents(tmp_path)
    assert certify.main([*command, "--margin-guard", "2.5"]) == 0
    captured = capsys.readouterr()
    assert "this run was complete already" in captured.out
    assert "are now those" not in captured.err
    assert contents(tmp_path) == before
    # From its tables, and back.
    out = tmp_path / "from tables"
    options = ["--from-tables", str(tmp_path), "--out", str(out), "--margin-guard", "2.5"]
    assert certify.main(options) == 0
    assert (out / "per_image.csv").read_bytes() == before["per_image.csv"]
    assert merge.main([str(tmp_path), "--out", str(tmp_path / "m"), "--margin-guard", "2.5"]) == 0
    assert (tmp_path / "m" / "per_image.csv").read_bytes() == before["per_image.csv"]
    assert certify.main(command) == 0
    assert "are now those of --margin-guard 0, before of 2.5" in capsys.readouterr().err
    assert (tmp_path / "per_image.csv").read_bytes() == rows
    assert _results(tmp_path) == plain


# --- memory ---


class _Memory:
    """Devices that have memory for so many masked images at once."""

    def __init__(self, room, error="RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes."):
        self.room, self.error, self.after, self.sizes = room, error, 0, []

    def compiled(self, *given):
        executable, items = forward_compiled(*given), given[-1]

        def step(params, images, boxes, image_of):
            self.sizes.append(items)
            if items > self.room and len(self.sizes) > self.after:
                raise jax.errors.JaxRuntimeError(self.error)
            return executable(params, images, boxes, image_of)

        return step


forward_compiled = whole_images.compiled_chunk


def exact(params, x):
    """Sums of whole numbers: as float32 holds them, however many images are at once."""
    return jnp.round(x.reshape(len(x), -1) * 255) @ params


@pytest.mark.parametrize("decide", [False, True])
@pytest.mark.parametrize(
    ("chunk", "room", "halves"),
    [(16, 15, [8]), (32, 31, [16]), (32, 8, [16, 8]), (14, 8, [6])],
)
@pytest.mark.parametrize("after", [0, 2, 5])
def test_out_of_memory_goes_on_with_half_the_chunk(
    tmp_path, monkeypatch, chunk, room, halves, decide, after
):
    count, whole_numbers = 40, np.round(PARAMS * 9)
    monkeypatch.setattr(small_runs, "linear", exact)
    options = {"params": whole_numbers, "decide": decide, "chunk": chunk}
    alone = evaluate(tmp_path / "alone", SmallTestSet(count=count), **options)
    memory, warned, steps = _Memory(room), [], []
    memory.after = after  # then another program takes it
    monkeypatch.setattr(whole_images, "compiled_chunk", memory.compiled)
    hooks = Hooks(warn=warned.append, progress=steps.append)
    saved = evaluate(tmp_path / "run", SmallTestSet(count=count), hooks=hooks, **options)
    for name in ("predictions", "margins", "confidences"):
        np.testing.assert_array_equal(
            np.asarray(getattr(saved.table, name)), np.asarray(getattr(alone.table, name))
        )
    assert contents(tmp_path / "run" / "labels") == contents(tmp_path / "alone" / "labels")
    assert [re.search(r"with (\d+) (?:--|\()", w)[1] for w in warned] == list(map(str, halves))
    assert warned[0].startswith(f"the devices ran out of memory with {chunk} masked images at onc")
    # Once small, always small.
    first = memory.sizes.index(halves[-1])
    assert set(memory.sizes[first:]) == {halves[-1]}
    assert sum(step.settled for step in steps) == 11 * count
    assert sum(step.evaluated for step in steps) == int(saved.table.known.sum())
    running = list(itertools.accumulate(step.settled for step in steps))
    assert min(running) >= 0
    assert max(running) == 11 * count
    if not decide:  # what had come back of the first block is taken back
        assert any(step.settled < 0 for step in steps) == (after == 5)


def test_no_memory_for_one_item_on_each_device_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_images, "compiled_chunk", _Memory(1).compiled)
    with pytest.raises(ValueError, match="memory for one masked image on each device") as caught:
        evaluate(tmp_path / "t", chunk=16)
    assert "precision bfloat16" in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_another_error_of_jax_is_not_swallowed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        whole_images, "compiled_chunk", _Memory(7, "INTERNAL: a device fell off").compiled
    )
    warned = []
    with pytest.raises(jax.errors.JaxRuntimeError, match="a device fell off"):
        evaluate(tmp_path / "t", chunk=16, hooks=Hooks(warn=warned.append))
    assert warned == []


def _rows(run):
    with (run / "per_image.csv").open() as file:
        return [
            {name: value for name, value in row.items() if "margin" not in name}
            for row in csv.DictReader(file)
        ]


def test_the_program_says_that_memory_ran_out_and_goes_on(
    tmp_path, capsys, monkeypatch, blocks_of_two
):
    options = [*SMALL[:2], "--chunk", "16", *SMALL[4:]]
    assert certify.main([*options, "--out", str(tmp_path / "alone")]) == 0
    capsys.readouterr()
    memory = _Memory(8)
    memory.after = 3
    monkeypatch.setattr(whole_images, "compiled_chunk", memory.compiled)
    assert certify.main([*options, "--out", str(tmp_path / "run")]) == 0
    errors = capsys.readouterr().err
    assert errors.count("ran out of memory with 16 masked images at once; going on with 8") == 1
    # Margins may differ in the last bit, as half as many are at once.
    rows = [_rows(tmp_path / run) for run in ("run", "alone")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 12
    settled = [
        json.loads((tmp_path / run / "results.json").read_text())["provenance"]
        for run in ("run", "alone")
    ]
    assert settled[0]["masked_images_settled"] == settled[1]["masked_images_settled"] == 132


# --- precision ---


def tied(params, x):
    """Class 1 by 2**-12 where the top left pixel is seen, which bfloat16 does not tell from 0."""
    seen = x[:, 0, 0, 0] > 0
    one = jnp.asarray(1, x.dtype)
    small = jnp.asarray(2**-12, x.dtype)
    first = jnp.where(seen, one, one + one)
    second = jnp.where(seen, one + small, one)
    third = 0 * one * x[:, 0, 0, 0] - one
    return jnp.stack([first, second, third], axis=1) + params.astype(x.dtype)[None]


class _Bright(SmallTestSet):
    def __init__(self, count=COUNT):
        super().__init__(count=count)
        self.images[:] = 200
        self.labels[:] = 1


def _flips(tmp_path, **options):
    test_set, zero = _Bright(), np.zeros(3, np.float32)
    low = Preprocessing(precision="bfloat16")
    with mock.patch.object(small_runs, "linear", tied):
        saved = evaluate(tmp_path, test_set, params=zero, preprocessing=low)
    counts = precision_check.label_flips(
        saved, test_set, tied, zero, preprocessing=low, chunk=8, **options
    )
    return saved, counts


def test_label_flips_are_those_that_bfloat16_is_known_for(tmp_path):
    """The corner is seen in the image, under 3 of 4 masks and 3 of 6 pairs: 7 of 11."""
    saved, counts = _flips(tmp_path)
    boxes = saved.table.masked_images.boxes
    sees = ~((boxes[..., 0] == 0) & (boxes[..., 1] == 0) & (boxes[..., 2] > 0)).any(axis=1)
    assert sees.sum() == 7
    assert (np.asarray(saved.table.predictions) == 0).all()
    assert (counts.compared, counts.flips) == (11 * COUNT, 7 * COUNT)
    assert counts.largest_margin == 0  # a tie, in bfloat16


@pytest.mark.parametrize("count", [1, 20, 109])
def test_label_flips_of_a_sample(tmp_path, count):
    _, counts = _flips(tmp_path, count=count)
    assert counts.compared == count
    assert 0 <= counts.flips <= min(count, 70)
    assert counts.flips >= count - 40  # there are no more that do not flip
    assert _flips(tmp_path, count=count)[1] == counts  # the same sample every time


def test_label_flips_look_at_few_images_and_at_what_was_evaluated(tmp_path):
    test_set = SmallTestSet()
    saved = evaluate(tmp_path, test_set, decide=True)
    test_set.blocks.clear()
    known = saved.table.known.sum(axis=1)
    counts = precision_check.label_flips(
        saved, test_set, small_runs.linear, PARAMS,
        preprocessing=Preprocessing(), chunk=8, most_images=4,
    )  # fmt: skip
    rows = {start for start, _ in test_set.blocks} | ({0} if len(test_set.blocks) < 4 else set())
    assert len(rows) == 4
    assert counts == precision_check.LabelFlips(int(known[sorted(rows)].sum()), 0, 0.0)


def test_label_flips_are_counted_where_memory_runs_out(tmp_path, monkeypatch):
    """float32 takes more than what the table was made with."""
    monkeypatch.setattr(whole_images, "compiled_chunk", _Memory(8).compiled)
    _, plain = _flips(tmp_path / "a")
    test_set, zero = _Bright(), np.zeros(3, np.float32)
    saved = saved_table.load(tmp_path / "a")
    counts = precision_check.label_flips(
        saved, test_set, tied, zero, preprocessing=Preprocessing(precision="bfloat16"), chunk=32
    )
    assert counts == plain


def test_label_flips_stand_in_the_results_and_stay(tmp_path, capsys, monkeypatch):
    command = [*SMALL, "--precision", "bfloat16", "--no-decide", "--out", str(tmp_path)]
    assert certify.main(command) == 0
    written = json.loads((tmp_path / "results.json").read_text())["provenance"]
    counts = written["label_flips_against_float32"]
    assert set(counts) == {"compared", "flips", "largest_margin"}
    assert counts["compared"] == 12 * COLUMNS
    before = contents(tmp_path)
    shown, real = [], report.as_text

    def as_text(result, **options):
        shown.append(result.provenance["label_flips_against_float32"])
        return real(result, **options)

    with monkeypatch.context() as patched:
        patched.setattr(report, "as_text", as_text)
        patched.setattr(precision_check, "label_flips", None)  # not computed again
        assert certify.main(command) == 0
    assert shown == [counts]
    assert contents(tmp_path) == before
    # A merged run has none, as merge has no model; the command given again counts them.
    merged = tmp_path / "merged"
    assert merge.main([str(tmp_path), "--out", str(merged)]) == 0
    results = json.loads((merged / "results.json").read_text())
    assert "label_flips_against_float32" not in results["provenance"]
    assert certify.main([*command[:-1], str(merged)]) == 0
    results = json.loads((merged / "results.json").read_text())
    assert results["provenance"]["label_flips_against_float32"] == counts


# --- runtime ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpu-devices", "0"], "--cpu-devices: expected at least 1, got 0"),
        (["--cpu-devices", "-3"], "--cpu-devices: expected at least 1, got -3"),
        (["--cpu-devices", "5"], "--cpu-devices: expected 5, but JAX is in use already, with 2"),
        (["--distributed", "host:1,2/2"], "expected HOST:PORT,I/N with 0 <= I < N"),
        (["--distributed", "host:1,0/0"], "expected HOST:PORT,I/N with 0 <= I < N"),
        (["--distributed", "host,0/2"], "got 'host,0/2'"),
        (["--distributed", "x"], "got 'x'"),
        (["--max-minutes", "0"], "--max-minutes: expected more than 0, got '0'"),
        (["--max-minutes", "nan"], "--max-minutes: expected more than 0 and finite, got 'nan'"),
        (["--max-minutes=-1"], "--max-minutes: expected more than 0, got '-1'"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, message):
    assert certify.main([*SMALL, "--out", str(tmp_path / "run"), *options]) == 2
    assert message in _error(capsys)
    assert not (tmp_path / "run").exists()


def _runtime(*options):
    return certification_config.read_config(
        certification_options.parser().parse_args(list(options))
    ).runtime


def test_runtime_options(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default = _runtime()
    assert (default.cpu_devices, default.distributed) == (None, None)
    assert default.compilation_cache == tmp_path / "certmask_jax" / "compiled"
    assert _runtime("--no-compilation-cache").compilation_cache is None
    assert _runtime("--compilation-cache", "here").compilation_cache == Path.cwd() / "here"
    assert _runtime("--distributed").distributed == ""
    assert _runtime("--distributed", "h:1,0/2").distributed == "h:1,0/2"
    assert _runtime("--cpu-devices", "3").cpu_devices == 3
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    assert runtime.cores() == 3
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(99)), raising=False)
    assert runtime.cores() == 8


@pytest.fixture
def no_cache_chosen():
    before, update = jax.config.values["jax_compilation_cache_dir"], jax.config.update
    update("jax_compilation_cache_dir", None)
    yield
    update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(
    ("environment", "chosen", "expected"),
    [
        ({}, None, 2),
        ({}, 3, 3),
        ({"JAX_NUM_CPU_DEVICES": "5"}, None, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, None, None),
        ({"JAX_NUM_CPU_DEVICES": "5"}, 3, 3),
    ],
)
def test_what_starts_with_jax(
    monkeypatch, tmp_path, no_cache_chosen, environment, chosen, expected
):
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(runtime, "cores", lambda: 2)
    runtime.start(runtime.Runtime(chosen, tmp_path, None))
    assert updates.get("jax_num_cpu_devices") == expected
    assert updates["jax_compilation_cache_dir"] == str(tmp_path)
    updates.clear()
    runtime.start(runtime.Runtime(chosen, None, None))
    assert "jax_compilation_cache_dir" not in updates


# --- reading ahead ---


def test_the_next_block_is_read_before_the_last_is_worked_on():
    read = {start: threading.Event() for start, _ in BLOCKS}

    def noted(start, stop):
        read[start].set()
        return start

    for number, start in ahead(noted, dict(enumerate(BLOCKS))):
        assert BLOCKS[number][0] == start
        if start < 9:
            assert read[start + 3].wait(timeout=30)
        assert not any(read[later].is_set() for later in read if later > start + 3)  # nor more
    assert list(ahead(noted, {})) == []


@pytest.mark.parametrize(("fails_at", "done"), [(0, 0), (3, 3), (6, 6), (9, 9)])
def test_an_error_while_reading_surfaces_at_its_block(tmp_path, fails_at, done):
    class Failing(SmallTestSet):
        def read(self, start, stop):
            if start == fails_at and (start, stop) in BLOCKS:  # not the look at the first image
                raise OSError(f"cannot read image {start}")
            return super().read(start, stop)

    with pytest.raises(OSError, match=f"cannot read image {fails_at}"):
        evaluate(tmp_path, Failing())
    assert saved_table.images_done(tmp_path) == (
        done,
        10,
    )  # what came before was worked on and stays
    rest = SmallTestSet()
    evaluate(tmp_path, rest)
    assert rest.blocks == BLOCKS[done // 3 :]


@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_reading_ahead_ends_with_the_run(tmp_path, blocks):
    asked = itertools.count()
    test_set = SmallTestSet()
    evaluate(tmp_path, test_set, hooks=Hooks(stop=lambda: next(asked) == blocks))
    assert saved_table.images_done(tmp_path) == (min(10, 3 * blocks), 10)
    read_ahead = BLOCKS[: blocks + 1] if blocks else []  # one more than was worked on
    assert test_set.blocks == read_ahead
    assert not any("reads ahead" in thread.name for thread in threading.enumerate())
