"""``certify --two-parts``: a run, printed again, and what does not go with it."""

from __future__ import annotations

import csv
import json

import jax
import numpy as np
import pytest

from certmask_jax import defended, defenses, mask_sets, weights
from certmask_jax.data import digits_arrays
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.models.parts_choice import in_two_parts
from certmask_jax.programs import certify, export
from tests.support.small_models import first_params, small_bagnet, small_split_vit, small_vit

pytestmark = pytest.mark.usefixtures("compiled_once")

VIT = "tests.support.small_models:small_vit"
BAGNET = "tests.support.small_models:small_bagnet"
SPECS = ["patchcure", "minority_reports:mask_stride=1"]


def _drawn(model):
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), model.param_shapes()
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, model in (("vit", small_vit()), ("bagnet", small_bagnet())):
        params = jax.tree.map(abs, _drawn(model)) if name == "bagnet" else _drawn(model)
        weights.save(folder / f"{name}.npz", params)
    return folder


def _certify(files, model, *options, specs=SPECS):
    named = [word for spec in specs for word in ("--defense", spec)]
    of_model = ["--dataset", "digits", "--num-images", "20", "--model", model]
    file = files / ("vit.npz" if model == VIT else "bagnet.npz")
    return certify.main([*of_model, "--weights", str(file), *named, *options])


def _rows(printed):
    return [line for line in printed.splitlines() if "recovery  " in line or "detection  " in line]


def test_a_run_is_that_of_the_library_and_is_printed_again(files, tmp_path, capsys):
    out = tmp_path / "run"
    cut = ("--two-parts", "windows=2x1,depth=1", "--patch", "1", "--out", str(out))
    assert _certify(files, VIT, *cut) == 0
    said = capsys.readouterr().out
    assert "1 of 1 blocks within windows of 2x1 tokens" in said
    assert "(1x1 patches on 8x8 reach windows of 1x1 on 1x2 cells)" in said.replace("\n  ", " ")
    results = json.loads((out / "results.json").read_bytes())
    assert results["provenance"]["two_parts"]["cells"] == [1, 2]
    assert results["provenance"]["threats"] == ["1x1 patches on 8x8"]
    assert results["forward_passes"]["stem"] == 20
    stem = results["provenance"]["stem_passes"]
    assert 20 == stem["useful"] <= stem["slots"]

    model = in_two_parts(small_vit(), windows=(2, 1), depth=1)
    images, _ = digits_arrays("test")
    config = model.data_config
    guard = defended(
        model.apply_fn, _drawn(model),
        defenses.patchcure(mask_sets.budgeted_grid((1, 2), 1, mask_stride=1)),
        channels=1, preprocessing=Preprocessing(config.mean, config.std),
    )  # fmt: skip
    rows = list(csv.DictReader((out / "per_image.csv").open()))
    names = [name for name in rows[0] if name.startswith("patchcure") and "answer" in name]
    answers = [int(row[names[0]]) for row in rows]
    np.testing.assert_array_equal(answers, guard(images[:20]).labels)

    table = _rows(said)
    assert len(table) == 2
    assert _certify(files, VIT, *cut) == 0
    assert "nothing computed" in (again := capsys.readouterr().out)
    assert _rows(again) == table
    assert certify.main(["--from-tables", str(out)]) == 0
    assert _rows(capsys.readouterr().out) == table
    assert certify.main(["--from-tables", str(out), "--patch", "1", "--defense", SPECS[0]]) == 0
    assert "1 of 1 blocks" in capsys.readouterr().out


def test_a_bagnet_by_its_cells_and_what_it_would_take(files, tmp_path, capsys):
    cells = ("--two-parts", "cells", "--patch", "1", "--no-decide")
    assert _certify(files, BAGNET, *cells, "--dry-run", specs=SPECS[:1]) == 0
    assert "beside 20 of the stem" in capsys.readouterr().out
    assert _certify(files, BAGNET, *cells, "--out", str(tmp_path / "run"), specs=SPECS[:1]) == 0
    assert "reach windows of 3x3 on 6x6 cells" in capsys.readouterr().out.replace("\n  ", " ")


def test_a_model_that_comes_in_two_parts_needs_no_cut(tmp_path, capsys):
    weights.save(tmp_path / "own.npz", first_params(small_split_vit()))
    own = ["--model", "tests.support.small_models:in_own_parts", "--num-images", "2"]
    own += ["--weights", str(tmp_path / "own.npz"), "--patch", "1", "--out", str(tmp_path / "run")]
    assert certify.main([*own, "--defense", "patchcure"]) == 0
    said = capsys.readouterr().out.replace("\n  ", " ")
    assert "reach windows of 1x1 on 1x4 cells" in said
    results = json.loads((tmp_path / "run" / "results.json").read_bytes())
    assert results["provenance"]["two_parts"]["cells"] == [1, 4]
    assert certify.main([*own, "--two-parts", "windows=2x1,depth=1"]) == 2
    assert "in_own_parts, which is in two parts as it is" in capsys.readouterr().err
    assert certify.main([*own, "--views", "mirror"]) == 2
    assert "expected none beside a model in two parts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (VIT, ["windows=2x1"], "--two-parts: expected windows and depth"),
        (VIT, ["windows=2x1,deep=1"], "did you mean depth?"),
        (VIT, ["windows=2x1,depth=x"], "depth: cannot read 'x'"),
        (VIT, ["windows=2x1,depth=-1"], "depth: expected from 0 to 1"),
        (VIT, ["windows=3x1,depth=1"], "divides the 2 rows of tokens"),
        (VIT, ["windows=2x1,depth=2"], "expected from 0 to 1"),
        (VIT, ["cells"], "expected a model with local logits"),
        (BAGNET, ["windows=2x1,depth=1"], "whose local logits are the features"),
        (VIT, ["windows=2x1,depth=1", "--patch", "2"], "--patch: expected patches that leave"),
        (VIT, ["windows=2x1,depth=1", "--views", "mirror"], "--views: expected none"),
        (VIT, ["windows=2x1,depth=1", "--hidden-tokens", "drop"], "--hidden-tokens drop: expected"),
        (VIT, ["windows=2x1,depth=1", "--fill", "gray"], "--fill: expected none"),
        (VIT, ["windows=2x1,depth=1", "--sizes", "1,2"], "--sizes: expected none"),
        (BAGNET, ["cells", "--whole-images"], "--whole-images: expected none"),
        (BAGNET, ["cells", "--defense", "patchguard"], "expected a defense that masks"),
    ],
)
def test_what_cannot_be_is_one_error_before_any_work(
    files, tmp_path, capsys, model, options, words
):
    out = tmp_path / "run"
    assert _certify(files, model, "--two-parts", *options, "--out", str(out)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: --")
    assert not out.exists()


def test_a_whole_model_has_no_mask_for_every_place(capsys):
    assert certify.main(["--num-images", "5", "--defense", "patchcure"]) == 2
    assert "expected --two-parts beside it" in capsys.readouterr().err


def test_a_guard_in_one_file_has_one_part(capsys):
    words = ["guard.stablehlo", "--two-parts", "windows=2x1,depth=1", "--defense", "patchcure"]
    assert export.main(words) == 2
    assert "--two-parts" in capsys.readouterr().err
