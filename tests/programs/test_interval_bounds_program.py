"""``certify --defense interval_bounds``: a run, printed again, attacked, and what it refuses."""

from __future__ import annotations

import csv
import json

import jax
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import models, weights
from certmask_jax.data import digits_arrays
from certmask_jax.programs import attack, certify, export, opened_training, report, train
from certmask_jax.training.recipes import Recipe

pytestmark = pytest.mark.usefixtures("compiled_once")

COUNT = 60


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights at random that lean to two classes, so that some answers withstand a pixel."""
    model = models.create("plain_digits")
    made = jax.tree.map(np.array, model.init(jax.random.key(1)))
    made["params"]["conv1"]["kernel"] *= 0.3
    made["params"]["fc"]["kernel"] *= 0.03
    made["params"]["fc"]["bias"][:2] = 0.5, 0.3
    path = tmp_path_factory.mktemp("weights") / "plain.npz"
    weights.save(path, made)
    return path


def _certify(file, *options, specs=("interval_bounds",), model="plain_digits"):
    named = [word for spec in specs for word in ("--defense", spec)]
    of_model = ["--num-images", str(COUNT), "--model", model]
    of_model += [] if file is None else ["--weights", str(file)]
    return certify.main([*of_model, *named, *options])


def _columns(out):
    rows = list(csv.DictReader((out / "per_image.csv").open()))
    answer = next(name for name in rows[0] if name.endswith("answer"))
    worst = next(name for name in rows[0] if name.endswith("worst_case"))
    return np.array([int(row[answer]) for row in rows]), np.array([row[worst] for row in rows])


def test_a_run_is_that_of_the_library_and_is_printed_again(file, tmp_path, capsys):
    out = tmp_path / "run"
    assert _certify(file, "--out", str(out)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "chooses the colour of a patch pixel" in said
    assert "near ties" not in said
    results = json.loads((out / "results.json").read_bytes())
    (one,) = results["defenses"]
    assert (one["name"], one["worst_case_exact"]) == ("interval_bounds", False)

    model = cm.load_model("plain_digits", file)
    images, labels = (array[:COUNT] for array in digits_arrays("test"))
    masks = cm.mask_sets.budgeted_grid(8, 1, mask_stride=1)
    defense = cm.defenses.interval_bounds(masks)
    how = {"preprocessing": model.preprocessing}
    bounded = cm.BoundedModel(model.apply_fn)
    table = cm.predict(bounded, model.params, images, defense.masked_images, **how)
    answers, worst = _columns(out)
    np.testing.assert_array_equal(answers, defense.rule(table))
    proved = defense.worst_case(table, labels)
    assert {"0", "1"} >= set(worst)
    np.testing.assert_array_equal(worst == "1", proved)
    guard = cm.defended(bounded, model.params, defense, channels=1, **how)
    np.testing.assert_array_equal(guard(images).labels, answers)

    assert report.main([str(out)]) == 0
    capsys.readouterr()
    page = (out / "report.html").read_text()
    assert "stays before all others: bounds of the logits show it." in page
    assert "The image itself says" in page
    assert "can outvote" not in page

    assert certify.main(["--from-tables", str(out)]) == 0
    again = capsys.readouterr().out
    assert f"{100 * proved.mean():.1f}" in again


def test_a_run_without_early_exit_says_the_same(file, tmp_path, capsys):
    for name, options in (("decided", ()), ("whole", ("--no-decide",))):
        assert _certify(file, "--out", str(tmp_path / name), *options) == 0
    capsys.readouterr()
    for decided, whole in zip(*(_columns(tmp_path / n) for n in ("decided", "whole")), strict=True):
        np.testing.assert_array_equal(decided, whole)


def test_it_is_one_classifier_at_all_sizes(file, tmp_path, capsys):
    out = tmp_path / "sizes"
    assert _certify(file, "--sizes", "1,2", "--out", str(out)) == 0
    results = json.loads((out / "results.json").read_bytes())
    capsys.readouterr()
    clean = {one["clean_accuracy"] for one in results["defenses"]}
    assert len(clean) == 1


def test_an_attack_finds_no_certified_image(file, tmp_path, capsys):
    out = tmp_path / "run"
    assert _certify(file, "--out", str(out)) == 0
    assert attack.main([str(out), "--steps", "8", "--out", str(tmp_path / "attack")]) == 0
    said = capsys.readouterr().out
    proved = int(sum(_columns(out)[1] == "1"))
    assert f"worst case 0 of {proved}" in said
    assert proved > 0


def test_what_does_not_go_with_it_is_said(file, capsys):
    for options, specs, message in (
        ((), ("interval_bounds", "double_masking"), "expected a run of interval_bounds alone"),
        ((), ("interval_bounds", "smoothed_vit"), "expected a run of interval_bounds alone"),
        (("--views", "mirror"), ("interval_bounds",), "--views: expected none beside interval_b"),
        (("--patched", "1"), ("interval_bounds",), "--patched: expected none beside interval_b"),
        (("--precision", "bfloat16"), ("interval_bounds",), "--precision: for interval bounds"),
    ):
        assert _certify(file, *options, specs=specs) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert _certify(None, model="vit_digits") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--defense interval_bounds: expected a model of convolutions" in said
    assert "plain_digits and cifar_plain have bounds" in said
    assert (
        train.main(["--bounds-patch", "1", "--cutout", "none", "--out", f"{file}_other.npz"]) == 2
    )
    assert "--bounds-patch: expected a model of convolutions" in capsys.readouterr().err
    assert _certify(file, specs=("ibp",)) == 2
    assert "did you mean interval_bounds?" in capsys.readouterr().err


def test_a_training_ends_with_the_bounds_of_its_patch(tmp_path, capsys):
    out = tmp_path / "net.npz"
    options = ["--model", "plain_digits", "--recipe", "from_scratch", "--cutout", "none", "--crop"]
    options += ["0", "--bounds-patch", "2", "--bounds-places", "1", "--max-steps", "2"]
    assert train.main([*options, "--test-images", "3", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "on 3 test images, 2 px patch, interval bounds: clean" in said
    bfloat16 = ["--compute", "bfloat16", "--out", str(tmp_path / "other.npz")]
    assert train.main([*options, *bfloat16]) == 2
    assert "compute: expected float32, where bounds are trained" in capsys.readouterr().err
    plain = opened_training._facts(Recipe())  # those of older runs
    assert {"bounds_patch", "bounds_places", "bounds_ramp"}.isdisjoint(plain)
    assert opened_training._facts(Recipe(bounds_patch=2))["bounds_places"] == 4


def test_a_guard_of_it_is_the_model(file, tmp_path, capsys):
    path = tmp_path / "guard.stablehlo"
    options = ["--model", "plain_digits", "--weights", str(file), "--defense", "interval_bounds"]
    assert export.main([str(path), *options]) == 0
    capsys.readouterr()
    model = cm.load_model("plain_digits", file)
    images = digits_arrays("test")[0][:COUNT]
    config = model.data_config
    pixels = ((images / 255 - config.mean[0]) / config.std[0]).astype(np.float32)
    labels, alerts = cm.read_guard(path)(images)
    np.testing.assert_array_equal(labels, model.apply_fn(model.params, pixels).argmax(axis=1))
    assert not np.asarray(alerts).any()


def test_a_guard_says_what_it_can_certify(file, tmp_path):
    model = cm.load_model("plain_digits", file)
    images = digits_arrays("test")[0][:COUNT]
    defense = cm.defenses.interval_bounds(cm.mask_sets.budgeted_grid(8, 1, mask_stride=1))
    bounded, how = cm.BoundedModel(model.apply_fn), {"preprocessing": model.preprocessing}
    path = tmp_path / "certified.stablehlo"
    options = {"channels": 1, "certified": True, "platforms": ("cpu",)}
    cm.export_guard(path, bounded, model.params, defense, **options, **how)
    labels, _, certified = cm.read_guard(path)(images)
    table = cm.predict(bounded, model.params, images, defense.masked_images, **how)
    np.testing.assert_array_equal(certified, defense.certified_labels(table))
    assert (np.asarray(certified) >= 0).any()
    np.testing.assert_array_equal(labels, defense.rule(table))
