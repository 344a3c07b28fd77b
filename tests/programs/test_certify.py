"""The programs as a user meets them: what they print, write and refuse."""

from __future__ import annotations

import csv
import json
import shutil
import warnings

import jax
import numpy as np
import pytest

from certmask_jax import data, defenses, mask_sets, models, weights
from certmask_jax.certification import evaluation, report, verdicts
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import certify, train
from certmask_jax.tables import saved_table

SMALL = ["--num-images", "12"]
TWO = ["--defense", "double_masking:masks_per_axis=2", "--defense", "certmask:tiling=tight"]


def _run(tmp_path, *options, name="run"):
    out = tmp_path / name
    assert certify.main([*SMALL, *TWO, "--out", str(out), *options]) == 0
    return out


def test_default_defenses_write_true_numbers_with_provenance(tmp_path, capsys):
    out = tmp_path / "run"
    assert certify.main([*SMALL, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["num_images"] == 12
    names = [d["name"] for d in results["defenses"]]
    assert names == [
        "double_masking", "challenger_masking", "minority_reports", "certmask",
        "certmask_detection",
    ]  # fmt: skip
    assert all(name in printed for name in names)
    by_name = dict(zip(names, results["defenses"], strict=True))
    assert by_name["double_masking"]["guarantee"] == "recovery"
    assert by_name["double_masking"]["masked_images"] == 136
    assert by_name["minority_reports"]["guarantee"] == "detection"
    assert by_name["certmask"]["worst_case_accuracy"] == 0.0
    assert "k_fold_correct" in by_name["certmask"]["conditions"]
    assert "two_mask_correct" in by_name["double_masking"]["conditions"]
    for d in results["defenses"]:
        low, high = d["intervals"]["worst_case_accuracy"]
        assert 0 <= low <= d["worst_case_accuracy"] <= high <= 1
        assert d["certified_accuracy"] <= d["worst_case_accuracy"]
        assert set(d["conditions"]) <= set(d["intervals"])
    origin = results["provenance"]
    for key in (
        "versions", "devices", "precision", "weights_sha256", "dataset", "split", "num_images",
        "patch", "fill", "command", "defense", "model", "preprocessing", "seconds",
    ):  # fmt: skip
        assert key in origin, key
    with (out / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    undefended = np.mean([row["undefended"] == row["label"] for row in rows])
    assert undefended == results["undefended_accuracy"]
    worst = np.mean([int(row["double_masking 1x1 worst_case"]) for row in rows])
    assert worst == by_name["double_masking"]["worst_case_accuracy"]
    assert float(rows[0]["smallest_margin"]) > 0


def test_from_tables_prints_the_same_without_a_model(tmp_path, capsys):
    out = _run(tmp_path)
    first = capsys.readouterr().out
    assert certify.main(["--from-tables", str(out)]) == 0
    again = capsys.readouterr().out
    assert again.strip() in first
    copy = tmp_path / "copy"
    assert certify.main(["--from-tables", str(out), "--out", str(copy)]) == 0
    assert (copy / "per_image.csv").read_text() == (out / "per_image.csv").read_text()
    capsys.readouterr()
    # Another defense that the same masked images suffice for.
    other = ["--defense", "challenger_masking:masks_per_axis=2", "--patch", "1%"]
    assert certify.main(["--from-tables", str(out), *other]) == 0
    assert "challenger_masking" in capsys.readouterr().out
    lacking = ["--defense", "double_masking:masks_per_axis=3"]
    assert certify.main(["--from-tables", str(out), *lacking]) == 2
    assert "are missing from its" in capsys.readouterr().err


def test_shared_masked_images_are_evaluated_once(tmp_path):
    options = ["--defense", "challenger_masking:masks_per_axis=2", "--patch", "1"]
    out = _run(tmp_path, *options)
    saved = saved_table.load(out / "tables")
    # The image itself, 10 of the 2 x 2 grid for both defenses, 16 of the tight grid.
    assert len(saved.table.masked_images) == 1 + 10 + 16


def test_results_do_not_depend_on_the_chunk_or_the_slice(tmp_path):
    whole = saved_table.load(_run(tmp_path, "--chunk", "64") / "tables")
    part = saved_table.load(
        _run(tmp_path, "--chunk", "64", "--split", "test[4:16]", name="part") / "tables"
    )
    np.testing.assert_array_equal(whole.table.predictions[4:], part.table.predictions[:8])
    np.testing.assert_array_equal(whole.table.margins[4:], part.table.margins[:8])
    assert whole.ids[4:] == part.ids[:8]


def test_one_threat_after_another_and_rectangles(tmp_path):
    out = _run(tmp_path, "--patch", "1,1x3,2%")
    results = json.loads((out / "results.json").read_text())["defenses"]
    shapes = [d["threat"]["patches"] for d in results]
    assert shapes == [[[[1, 1]]]] * 2 + [[[[1, 3]]]] * 2 + [[[[2, 2]]]] * 2


def test_list_names_everything(capsys):
    assert certify.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in (*data.names(), *models.names(), "double_masking", "certmask_detection", "mrcert"):
        assert name in printed


def test_shipped_weights_are_small_and_good():
    path = models.default_weights(models.DEFAULT)
    assert path.stat().st_size < 1_000_000
    model = models.create(models.DEFAULT)
    params = weights.load(path, model)
    images, labels = data.digits_arrays("test")
    mean, std = np.array(model.data_config.mean), np.array(model.data_config.std)
    logits = model.apply_fn(params, (images / 255 - mean) / std)
    assert np.mean(np.argmax(logits, axis=1) == labels) > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "digit"], "did you mean digits"),
        (["--dataset", "cifar10"], "--model: expected a model"),
        (["--model", "resnet"], "model: expected one of"),
        (["--model", "cifar_resnet20"], "only vit_digits ships"),
        (["--defense", "doublemasking"], "did you mean double_masking"),
        (["--defense", "double_masking:masks=6"], "unknown option 'masks'"),
        (["--defense", "double_masking:masks_per_axis"], "expected key=value,key=value"),
        (["--defense", "double_masking:masks_per_axis=six"], "masks_per_axis: cannot read 'six'"),
        (["--defense", "double_masking:masks_per_axis=2,mask_size=3"], "expected only one of"),
        (["--defense", "certmask:tiling=loose"], "tiling: expected one of"),
        (["--defense", "certmask:tiling=exact,coverage=7"], "k = 7 has no such factors"),
        (["--defense", "certmask:tiling=exact,coverage=9x9"], "at most 2-fold"),
        (["--defense", "certmask:tiling=tight,mask_size=1", "--patch", "2"], "at least the patch"),
        (
            [
                "--defense",
                "certmask:tiling=offset,mask_size=7,coverage=3x2,wrap=no",
                "--patch",
                "1",
            ],
            "is hidden by",
        ),
        (["--patch", "9"], "fits the image of 8x8"),
        (["--patch", "5x9x2"], "height x width"),
        (["--patch", "big%"], "percent such as 2.4%"),
        (["--patch", "120%"], r"(0, 100]"),
        (["--fill", "purple"], "--fill: expected mean"),
        (["--fill", "300"], "[0, 255]"),
        (["--precision", "float8"], "highest, high, default or bfloat16"),
        (["--num-images", "0"], "--num-images: expected at least 1"),
        (["--num-images", "501"], "at most 500"),
        (["--chunk", "-1"], "--chunk: expected at least 1"),
        (["--split", "train[3"], "split: expected"),
        (["--num-classes", "5"], "--num-classes: expected at least 10"),
        (["--weights", "no.npz"], "expected a weights file"),
        (["--input-size", "7"], "multiples of the ViT's patch"),
        (["--from-tables", "no"], "expected a folder with a prediction table"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, capsys, options, message):
    out = tmp_path / "run"
    given = [] if "--num-images" in options else SMALL
    assert certify.main([*given, "--out", str(out), *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in captured.err
    assert not out.exists()


def test_folder_of_another_run_is_refused_and_untouched(tmp_path, capsys):
    out = _run(tmp_path)
    before = (out / "results.json").read_bytes()
    # The masked images of the first are the same: its table would do, but it is another run.
    for options, named in (
        (
            [*SMALL, "--defense", "challenger_masking:masks_per_axis=2", *TWO[2:]],
            "defense has 'double_masking:masks_per_axis=2' there alone, "
            "'challenger_masking:masks_per_axis=2' here alone",
        ),
        ([*SMALL, *TWO, "--patch", "1"], "patch is ['1%'] there, ['1'] here"),
        (["--num-images", "13", *TWO], "num_images is 12 there, 13 here"),
    ):
        assert certify.main([*options, "--out", str(out)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"got that of another: {named}" in error
        assert f"{out}" in error
    assert (out / "results.json").read_bytes() == before
    files = tmp_path / "files"
    files.mkdir()
    (files / "notes.txt").write_text("mine")
    assert certify.main([*SMALL, *TWO, "--out", str(files)]) == 2
    assert "perhaps of another run" in capsys.readouterr().err
    assert [file.name for file in files.iterdir()] == ["notes.txt"]


def test_disk_without_room_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert certify.main([*SMALL, *TWO, "--out", str(tmp_path / "run")]) == 2
    assert "MB of free disk for the prediction table" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # so that the same command works once there is room


class _TestSet:
    """Four images whose labels or sizes can be spoilt."""

    def __init__(self, labels=(0, 1, 2, 3), size=8, count=4):
        self.labels, self.size, self.count = np.array(labels, np.int32), size, count

    def __len__(self):
        return self.count

    def read(self, start, stop):
        images = np.full((stop - start, self.size, self.size, 1), 9, np.uint8)
        return data.Batch(images, self.labels[start:stop], ("a", "b", "c", "d")[start:stop])


def _evaluate(
    tmp_path,
    test_set,
    apply_fn=lambda p, x: x.sum((1, 2)) * np.arange(4, dtype=np.float32)[None] + p,
    params=0.0,
):
    defense = defenses.double_masking(mask_sets.budgeted_grid(8, 1, masks_per_axis=2))
    return evaluation.evaluate(
        test_set, apply_fn, params, [defense], tmp_path / "t", preprocessing=Preprocessing()
    ), defense


@pytest.mark.parametrize(
    ("test_set", "message"),
    [
        (_TestSet(count=0), "empty"),
        (_TestSet(labels=(9, 9, 9, 9)), r"values in 0\.\.3 .* got 9 \(image 0\)"),
        (_TestSet(size=7), r"\[T, 8, 8, channels\]"),
    ],
)
def test_bad_test_sets(tmp_path, test_set, message):
    with pytest.raises(ValueError, match=message):
        _evaluate(tmp_path, test_set)


def test_logits_that_are_all_nan_stop_at_once_and_single_ones_are_named(tmp_path):
    with pytest.raises(ValueError, match="NaN or infinite ones for the first image"):
        _evaluate(tmp_path, _TestSet(), params=np.nan)
    assert not (tmp_path / "t").exists()

    def some(p, x):  # not finite where a corner is masked
        corner = jax.numpy.where(x[:, 0, 0] == 0, np.nan, 0.0)  # [B, 1]
        return np.arange(4, dtype=np.float32)[None] + p + corner

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved, defense = _evaluate(tmp_path, _TestSet(), apply_fn=some)
        result = verdicts.certify(saved, [defense])
    assert result.non_finite_images == ("a", "b", "c", "d")
    assert result.defenses[0].worst_case_accuracy == 0
    assert "NaN or infinite logits on 4 images, never certified: a, b" in report.as_text(result)
    report.write(result, tmp_path)
    json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize(
    ("fraction", "count", "low", "high"),
    [(0.5, 100, 0.4038, 0.5962), (0.0, 1000, 0.0, 0.0038), (1.0, 1000, 0.9962, 1.0)],
)
def test_wilson_interval(fraction, count, low, high):
    """Reference values: the formula by hand; 0 of 1000 gives z^2 / (1000 + z^2)."""
    interval = report.wilson_interval(fraction, count)
    np.testing.assert_allclose(interval, (low, high), atol=5e-5)


def test_train_program_writes_weights_that_certify_takes(tmp_path, capsys):
    out = tmp_path / "w.npz"
    linear = ["--dataset", "digits", "--model", "tests.support.small_models:linear_digits"]
    assert train.main([*linear, "--epochs", "1", "--test-images", "40", "--out", str(out)]) == 0
    assert "certified" in capsys.readouterr().out
    assert train.main([*linear, "--epochs", "1", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    _run(tmp_path, *linear, "--weights", str(out))
