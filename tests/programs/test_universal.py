"""``certmask attack --universal``: one patch for many images, kept, continued, put on all."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import certmask_jax as cm
from certmask_jax import attacks, weights
from certmask_jax.data import digits_arrays
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import attack, certify
from certmask_jax.programs.attacking import universal_job, universal_table
from certmask_jax.programs.attacking.attack_folder import LINES
from certmask_jax.programs.attacking.universal_job import MANIFEST, PATCH, SO_FAR
from tests.support.small_models import linear_digits, write_linear_digits

pytestmark = pytest.mark.usefixtures("compiled_once")

DEFENSE, COUNT, STEPS = "double_masking:masks_per_axis=2", 12, 45
HOW = ["--universal", "--steps", str(STEPS), "--images-a-step", "8", "--momentum", "0.5"]
HOW += ["--brightness", "0.9,1.1", "--held-out", "0.25"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear")
    words = ["--dataset", "digits", *write_linear_digits(folder / "w.npz")]
    words += ["--num-images", str(COUNT), "--defense", DEFENSE, "--no-page"]
    assert certify.main([*words, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("universal") / "o"
    assert attack.main([str(run), *HOW, "--out", str(out)]) == 0
    return out


def _lines(folder):
    _, *lines = (json.loads(line) for line in (folder / LINES).read_text().splitlines())
    return lines


def test_it_is_the_patch_of_the_library_on_the_share_of_the_images(made, run):
    known = json.loads((made / MANIFEST).read_text())
    images, labels = digits_arrays("test")
    numbers = [int(name.split(":")[1]) for name in known["made_on"]]
    assert len(numbers) == 9
    assert set(numbers) < set(range(COUNT))
    model = linear_digits()
    config = model.data_config
    wanted = attacks.universal_patch(
        model.apply_fn, weights.load(run.parent / "w.npz", model), images[numbers], labels[numbers],
        threat=cm.Threat.of(8, 1), preprocessing=Preprocessing(config.mean, config.std),
        images_a_step=8,
        search=attacks.PatchSearch(steps=STEPS, momentum=0.5),
        transformations=attacks.Transformations(brightness=(0.9, 1.1)),
    )  # fmt: skip
    pixels = np.asarray(Image.open(made / PATCH))[..., None]
    assert (pixels == wanted.pixels).all()
    np.testing.assert_array_equal(np.float32(known["losses"]), wanted.losses)
    np.testing.assert_array_equal(np.float32(known["judged"]), wanted.judged)
    assert not (made / SO_FAR).exists()


def test_it_is_put_on_all_images_and_both_halves_are_counted_apart(made, run):
    images, _ = digits_arrays("test")
    known = json.loads((made / MANIFEST).read_text())
    pixels = np.asarray(Image.open(made / PATCH))
    lines = _lines(made)
    assert {(line["defense"], line["number"]) for line in lines} == {
        (spec, number) for spec in ("undefended", DEFENSE) for number in range(COUNT)
    }
    for line in lines:
        [[height, width, row, column]] = line["place"]
        wanted = images[line["number"], ..., 0].copy()
        wanted[row : row + height, column : column + width] = pixels
        assert (np.asarray(Image.open(made / line["file"])) == wanted).all()
        assert line["right"] == (line["after"] == line["label"])
        assert not (line["broken"] and line["certified"])
    results = json.loads((made / "attack.json").read_text())["results"]
    assert list(results) == ["held_out", "made_on"]
    for half, entries in results.items():
        ids = set(known["made_on"])
        for entry in entries:
            own = [
                line for line in lines
                if line["defense"] == entry["defense"]
                and (line["image"] in ids) == (half == "made_on")
            ]  # fmt: skip
            assert entry["images"] == len(own) == (9 if half == "made_on" else 3)
            assert entry["patches"]["universal"] == np.mean([line["right"] for line in own])
            if entry["worst_case"] is not None:
                assert entry["worst_case"] <= entry["patches"]["universal"]


def test_stopped_and_killed_it_ends_with_the_same_patch(made, run, tmp_path, capsys):
    out = tmp_path / "o"
    command = [str(run), *HOW, "--out", str(out)]
    assert attack.main([*command, "--max-minutes", "0.00001"]) == attack.STOPPED
    assert "stopped: the patch is not finished" in capsys.readouterr().out
    with np.load(out / SO_FAR) as there:
        assert len(there["losses"]) == 20
    assert not (out / MANIFEST).exists()
    assert attack.main(command) == 0
    assert (out / PATCH).read_bytes() == (made / PATCH).read_bytes()
    assert _lines(out) == _lines(made)
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(out / PATCH)
    assert attack.main(command) == 2
    assert "expected the patch that was made here" in capsys.readouterr().err


def test_half_of_a_file_is_no_search_that_goes_on(tmp_path):
    file = tmp_path / SO_FAR
    assert universal_job._so_far(file) is None
    levels = np.full((2, 3, 1), 7.4, np.float32)
    motion = np.arange(3), np.int32(1)
    losses = np.ones(4, np.float32)
    begun = attacks.UniversalPatch(np.uint8(levels) + 1, losses, levels, motion, losses[:1])
    universal_job._keep(file, begun)
    again = universal_job._so_far(file)
    assert all((a == b).all() for a, b in zip(again[:3], begun[:3], strict=True))
    assert (again.judged == begun.judged).all()
    assert all((a == b).all() for a, b in zip(again.motion, begun.motion, strict=True))
    for size in (200, 0):
        file.write_bytes(file.read_bytes()[:size])
        assert universal_job._so_far(file) is None


def test_of_no_image_there_are_no_shares():
    """A run may be stopped when the patch is made, and on no image yet."""
    assert universal_table.text_of({}, 80) == "no image was asked about with the patch yet"


def test_what_is_asked_for_is_what_the_library_is_asked_for(run, tmp_path, monkeypatch):
    asked = {}

    def universal_patch(*given, **how):
        asked.update(how)
        pixels = np.full((1, 1, 1), 7, np.uint8)
        nothing = np.zeros(45, np.float32)
        return attacks.UniversalPatch(pixels, nothing, pixels / np.float32(1), (), nothing)

    monkeypatch.setattr(universal_job, "universal_patch", universal_patch)
    out = tmp_path / "o"
    more = ["--under", DEFENSE, "--target", "3", "--place", "2,5", "--patch-scale", "0.5,1"]
    assert attack.main([str(run), *HOW, *more, "--attack-seed", "4", "--out", str(out)]) == 0
    assert asked["threat"] == cm.Threat.of(8, 1, region=(2, 5, 3, 6))
    assert (asked["target"], asked["seed"]) == (3, 4)
    assert asked["transformations"].scale == (0.5, 1.0)
    masks = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2)
    assert asked["masked_images"] == cm.defenses.DoubleMasking(masks).masked_images
    assert {tuple(line["place"][0]) for line in _lines(out)} == {(1, 1, 2, 5)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--universal"], "--universal: expected RUN_FOLDER"),
        (["{run}", "--held-out", "0.5"], "--held-out: has no use without --universal"),
        (["{run}", "--universal", "--locations", "2"], "--locations: has no use with --universal"),
        (["{run}", "--universal", "--search", "square"], "--search: has no use with --universal"),
        (["{run}", "--universal", "--target", "10"], "--target: expected an output of the model"),
        (["{run}", "--universal", "--under", "x"], "--under: expected a defense of the run that"),
        (["{run}", "--universal", "--only", "x"], "--only: expected what is attacked"),
        (["{run}", "--universal", "--place", "8,8"], "--place 8,8: expected a place inside what"),
        (["{run}", "--universal", "--patch-scale", "0.5,2"], "--patch-scale: expected numbers"),
        (["{run}", "--universal", "--brightness", "2,1"], "--brightness: expected LOW,HIGH"),
        (["{run}", "--universal", "--brightness", "0,1"], "--brightness: expected numbers above"),
        (["{run}", "--universal", "--held-out", "1"], "--held-out: expected at least 0 and less"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, words, said):
    out = tmp_path / "o"
    assert attack.main([*(word.format(run=run) for word in words), "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert not out.exists()


def test_halves_are_all_images_once_and_those_of_their_seed():
    for count, share in ((1, 0.9), (10, 0.5), (11, 0.3), (7, 0.0)):
        first, others = universal_job.halves(count, share, 0)
        assert sorted([*first, *others]) == list(range(count))
        assert len(first) == max(1, round((1 - share) * count))
    assert universal_job.halves(50, 0.5, 0) == universal_job.halves(50, 0.5, 0)
    assert universal_job.halves(50, 0.5, 0) != universal_job.halves(50, 0.5, 1)
