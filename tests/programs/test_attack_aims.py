"""``certmask attack``: one label that is to be answered, and every place of a stride."""

from __future__ import annotations

import contextlib
import json

import pytest

from certmask_jax.programs import attack, certify
from certmask_jax.programs.attacking.attack_folder import LINES
from tests.support.small_models import write_linear_digits

pytestmark = pytest.mark.usefixtures("compiled_once")

TARGET = 3


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    run = tmp_path_factory.mktemp("aimed") / "run"
    linear = write_linear_digits(run.parent / "w.npz")
    words = ["--num-images", "7", "--patch", "3", "--defense", "double_masking:masks_per_axis=2"]
    assert certify.main(["--dataset", "digits", *linear, *words, "--out", str(run)]) == 0
    folder = run / "attack"
    words = ["--target", str(TARGET), "--stride", "5", "--steps", "8", "--at-once", "4"]
    assert attack.main([str(run), *words]) == 0
    return folder


def _lines(folder):
    _, *lines = (json.loads(line) for line in (folder / LINES).read_text().splitlines())
    return lines


def test_what_is_reached_is_the_target_and_its_own_class_is_left_alone(attacked):
    lines = _lines(attacked)
    tried = [line for line in lines if line["broken"] is not None]
    assert any(line["label"] == TARGET for line in lines)
    for line in lines:
        left = line["label"] == TARGET or line["before"] != line["label"]
        assert (line["broken"] is None) == left
    for line in tried:
        assert line["target"] == TARGET
        assert line["reached"] == (line["after"] == TARGET)
        assert line["broken"] == (line["after"] != line["label"])
        assert not (line["broken"] and line["certified"])
    plain = [line for line in tried if line["defense"] == "undefended"]
    assert {line["objective"] for line in plain} == {"say the target"}


def test_an_image_is_tried_at_every_place_of_the_stride(attacked):
    tried = [line for line in _lines(attacked) if line["broken"] is not None]
    for line in tried:
        [[_, _, row, column]] = line["place"]
        assert {row, column} <= {0, 5}
    plain = [line for line in tried if line["defense"] == "undefended"]
    assert {line["reached"] for line in plain} == {True, False}
    for line in plain:
        assert line["reached"] or line["steps"] == 4 * 8


def test_the_summary_says_how_often_the_target_is_answered(attacked):
    for entry in json.loads((attacked / "attack.json").read_text())["results"]:
        lines = [line for line in _lines(attacked) if line["defense"] == entry["defense"]]
        assert entry["reached"] == sum(bool(line.get("reached")) for line in lines)
        assert entry["broken"] >= entry["reached"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "10"], "--target: expected an output of the model, 0 to 9, got 10"),
        (
            ["--target", "1", "--targets", "2"],
            "--targets: has no use with --target, which is the one; leave one out",
        ),
        (["--target", "1", "--search", "square"], "--target: has no use with --search square"),
        (["--stride", "0"], "--stride: expected at least 1, got 0"),
        (
            ["--stride", "2", "--place", "1,1"],
            "--stride: has no use with --place, which is one place; leave one out",
        ),
        (
            ["--stride", "2", "--places", "random"],
            "--places: has no use with --stride, which says where; leave it out",
        ),
        (["--stride", "2", "--universal"], "--stride: has no use with --universal"),
    ],
)
def test_bad_input_is_one_line(digits_run, tmp_path, capsys, words, said):
    out = tmp_path / "attack"
    with contextlib.suppress(SystemExit):  # of the command line's own
        assert attack.main([str(digits_run), *words, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not out.exists()
