"""The run that is attacked: what it said, and that other data or another model are found out."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from certmask_jax.data import digits_arrays
from certmask_jax.data.listing import Listing
from certmask_jax.defenses import ALERT
from certmask_jax.programs import certification_job, runtime
from certmask_jax.programs.attacking.attack_options import UNDEFENDED
from certmask_jax.programs.attacking.attacked_run import AttackedRun, read_run
from certmask_jax.programs.attacking.run_claims import Claim, Claims
from certmask_jax.programs.job_inputs import BrokenImagesError
from certmask_jax.tables import saved_table

DEFENSE = "double_masking:masks_per_axis=2"


class Pixels:
    """A test set without a listing: some digits."""

    def __init__(self, start=0):
        self._images = digits_arrays("test")[0][start:]

    def read(self, start, stop):
        return SimpleNamespace(images=self._images[start:stop])


def _job(run, dataset, **other):
    return SimpleNamespace(provenance={**run.provenance, **other}, dataset=dataset)


def _listed(ids):
    count = len(ids)
    return SimpleNamespace(listing=Listing(tuple(ids), np.zeros(count), np.zeros(count)))


def test_claims_are_those_of_the_table(digits_run):
    run = read_run(digits_run)
    claims = run.claims()
    saved = saved_table.load(digits_run / "tables")
    assert claims.ids == saved.ids
    assert claims.labels == tuple(saved.labels)
    result = run.results["defenses"][0]
    own = claims.of[DEFENSE]
    assert np.mean([claim.is_right for claim in own]) == pytest.approx(result["clean_accuracy"])
    assert np.mean([claim.is_certified for claim in own]) == pytest.approx(
        result["worst_case_accuracy"]
    )
    # Double masking's own condition is the worst case itself, so its paper alone certifies none.
    assert [claim.conditions for claim in own] == [
        ("two_mask_correct",) if claim.is_certified else () for claim in own
    ]
    assert not any(claim.is_of_paper_alone() for claim in own)
    margins = np.asarray(saved.table.margins[:]).min(axis=1)
    assert np.allclose([claim.margin for claim in own], margins, rtol=1e-3)
    plain = [claim.is_right for claim in claims.of[UNDEFENDED]]
    assert np.mean(plain) == pytest.approx(run.results["undefended_accuracy"])


@pytest.mark.parametrize(
    ("line", "agrees", "agrees_guarded"),
    [
        ({}, True, True),
        ({"before": 4}, False, False),  # another wrong label is another answer too
        ({"before": ALERT}, False, False),
        ({"certified": False}, False, False),
        ({"conditions": {"c": False}}, False, False),
        ({"image": "b", "number": 1, "before": ALERT}, False, True),  # a guard takes certificates
        ({"image": "b", "number": 0, "before": ALERT, "certified": False}, True, True),  # fewer
        ({"image": "new", "before": 4}, True, True),  # of which nothing was said
        ({"defense": "other", "before": 4}, True, True),
    ],
)
def test_what_is_said_now_is_held_against_what_was_said(line, agrees, agrees_guarded):
    said = (
        Claim(0, False, True, 5e-4, ("c",), answer=3),
        Claim(1, False, False, 2.0, ("c",), answer=ALERT),
    )
    claims = Claims(("a", "b"), (7, 7), {"d": said})
    whole = {"defense": "d", "number": 0, "image": "a", "label": 7, "broken": None,
             "before": 3, "certified": True, "conditions": {"c": True}} | line  # fmt: skip
    assert claims.agree(whole) == agrees
    assert claims._replace(is_guarded=True).agree(whole) == agrees_guarded
    assert claims.is_tie(whole) == (whole["image"] == "a" and whole["defense"] == "d")


def test_images_of_which_nothing_was_said_are_named():
    claims = Claims(("a", "b"), (7, 7), {})
    claims.check_known(["b", "a"])
    with pytest.raises(ValueError, match="expected the images of the run, got c, of which"):
        claims.check_known(["a", "c"])


def test_a_guard_and_a_lower_precision_are_those_of_the_run(digits_run):
    run = read_run(digits_run)
    assert (run.claims().tie, run.claims().is_guarded) == (1e-3, False)
    known = {**run.provenance, "precision": "bfloat16"}
    other = {**run.results, "provenance": known, "margin_guard": 0.01}
    claims = AttackedRun(digits_run, other).claims()
    assert (claims.tie, claims.is_guarded) == (0.1, True)


def test_its_config_is_opened_again_with_what_has_moved(digits_run, tmp_path):
    devices = runtime.Runtime(None, None, None)
    run = read_run(digits_run)
    config = run.config({}, {}, devices)
    assert config.defenses == (DEFENSE,)
    assert config.data.num_images == 12
    assert config.out is None
    typed = {"num_images": "--num-images 3"}
    assert run.config({"num_images": 3}, typed, devices).data.num_images == 3
    assert run.config({"num_images": 12}, typed, devices).data.num_images == 12
    with pytest.raises(
        ValueError, match=r"^--num-images: expected at most the 12 images of .* 13$"
    ):
        run.config({"num_images": 13}, {"num_images": "--num-images"}, devices)


def test_what_was_proved_later_from_its_tables_is_what_is_attacked(digits_run):
    """Not the defenses of the command that made the tables, of which the run says nothing."""
    run = read_run(digits_run)
    later = "minority_reports:masks_per_axis=2"
    result = {**run.results["defenses"][0], "spec": later, "name": "minority_reports"}
    of_tables = AttackedRun(digits_run, {**run.results, "defenses": [result]})
    config = of_tables.config({}, {}, runtime.Runtime(None, None, None))
    assert config.defenses == (later,)
    opened = certification_job.opened(config, "certify", evidence=True)
    of_tables.check_threats(opened)
    other = {**result, "threat": {**result["threat"], "patches": [[[1, 2]]]}}
    with pytest.raises(ValueError, match="but minority_reports:masks_per_axis=2 is against other"):
        AttackedRun(digits_run, {**run.results, "defenses": [other]}).check_threats(opened)
    larger = {**result, "threat": {**result["threat"], "image_size": [20, 16]}}
    with pytest.raises(ValueError, match="but its images are of 20x16 pixels there, 8x8 here; --d"):
        AttackedRun(digits_run, {**run.results, "defenses": [larger]}).check_threats(opened)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"weights_sha256": "0"}, "expected the model and weights of that run, but weights_sha256"),
        ({"model": "vit_b16"}, "but model is 'vit_digits' there, 'vit_b16' here; --weights says"),
        ({"split": "train"}, "expected the data of that run, but split is 'test' there"),
        ({"subset": {"how": "at random"}}, "but subset.how is 'first' there"),
        ({"classes": {"cat": 0}}, "but classes is None there"),
    ],
)
def test_another_model_or_data_set_is_named(digits_run, other, said):
    run = read_run(digits_run)
    with pytest.raises(ValueError, match=said):
        run.check_same(_job(run, Pixels(), **other))


def test_other_pixels_and_missing_files_are_named(digits_run):
    run = read_run(digits_run)
    ids = run.claims().ids
    run.check_same(_job(run, Pixels()))
    run.check_same(_job(run, _listed(ids)))
    run.check_same(_job(run, _listed([*ids, "new"])))
    with pytest.raises(ValueError, match="its first image has other pixels there; --data-dir says"):
        run.check_same(_job(run, Pixels(1)))
    with pytest.raises(ValueError, match=f"1 of its 12 images is not there, such as {ids[0]}"):
        run.check_same(_job(run, _listed(ids[1:])))
    run.check_same(_job(run, Pixels(1), subset={"how": "at random"}), fewer=True)


def test_files_that_are_gone_are_said_with_the_options_that_help(digits_run):
    run = read_run(digits_run)
    said = r"w\.npz: gone; --data-dir and --weights say where data and weights of"
    with pytest.raises(ValueError, match=said), run.files_found():
        raise FileNotFoundError("w.npz: gone")


def test_broken_images_of_a_run_are_to_be_mended_and_not_left_out(digits_run):
    """An image that is skipped makes another run, which an attack does not take."""
    run = read_run(digits_run)
    said = r"1.png \(torn\); mend them: they are images of"
    with pytest.raises(ValueError, match=said) as told, run.files_found():
        raise BrokenImagesError("1.png (torn)")
    assert "skip" not in str(told.value)
    assert str(BrokenImagesError("1.png")).endswith("leave them out with --on-unreadable skip")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", "{", "results.json: cannot be read"),
        ("results.json", '{"provenance": {}}', "results.json: cannot be read"),
        ("per_image.csv", "id,label\n1,2\n", "per_image.csv: cannot be read"),
        ("per_image.csv", "", "per_image.csv: cannot be read"),
        ("per_image.csv", None, "with per_image.csv, got one without"),
        ("results.json", None, "with results.json, got one without"),
    ],
)
def test_what_cannot_be_read_is_named(digits_run, tmp_path, file, content, said):
    other = tmp_path / "run"
    shutil.copytree(digits_run, other, ignore=shutil.ignore_patterns("audit", "patches", "tables"))
    (other / file).unlink()
    if content is not None:
        (other / file).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_run(other).claims()


def test_a_command_that_is_none_of_certify_is_named(digits_run, tmp_path):
    results = json.loads((digits_run / "results.json").read_text())
    results["provenance"]["command"] = "certmask train --epochs 3"
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="expected a command of certify, got 'certmask train"):
        read_run(tmp_path).config({}, {}, runtime.Runtime(None, None, None))
