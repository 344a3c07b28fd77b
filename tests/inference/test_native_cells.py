"""Which cells a patch reaches that is in an image's own pixels, before it is resized for the model.

Against the weights of the resize itself, and against the cells that a patch really changes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks, models, weights
from certmask_jax.attacks.patched_pixels import (
    cells_of_parts,
    cells_reached,
    check_places,
    corners_of,
)
from certmask_jax.certification.evidence_run import evaluate_evidence
from certmask_jax.data import from_arrays
from certmask_jax.defenses import patchguard
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_sources import LocalSource
from certmask_jax.inference.stem_and_head import parts_forward
from certmask_jax.inference.two_parts import of_local_logits
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.pixels_of_cells import cell_pixels
from certmask_jax.masks.threats import Threat
from certmask_jax.models.parts_choice import in_two_parts
from certmask_jax.programs import attack, certify, leaderboard, report
from certmask_jax.programs.run_defenses import build_defenses
from certmask_jax.tables import evidence_store
from tests.support.small_models import drawn_params

SIZES = [(8, 16), (8, 13), (16, 9), (5, 8), (30, 12), (9, 9), (7, 22), (600, 333), (333, 600)]


def _resized(size, seen):
    """The weight of each pixel in each that is made of them: ``float32[seen, size]``."""
    return np.asarray(jax.image.resize(jnp.eye(size, dtype=jnp.float32), (seen, size), "bicubic"))


@pytest.mark.parametrize(("size", "seen"), SIZES)
@pytest.mark.parametrize(("field", "stride"), [(1, 1), (3, 2), (4, 4)])
def test_a_cell_sees_all_pixels_that_have_a_weight_in_it_and_few_others(size, seen, field, stride):
    has_weight = _resized(size, seen) != 0
    starts, ends = cell_pixels(size, field=field, stride=stride, seen_size=seen)
    assert len(starts) == (seen - field) // stride + 1
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(ends) >= 0).all()
    for cell, (start, end) in enumerate(zip(starts, ends, strict=True)):
        made_of = np.flatnonzero(has_weight[cell * stride : cell * stride + field].any(axis=0))
        assert start <= made_of[0]
        assert made_of[-1] < end
        assert made_of[0] - start <= 1
        assert end - 1 - made_of[-1] <= 1


def test_without_a_resize_it_is_the_field():
    starts, ends = cell_pixels(9, field=3, stride=2)
    assert starts.tolist() == [0, 2, 4, 6]
    assert ends.tolist() == [3, 5, 7, 9]
    with pytest.raises(ValueError, match="field: expected at most 4 pixels, got 5"):
        cell_pixels(9, field=5, stride=1, seen_size=4)


def _local(params, images):
    """Cells of 3x3 pixels every 2, of which each pixel counts."""
    return jax.lax.conv_general_dilated(
        images, params, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )  # fmt: skip


LOCAL = LocalLogits(_local, 3, 2)
PARAMS = np.random.default_rng(0).normal(size=(3, 3, 1, 3)).astype(np.float32)
NATIVE, SEEN = (14, 12), (33, 25)
HOW = cm.Preprocessing(resize_to=SEEN)
FIELDS = {"field": 3, "stride": 2, "seen_size": SEEN}


def _evidence(images):
    source = LocalSource(LOCAL)
    return np.asarray(jax.jit(lambda x: source.evidence(PARAMS, x, HOW).parts)(images))


@pytest.mark.parametrize("shapes", [[(1, 1)], [(2, 1), (1, 3)]])
def test_a_patch_changes_no_cell_outside_what_it_reaches_and_most_inside(shapes):
    random = np.random.default_rng(1)
    threat = Threat.of(NATIVE, *shapes)
    defense = PatchGuard(threat, **FIELDS)
    clean = random.integers(0, 256, (1, *NATIVE, 1), np.uint8)
    places = attacks.places_on_grid(threat, stride=1)
    patched = np.repeat(clean, len(places) * 8, axis=0)
    for number, image in enumerate(patched):
        [[height, width, row, column]] = places[number // 8]
        image[row : row + height, column : column + width] = random.integers(0, 2) * 255
        if number % 8 > 1:
            noise = random.integers(0, 256, (height, width, 1), np.uint8)
            image[row : row + height, column : column + width] = noise
    moved = (_evidence(patched) != _evidence(clean)).any(axis=-1)
    moved = moved.reshape(len(places), 8, *defense.cells).any(axis=1)
    sets = defense.reached
    rows, columns = defense.window
    share = []
    for place, changed in zip(places, moved, strict=True):
        assert any((changed <= one).all() for one in sets)
        [[height, width, top, left]] = cells_reached(
            place, image_size=NATIVE, field=(3, 3), stride=(2, 2), seen_size=SEEN
        )
        reached = np.zeros(defense.cells, np.bool_)
        reached[top : top + height, left : left + width] = True
        assert not (changed & ~reached).any()
        assert any((reached <= one).all() for one in sets)
        assert height <= rows
        assert width <= columns
        share.append(changed.sum() / reached.sum())
    assert np.mean(share) > 0.8


@pytest.mark.parametrize(
    ("shapes", "patches", "region"),
    [([(1, 1)], 1, None), ([(2, 1), (1, 3)], 1, (2, 3, 9, 11)), ([(1, 2)], 2, None)],
)
def test_masks_of_a_map_hide_all_that_patches_of_larger_or_smaller_images_change(
    shapes, patches, region
):
    """Bit for bit, of a model in two parts: whoever hides the windows keeps label and margin."""
    random = np.random.default_rng(3)
    parts = of_local_logits(LOCAL, SEEN).for_images(NATIVE)
    assert parts.grid == PatchGuard(Threat.of(NATIVE, 1), **FIELDS).cells
    threat = Threat.of(NATIVE, *shapes, patches=patches, region=region)
    on_cells = parts.on_cells(threat)
    count = 40
    clean = random.integers(0, 256, (1, *NATIVE, 1), np.uint8)
    patched = clean.repeat(count, axis=0)
    masks = np.zeros((count, patches, 4), np.int32)
    for image, boxes in zip(patched, masks, strict=True):
        [place] = attacks.random_places(threat, 1, random)
        for height, width, row, column in place.tolist():
            noise = random.integers(0, 2, (height, width, 1)) * 255
            image[row : row + height, column : column + width] = noise
        boxes[:] = corners_of(cells_of_parts(place, parts))
        check_places([place], on_cells, parts)
    engine = parts_forward(
        parts, PARAMS, (*NATIVE, 1), MaskedImages(masks, parts.grid), preprocessing=HOW
    )
    assert engine.checked_cells(PARAMS)
    before, after = engine.table(clean), engine.table(patched)
    own = np.arange(count)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(other)[own, own], np.asarray(one)[0])
    assert (np.asarray(after.margins) != np.asarray(before.margins)).mean() > 0.3


def test_verdicts_are_those_of_the_sets_and_a_map_says_the_same_of_places():
    random = np.random.default_rng(2)
    threat = Threat.of(NATIVE, 1)
    cells = PatchGuard(threat, **FIELDS).cells
    labels = random.integers(0, 3, 40).astype(np.int32)
    evidence = random.integers(0, 3, (40, *cells, 3)) * random.uniform(0, 1, (40, 1, 1, 1))
    evidence[np.arange(40), ..., labels] = random.integers(0, 3, (40, *cells))
    evidence = evidence.astype(np.float32)
    for defense in (PatchGuard(threat, **FIELDS), ClippedBagNet(threat, **FIELDS, clip=4.0),
                    PatchGuardDetection(threat, **FIELDS, tau=0.4)):  # fmt: skip
        results = defense.results(jnp.asarray(evidence), jnp.asarray(labels))
        at = np.asarray(defense.at_places(jnp.asarray(evidence), jnp.asarray(labels)).holds)
        np.testing.assert_array_equal(at.all(axis=1), results.worst_case)
        assert 0 < np.asarray(results.worst_case).sum() < 40, defense.name
    plain = patchguard.robust_masking_worst_case(
        evidence, labels, window=defense.window, reached=defense.reached
    )
    exact = PatchGuard(threat, **FIELDS).results(jnp.asarray(evidence), jnp.asarray(labels))
    np.testing.assert_array_equal(plain, exact.worst_case)


def test_what_is_not_resized_is_the_defense_of_before():
    threat = Threat.of(SEEN, 2)
    same = PatchGuard(threat, field=3, stride=2, seen_size=SEEN)
    assert same == PatchGuard(threat, field=3, stride=2)
    assert same.facts == PatchGuard(threat, field=3, stride=2).facts
    assert "seen_size" in PatchGuard(Threat.of(NATIVE, 1), **FIELDS).facts


def test_a_run_refuses_defenses_on_another_resize(tmp_path):
    config = dataclasses.replace(models.create("vit_digits").data_config, input_size=NATIVE)
    images = np.zeros((2, *NATIVE, 1), np.uint8)
    test_set = from_arrays(images, [0, 1], data_config=config, num_outputs=3)
    for seen, how in ((SEEN, cm.Preprocessing()), (None, HOW), ((33, 26), HOW)):
        defense = PatchGuard(Threat.of(NATIVE, 1), field=3, stride=2, seen_size=seen)
        with pytest.raises(ValueError, match="patchguard: expected seen_size "):
            evaluate_evidence(
                test_set, LOCAL, PARAMS, [defense], tmp_path / "run", preprocessing=how
            )
    assert not (tmp_path / "run").exists()


@functools.cache
def _bagnet():
    """A net that sees 32x32 pixels, and its preprocessing of larger images."""
    model = models.create("cifar_bagnet5")
    params = drawn_params(model)
    config = model.data_config
    return model, params, cm.Preprocessing(config.mean, config.std, resize_to=(32, 32))


@functools.cache
def _photographs():
    """Six images of 48x48 pixels, their evidence, and the labels that PatchGuard answers."""
    model, params, how = _bagnet()
    noise = np.random.default_rng(7).integers(-128, 128, (6, 12, 12, 3))
    contrast = np.linspace(0.05, 1, 6)[:, None, None, None]
    images = (128 + noise * contrast).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    source = LocalSource(model.local)
    evidence = np.asarray(jax.jit(lambda x: source.evidence(params, x, how).parts)(images))
    results = _defense().results(jnp.asarray(evidence), jnp.zeros(6, jnp.int32))
    return images, evidence, np.asarray(results.answer, np.int32)


def _defense():
    local = _bagnet()[0].local
    return PatchGuard(Threat.of(48, 2), field=local.field, stride=local.stride, seen_size=(32, 32))


def photographs(**how):
    images, _, labels = _photographs()
    return from_arrays(images, labels, **how)


def _certified(folder, *options):
    """A run against 2x2 of the 48x48 pixels, of which the model sees 32x32."""
    weights.save(folder / "w.npz", _bagnet()[1])
    command = [
        "--dataset", f"{__name__}:photographs", "--model", "cifar_bagnet5",
        "--weights", folder / "w.npz", "--patch", "2", "--patch-lives", "native",
        "--out", folder / "run", *options,
    ]  # fmt: skip
    assert certify.main([str(option) for option in command]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    defenses = ["--defense", "patchguard", "--defense", "clipped_bagnet"]
    return _certified(tmp_path_factory.mktemp("native"), "--keep-evidence", *defenses)


def test_the_program_certifies_in_the_data_sets_own_pixels(run, capsys):
    results = json.loads((run / "results.json").read_text())
    assert "2x2 patches on 48x48" in results["defenses"][0]["mask_set"]
    assert results["provenance"]["local_logits"]["seen_size"] == [32, 32]
    kept = evidence_store.recorded(run / "evidence")["about"]["kept"]["sources"]
    assert [one["local_logits"]["seen_size"] for one in kept] == [[32, 32]]
    _, evidence, labels = _photographs()
    verdicts = _defense().results(jnp.asarray(evidence), jnp.asarray(labels))
    assert results["defenses"][0]["worst_case_accuracy"] == np.mean(verdicts.worst_case)
    assert results["defenses"][0]["clean_accuracy"] == 1
    assert 0 < np.mean(verdicts.worst_case) < 1
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [len(defense["maps"]) for defense in data["defenses"]] == [1, 1]
    again = ["--from-tables", str(run), "--defense", "patchguard:threshold=0.3"]
    assert certify.main(again) == 0
    assert "patchguard" in capsys.readouterr().out
    assert leaderboard.main([str(run), "--out", str(run.parent / "board")]) == 0
    board = json.loads((run.parent / "board" / "leaderboard.json").read_text())
    assert [len(task["entries"]) for task in board["tasks"]] == [2]
    assert not board["refused"]


def test_such_a_run_is_attacked_in_these_pixels(run):
    model, params, how = _bagnet()
    asked = attacks.attacked(
        _defense(), model.apply_fn, params, (48, 48, 3), local=model.local, preprocessing=how
    )
    place = np.asarray([[2, 2, 20, 40]])
    wanted = {"image_size": (48, 48), "field": (5, 5), "stride": (2, 2), "seen_size": (32, 32)}
    np.testing.assert_array_equal(asked.reached(place), cells_reached(place, **wanted))
    lines = _attacked(run, "--places", "gradient", "--only", "patchguard")
    assert len(lines) == 6
    for line in lines:
        if line["broken"] is not None:
            [[height, width, row, column]] = line["place"]
            assert (height, width) == (2, 2)
            assert max(row, column) < 47
            assert not (line["broken"] and line["certified"])


def _attacked(run, *words):
    """The lines of an attack on a run."""
    assert attack.main([str(run), "--steps", "4", "--locations", "1", *words]) == 0
    text = (run / "attack" / "attacks.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()[1:]]


def test_a_model_in_two_parts_is_certified_and_attacked_in_these_pixels_too(tmp_path, capsys):
    spec = "patchcure:masks_per_axis=3"
    run = _certified(tmp_path, "--two-parts", "cells", "--defense", spec)
    results = json.loads((run / "results.json").read_text())
    known = results["provenance"]
    assert known["two_parts"]["image_size"] == [48, 48]
    assert known["two_parts"]["seen_size"] == [32, 32]
    model, params, how = _bagnet()
    parts = in_two_parts(model).apply_fn.for_images(48)
    threat = parts.on_cells(Threat.of(48, 2))
    assert known["windows_of_cells"] == [str(threat)]
    images, _, labels = _photographs()
    [defense] = build_defenses([spec], [threat])
    table = cm.predict(parts, params, images, defense.masked_images, preprocessing=how)
    proved = np.mean(np.asarray(defense.worst_case(table, labels)))
    assert results["defenses"][0]["worst_case_accuracy"] == proved
    capsys.readouterr()
    assert certify.main(["--from-tables", str(run), "--defense", spec]) == 0
    assert f"{100 * proved:.1f}" in capsys.readouterr().out
    assert report.main([str(run)]) == 0
    assert leaderboard.main([str(run), "--out", str(tmp_path / "board")]) == 0
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert not board["refused"]
    lines = _attacked(run, "--places", "gradient", "--no-undefended")
    assert len(lines) == 6
    for line in lines:
        assert not (line["broken"] and line["certified"])
        if line["broken"] is not None:
            check_places([np.asarray(line["place"])], threat, parts)
