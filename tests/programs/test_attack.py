"""``certmask attack``: what it says of a run, going on after a kill, a lie that is found out."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from certmask_jax import weights
from certmask_jax.attacks import promising_goals
from certmask_jax.attacks.attacked_evidence import OnLocalLogits
from certmask_jax.data import digits_arrays
from certmask_jax.defenses import ClippedBagNet
from certmask_jax.programs import attack, audit, certify
from certmask_jax.programs.attacking import asked_rule, attack_audit, attack_job, attack_summary
from certmask_jax.programs.attacking.attack_folder import LINES, AttackFolder
from tests.support.small_models import (
    first_params,
    linear_digits,
    small_bagnet,
    small_vit,
    write_linear_digits,
)

pytestmark = pytest.mark.usefixtures("compiled_once")

# Trying places first takes three times as long on so few images.
FAST = ["--steps", "8", "--at-once", "4", "--locations", "1", "--places", "gradient"]
DEFENSE = "double_masking:masks_per_axis=2"
IMAGES = 6  # more than searches run at once


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """Words for a model whose gradients cost nothing."""
    words = write_linear_digits(tmp_path_factory.mktemp("linear") / "w.npz")
    return ["--dataset", "digits", *words]


@pytest.fixture(scope="module")
def run(linear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "r"
    words = [*linear, "--num-images", str(IMAGES), "--defense", DEFENSE]
    assert certify.main([*words, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def chosen_for():
    """For how many images goals were chosen together, in ``attacked``."""
    return []


@pytest.fixture(scope="module")
def attacked(run, chosen_for):
    def counted(asked, images, *more, **how):
        chosen_for.append(len(images))
        return promising_goals(asked, images, *more, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attack_job, "promising_goals", counted)
        assert attack.main([str(run), *FAST]) == 0
    return run / "attack"


def _lines(folder):
    _, *lines = (json.loads(line) for line in (folder / LINES).read_text().splitlines())
    return lines


def test_a_line_says_what_was_aimed_at(attacked):
    tried = [line for line in _lines(attacked) if line["broken"] is not None]
    plain = [line["objective"] for line in tried if line["defense"] == "undefended"]
    defended = [line["objective"] for line in tried if line["defense"] == DEFENSE]
    assert set(plain) == {"leave the true label"}
    assert defended
    assert all(re.fullmatch(r"[1-9]\d* masked images say the target", one) for one in defended)


def test_a_line_and_a_picture_for_every_image(attacked):
    images, labels = digits_arrays("test")
    lines = _lines(attacked)
    # One defense after the other; of each, images stand in the order in which they were settled.
    assert [line["defense"] for line in lines] == ["undefended"] * IMAGES + [DEFENSE] * IMAGES
    assert [
        sorted(line["number"] for line in part) for part in (lines[:IMAGES], lines[IMAGES:])
    ] == [list(range(IMAGES))] * 2
    for line in lines:
        assert line["label"] == labels[line["number"]]
        assert (line["broken"] is None) == (line["before"] != line["label"])
        if line["broken"] is None:
            continue
        assert line["broken"] == (line["after"] != line["label"])
        patched = np.asarray(Image.open(attacked / line["file"]))
        clean = images[line["number"]][..., 0]
        [[height, width, row, column]] = line["place"]
        changed = np.argwhere(patched != clean)
        assert ((changed >= [row, column]) & (changed < [row + height, column + width])).all()
        assert not (line["broken"] and line["certified"])


def test_no_image_waits_for_the_goals_of_more_than_are_searched_at_once(attacked, chosen_for):
    lines = _lines(attacked)
    wanted = []
    for spec in ("undefended", DEFENSE):
        tried = sum(line["broken"] is not None for line in lines if line["defense"] == spec)
        assert 4 < tried < 8
        wanted += [4, tried - 4]
    assert chosen_for == wanted


def test_the_summary_stands_between_the_worst_case_and_the_clean_accuracy(attacked, run):
    said = json.loads((attacked / "attack.json").read_text())
    results = json.loads((run / "results.json").read_text())
    plain, defended = said["results"]
    assert (plain["defense"], plain["worst_case"]) == ("undefended", None)
    assert plain["clean"] == results["undefended_accuracy"]
    assert defended["worst_case"] == results["defenses"][0]["worst_case_accuracy"]
    assert defended["worst_case"] <= defended["under_attack"] <= defended["clean"]
    assert defended["clean"] == results["defenses"][0]["clean_accuracy"]
    assert not defended["contradictions"]
    assert said["provenance"]["weights_sha256"] == results["provenance"]["weights_sha256"]


def test_it_goes_on_where_it_was_killed(attacked, run, tmp_path, capsys):
    """After any whole line, and after half of one, whose picture may be there already."""
    for kept in (1, 4, 9):
        part = tmp_path / str(kept)
        shutil.copytree(attacked, part)
        whole = (attacked / LINES).read_bytes().splitlines(keepends=True)
        (part / LINES).write_bytes(b"".join(whole[:kept]) + whole[kept][:20])
        assert attack.main([str(run), *FAST, "--out", str(part)]) == 0
        by_key = {(line["defense"], line["number"]): line for line in _lines(part)}
        assert by_key == {(line["defense"], line["number"]): line for line in _lines(attacked)}
        for line in _lines(part):
            if "file" in line:
                assert (part / line["file"]).read_bytes() == (attacked / line["file"]).read_bytes()
    assert attack.main([str(run), *FAST, "--steps", "21", "--out", str(part)]) == 2
    assert "too large a share" not in " ".join(capsys.readouterr().out.split())
    assert attack.main([str(run), "--steps", "21", *FAST[2:], "--out", str(part)]) == 2
    assert "expected this same attack, but attack.search.steps" in capsys.readouterr().err


ASKING = ["--search", "square", "--queries", "10", "--at-once", "2", "--locations", "1"]


@pytest.fixture(scope="module")
def attacked_by_asking(run):
    out = run / "asked"
    assert attack.main([str(run), *ASKING, "--only", DEFENSE, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("how", "whole"),
    [(FAST, "attacked"), ([*ASKING, "--only", DEFENSE], "attacked_by_asking")],
    ids=["gradient", "square"],
)
def test_what_is_settled_is_kept_while_the_others_are_searched(
    how, whole, run, tmp_path, monkeypatch, request
):
    """Killed between two images of one block: the first is there, and the end is the same."""
    real, searched = AttackFolder.add, []

    def killed(folder, lines, images):
        if any(image is not None for image in images):
            searched.append(len(lines))
            if len(searched) == 2:
                raise KeyboardInterrupt
        real(folder, lines, images)

    out = tmp_path / "o"
    command = [str(run), *how, "--out", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr(AttackFolder, "add", killed)
        assert attack.main(command) == 130
    begun = _lines(out)
    assert 0 < len([line for line in begun if "file" in line]) == searched[0]
    assert len({line["defense"] for line in begun}) == 1
    assert attack.main(command) == 0
    there = request.getfixturevalue(whole)
    by_key = {(line["defense"], line["number"]): line for line in _lines(there)}
    assert {(line["defense"], line["number"]): line for line in _lines(out)} == by_key
    for line in _lines(out):
        if "file" in line:
            assert (out / line["file"]).read_bytes() == (there / line["file"]).read_bytes()


def test_an_attack_that_is_stopped_says_which_images_are_counted_first(run, tmp_path, capsys):
    out = tmp_path / "o"
    command = [str(run), *FAST, "--out", str(out)]
    assert attack.main([*command, "--max-minutes", "0.00001"]) == attack.STOPPED
    printed = capsys.readouterr()
    said = " ".join(printed.out.split())
    assert "too large a share is broken" not in said  # of none that was attacked
    assert "give the same command again" in said
    assert "give more --max-minutes" in printed.err


def test_a_stopped_attack_says_that_too_many_are_broken(attacked):
    results = json.loads((attacked / "attack.json").read_text())["results"]
    whole, stopped = (attack_summary.text_of(results, 500, finished=f) for f in (True, False))
    assert "too large a share is broken" in stopped
    assert "too large a share is broken" not in whole


def test_an_attack_is_late_while_images_are_looked_at_and_goals_are_chosen(
    attacked, run, tmp_path, monkeypatch, capsys
):
    """At any moment before the first step nothing is written of images that are attacked."""
    command = [
        str(run),
        *FAST,
        "--only",
        DEFENSE,
        "--out",
        str(tmp_path / "o"),
        "--max-minutes",
        "9",
    ]
    real = promising_goals

    now = [0.0]

    def late(asked, images, *more, stop, **how):
        now[0] = 1e9
        assert stop()
        return real(asked, images, *more, stop=stop, **how)

    with monkeypatch.context() as patched:
        patched.setattr(attack_job, "promising_goals", late)
        patched.setattr(attack.time, "monotonic", lambda: now[0])
        assert attack.main(command) == attack.STOPPED
    assert "give more --max-minutes" in capsys.readouterr().err
    assert not [line for line in _lines(tmp_path / "o") if line["broken"] is not None]
    assert attack.main(command) == 0
    mine = {line["number"]: line for line in _lines(tmp_path / "o")}
    assert mine == {line["number"]: line for line in _lines(attacked) if line["defense"] == DEFENSE}


def test_a_certificate_that_is_contradicted_is_found_out(linear, tmp_path, capsys):
    out = tmp_path / "out"
    lie = "lying_defense:Liar:masks_per_axis=2"
    command = [*linear, "--num-images", "9", "--defense", lie, "--no-undefended", "--out", str(out)]
    options = ["--steps", "40", *FAST[2:4], "--locations", "3", "--places", "gradient"]
    status = attack.main([*command, *options, "--images", "certified"])
    said = capsys.readouterr()
    broken = [line for line in _lines(out) if line["broken"]]
    assert broken  # else nothing would be shown here
    assert status == attack.CONTRADICTED
    assert f"{broken[0]['image']} is certified, and answered" in said.err
    assert "a proof of this program is wrong" in said.err


def test_a_defense_whose_paper_has_no_condition_of_its_own_publishes_nothing(tmp_path):
    command = ["--num-images", "6", "--defense", "pair_cover:partition=2/2", "--no-undefended"]
    assert attack.main([*command, "--images", "published", "--out", str(tmp_path / "o")]) == 0
    lines = _lines(tmp_path / "o")
    assert len(lines) == 6
    assert all(line["broken"] is None for line in lines)


def test_an_answer_that_rounding_decides_is_no_proof_that_failed():
    line = {"defense": "d", "image": "i", "after": 3, "file": "f", "label": 1}
    said = attack_audit.Contradiction(line, 1, False).said(Path("an audit"))
    assert "--margin-guard" in said
    assert "with the patch in 'an audit/f'," in said
    said = attack_audit.Contradiction(line, 3, True).said(Path("audit"))
    assert "a proof of this program is wrong" in said


def test_on_evidence_it_is_asked_about_again_in_batches_of_another_size(monkeypatch):
    """Where there is one device already, nothing else would be another program."""
    sizes = []

    def results(asked, images, labels, *, at_once=None):
        sizes.append(at_once)
        return SimpleNamespace(answers=np.full((1, 1), 3), verdicts=np.ones((1, 2), np.bool_))

    monkeypatch.setattr(OnLocalLogits, "results", results)
    asked = object.__new__(OnLocalLogits)
    monkeypatch.setattr(attack_audit, "asked_of", lambda *given, one_device: asked)
    images = np.zeros((1, 8, 8, 1), np.uint8)
    part = SimpleNamespace(ids=("i",), images=images, labels=np.ones(1))
    monkeypatch.setattr(
        attack_audit, "readable", lambda *given: SimpleNamespace(read=lambda *_: part)
    )
    line = {"defense": "d", "image": "i", "number": 0}
    job, defense = SimpleNamespace(dataset=None, unreadable=None), object.__new__(ClippedBagNet)
    assert attack_audit._answer_again(job, defense, images[0]) == 3
    assert attack_audit._before_again(job, defense, line).certified.all()
    assert sizes == [attack_audit._OTHER_CHUNK] * 2


@pytest.fixture(scope="module")
def bagnet(tmp_path_factory):
    """A small BagNet on random features, whose head is right about most of 40 digits."""
    model, random = small_bagnet(), np.random.default_rng(0)
    images, labels = (array[:40] for array in digits_arrays("test"))
    config = model.data_config
    seen = jnp.asarray((images / 255 - config.mean) / config.std, jnp.float32)
    params = jax.tree.map(
        lambda leaf: abs(random.normal(0, 0.5, leaf.shape)).astype(np.float32),
        model.param_shapes(),
    )
    head = params["params"]["fc"]
    head["bias"] = np.zeros(10, np.float32)
    program, kernels, features = jax.jit(model.apply_fn), [], []
    for _ in range(3):  # of which each gives ten features
        head["kernel"] = random.normal(0, 1, head["kernel"].shape).astype(np.float32)
        outputs = np.asarray(program(params, seen), np.float64)
        kernels.append(head["kernel"] / outputs.std())
        features.append(outputs / outputs.std())
    known = np.concatenate([*features, np.ones((40, 1))], axis=1)
    solved = np.linalg.lstsq(known, 8.0 * np.eye(10)[labels], rcond=1e-6)[0]
    head["kernel"] = (np.concatenate(kernels, axis=1) @ solved[:-1]).astype(np.float32)
    head["bias"] = solved[-1].astype(np.float32)
    file = tmp_path_factory.mktemp("bagnet") / "w.npz"
    weights.save(file, params)
    return ["--model", "tests.support.small_models:small_bagnet", "--weights", str(file)]


def test_defenses_on_evidence_are_attacked(bagnet, tmp_path):
    specs = ["clipped_bagnet:clip=3", "smoothed_vit:band=2"]
    named = [word for spec in specs for word in ("--defense", spec)]
    options = ["--num-images", "16", "--patch", "1", "--no-undefended", "--out"]
    command = ["--dataset", "digits", *bagnet, *named, *options, str(tmp_path / "o")]
    assert attack.main([*command, "--steps", "10", *FAST[2:]]) == 0
    lines = _lines(tmp_path / "o")
    assert [line["defense"] for line in lines] == [spec for spec in specs for _ in range(16)]
    said = json.loads((tmp_path / "o" / "attack.json").read_text())["results"]
    for entry in said:
        assert entry["worst_case"] <= entry["under_attack"] <= entry["clean"]
    assert [list(line["conditions"]) for line in lines[::16]] == [
        ["runner_up"], ["published_gap"],
    ]  # fmt: skip
    tried = {line["defense"] for line in lines if line["broken"] is not None}
    assert "clipped_bagnet:clip=3" in tried
    assert any(line["broken"] for line in lines)


@pytest.fixture(scope="module")
def on_evidence(bagnet, tmp_path_factory):
    specs = ["patchguard", "smoothed_vit:band=2"]
    named = [word for spec in specs for word in ("--defense", spec)]
    out = tmp_path_factory.mktemp("evidence") / "o"
    options = ["--num-images", "16", "--patch", "1", "--no-undefended", "--locations", "3"]
    how = ["--search", "square", "--queries", "30", "--out", str(out)]
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        real = asked_rule.NearestLabels
        patch.setattr(asked_rule, "NearestLabels", lambda one: asked.append(one) or real(one))
        assert attack.main(["--dataset", "digits", *bagnet, *named, *options, *how]) == 0
    assert [one.defense.spec for one in asked] == ["patchguard"]  # bands have masked images
    return out, specs


def test_defenses_on_evidence_are_attacked_without_gradients(on_evidence):
    out, specs = on_evidence
    images, _ = digits_arrays("test")
    lines = _lines(out)
    assert [line["defense"] for line in lines] == [spec for spec in specs for _ in range(16)]
    tried = [line for line in lines if line["broken"] is not None]
    assert {line["defense"] for line in tried} == set(specs)
    assert any(line["broken"] for line in tried)
    for line in tried:
        assert not (line["broken"] and line["certified"])
        assert line["broken"] == (line["after"] != line["label"])
        [[*_, row, column]] = line["place"]
        patched = np.asarray(Image.open(out / line["file"]))
        changed = np.argwhere(patched != images[line["number"]][..., 0])
        assert (changed == [row, column]).all()
        assert line["broken"] or line["steps"] == 90  # 30 at each of 3 places
    said = json.loads((out / "attack.json").read_text())["results"]
    for entry in said:
        assert entry["worst_case"] <= entry["under_attack"] <= entry["clean"]


@pytest.mark.parametrize(
    "how",
    [
        ["--no-undefended", "--steps", "10", *FAST[2:]],
        ["--undefended", "--search", "square", "--queries", "20", *FAST[4:6]],
    ],
    ids=["gradient", "square"],
)
def test_a_model_in_two_parts_is_attacked_in_pixels(bagnet, tmp_path, how):
    options = ["--two-parts", "cells", "--defense", "patchcure", "--num-images", "16"]
    command = ["--dataset", "digits", *bagnet, *options, "--patch", "1"]
    out = tmp_path / "o"
    assert attack.main([*command, *how, "--out", str(out)]) == 0
    images, _ = digits_arrays("test")
    tried = [line for line in _lines(out) if line["broken"] is not None]
    assert tried
    for line in tried:
        patched = np.asarray(Image.open(out / line["file"]))
        changed = np.argwhere(patched != images[line["number"]][..., 0])
        [[height, width, row, column]] = line["place"]
        assert (height, width) == (1, 1)
        assert (changed == [row, column]).all()
        assert not (line["broken"] and line["certified"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: expected the folder of a run of certify"),
        (["{run}", "--patch", "2"], "--patch: expected nothing that makes another run"),
        (["--chunk", "3"], "--chunk: has no use in an attack"),
        (["{run}", "--step-size", "2"], "--step-size: expected at most 1, got 2"),
        (["{run}", "--optimizer", "adam", "--momentum", "0.5"], "--momentum: has no use"),
        (["{run}", "--weights", "{run}/gone.npz"], "--data-dir and --weights say where data and"),
        (["{run}/results.json"], "folder of a run of certify, with results.json, got a file"),
        (["{run}", "--place", "8,0"], "--place 8,0: expected a place inside what the threat"),
        (
            ["--num-images", "2", "--defense", DEFENSE, "--patch", "1,2"],
            "expected defenses against one threat, got 2 (1x1 patches on 8x8, 2x2 patches on 8x8); "
            "certify with --patch and one of them, and attack that run",
        ),
        (["{run}", "--out", "{run}"], "expected a new or empty folder, or this same attack"),
        (["{run}", "--out", "{run}/results.json"], "results.json: expected a folder, got a file"),
    ],
)
def test_bad_input_is_one_line(run, capsys, words, said):
    assert attack.main([word.format(run=run) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


@pytest.fixture(scope="module")
def vit_weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("vit") / "w.npz"
    weights.save(file, first_params(small_vit()))
    return ["--weights", str(file), "--num-images", "2", "--patch", "4"]


@pytest.mark.parametrize(
    ("model", "got"),
    [
        ("rounded_vit", "a slope of 0 at every pixel of each image that was looked at (2)"),
        ("looping_vit", "none, as JAX cannot differentiate it"),
    ],
)
def test_a_model_without_a_gradient_is_refused_before_anything_is_written(
    vit_weights, tmp_path, capsys, model, got
):
    named = ["--model", f"tests.support.small_models:{model}", *vit_weights]
    common = ["--dataset", "digits", *named, "--defense", DEFENSE]
    out = tmp_path / "o"
    assert attack.main([*common, "--steps", "15", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {named[1]}: expected a model with a gradient")
    assert got in error
    assert error.endswith("a search without gradients does without: --search square")
    assert not out.exists()


def test_a_run_of_such_a_model_has_no_universal_patch_and_no_audit(vit_weights, tmp_path, capsys):
    named = ["--model", "tests.support.small_models:rounded_vit", *vit_weights]
    run = tmp_path / "r"
    common = ["--dataset", "digits", *named, "--defense", DEFENSE]
    assert certify.main([*common, "--no-page", "--out", str(run)]) == 0
    before = {path.name for path in run.iterdir()}
    for program, words in ((attack, ["--universal"]), (audit, ["--minutes", "1"])):
        capsys.readouterr()
        assert program.main([str(run), *words, "--steps", "5"]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: {named[1]}: expected a model with a gradient")
    assert {path.name for path in run.iterdir()} == before


def test_names_that_are_one_name_of_a_folder_have_pictures_of_their_own(tmp_path):
    levels = {"a b": 0, "a_b": 1, "A?b": 2}
    for name, level in levels.items():  # of which each goes on where the one before was killed
        line = {"defense": "d", "patch": name, "number": 0, "image": "i", "label": 0, "class": "c"}
        with AttackFolder(tmp_path / "o", {}) as folder:
            folder.add([line], [np.full((2, 2, 1), level, np.uint8)])
    folder = AttackFolder(tmp_path / "o", {})
    folder.add([{**line, "patch": "a b", "number": 1}], [np.zeros((2, 2, 1), np.uint8)])
    assert len({line["file"].casefold() for line in folder.lines}) == 4
    assert folder.lines[3]["file"] == "images/a_b/c/000001.png"
    for line in folder.lines:
        pixels = np.asarray(Image.open(tmp_path / "o" / line["file"]))
        assert (pixels == levels[line["patch"]]).all()


@pytest.mark.parametrize(("file", "at"), [("images/d/c/000001.png", 0), (LINES, 2)])
def test_a_full_disk_is_said_with_the_file_and_costs_no_line(tmp_path, monkeypatch, file, at):
    """A picture is on the disk, whole, before its line is; after it the folder goes on."""
    line = {"defense": "d", "image": "i", "label": 0, "class": "c", "broken": True}
    folder, pixels = AttackFolder(tmp_path, {}), [np.full((2, 2, 3), 7, np.uint8)]
    folder.add([{**line, "number": 0}], pixels)
    done, fsync = [], os.fsync

    def full(handle):
        if len(done) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(handle)
        fsync(handle)

    with folder, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space") as told:
            folder.add([{**line, "number": 1}], pixels)
    assert told.value.filename == str(tmp_path / file)
    assert (tmp_path / "images/d/c/000001.png").exists() == (at > 0)
    folder = AttackFolder(tmp_path, {})
    folder.add([{**line, "number": 1}], pixels)
    assert folder.done() == {("d", 0), ("d", 1)}
    assert (np.asarray(Image.open(tmp_path / "images/d/c/000001.png")) == 7).all()


@pytest.mark.parametrize(
    ("program", "words", "name"),
    [
        (attack, ["--steps", "1"], "attack"),
        (attack, ["--steps", "1", "--universal"], "universal"),
        (audit, ["--minutes", "1"], "audit"),
    ],
)
def test_two_processes_do_not_attack_in_one_folder(run, tmp_path, capsys, program, words, name):
    out = tmp_path / name
    with AttackFolder(out, {"of": "another process"}):
        before = (out / LINES).read_bytes()
        capsys.readouterr()
        assert program.main([str(run), *words, "--out", str(out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"error: {out}: another process is writing this attack; wait for it, or choose another "
        "--out"
    )
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {LINES: before}


def test_a_folder_whose_attack_was_killed_as_it_began_is_free(tmp_path):
    (tmp_path / f"{LINES}.unfinished").write_text('{"form')
    with AttackFolder(tmp_path, {"of": "this"}) as folder:
        assert folder.lines == []
    with pytest.raises(FileExistsError, match="expected this same attack"):
        AttackFolder(tmp_path, {"of": "another"})
    AttackFolder(tmp_path, {"of": "this"})  # what was refused lets go of it


def test_other_weights_are_not_those_of_the_run(run, tmp_path, capsys):
    write_linear_digits(tmp_path / "w.npz")
    params = weights.load(tmp_path / "w.npz", linear_digits())
    params["params"]["fc"]["bias"] = params["params"]["fc"]["bias"] + 1
    weights.save(tmp_path / "other.npz", params)
    assert attack.main([str(run), "--weights", str(tmp_path / "other.npz")]) == 2
    assert "expected the model and weights of that run, but weights_sha256" in (
        capsys.readouterr().err
    )
