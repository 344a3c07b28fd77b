"""Patches that are given: their files, sizes and places, and what is answered to them."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from certmask_jax.data import digits_arrays
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import attack, certify
from certmask_jax.programs.attacking import given_patch_table, given_places
from certmask_jax.programs.attacking.attack_folder import LINES
from certmask_jax.programs.attacking.given_patches import GivenPatch, fitted, pasted, read
from certmask_jax.programs.attacking.run_claims import Claim, Claims

DEFENSE = "double_masking:masks_per_axis=2"
IMAGE = (12, 10)


def _patch(height, width, channels=3, name="p"):
    levels = np.random.default_rng([height, width]).integers(0, 256, (height, width, channels))
    return GivenPatch(name, levels.astype(np.uint8))


@pytest.mark.parametrize(
    "threat",
    [
        Threat.of(IMAGE, (5, 4)),
        Threat.of(IMAGE, (5, 4), (4, 6)),
        Threat.of(IMAGE, 4, region=(2, 3, 9, 10)),
        Threat.of(IMAGE, 3, region=[(0, 0, 3, 10), (0, 0, 12, 3)]),
        Threat.of(IMAGE, (5, 4), patches=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 1)])
def test_a_patch_lies_inside_one_that_the_threat_allows(threat, size):
    random = np.random.default_rng(0)
    allowed = _all_allowed(threat, size)
    seen = set()
    for _ in range(300):
        place = given_places.place_of(size, threat, random)
        assert place.shape == (len(threat), 4)
        for height, width, row, column in place.tolist():
            assert (height, width) == size
            assert (row, column) in allowed
            seen.add((row, column))
    assert len(seen) > 0.7 * len(allowed)  # and everywhere
    if len(threat) > 1:
        return
    for row in range(-1, IMAGE[0] + 1):
        for column in range(-1, IMAGE[1] + 1):
            if row < 0 or column < 0:
                continue
            if (row, column) in allowed:
                given_places.check_place(size, threat, (row, column))
            else:
                with pytest.raises(ValueError, match=f"--place {row},{column}: expected a place"):
                    given_places.check_place(size, threat, (row, column))


def _all_allowed(threat, size):
    """By trying every larger patch and every pixel of it."""
    inside = np.zeros(IMAGE, bool)
    for top, left, bottom, right in threat.region or [(0, 0, *IMAGE)]:
        inside[top:bottom, left:right] = True
    allowed = set()
    for height, width in threat.shapes:
        for row in range(IMAGE[0] - height + 1):
            for column in range(IMAGE[1] - width + 1):
                if inside[row : row + height, column : column + width].all():
                    allowed |= {
                        (row + r, column + c)
                        for r in range(height - size[0] + 1)
                        for c in range(width - size[1] + 1)
                    }
    return allowed


def test_sizes_are_kept_and_what_is_too_large_refused_unless_it_is_scaled():
    threat = Threat.of(IMAGE, (5, 4), (4, 6))
    small, wide, large = _patch(3, 2), _patch(4, 6), _patch(5, 5, name="banana")
    assert [one.size for one in fitted([small, wide], threat, 3, scale=False)] == [(3, 2), (4, 6)]
    with pytest.raises(ValueError, match="got banana of 5x5 pixels, of which no certificate says"):
        fitted([small, large], threat, 3, scale=False)
    scaled = fitted([small, large], threat, 3, scale=True)
    assert [one.size for one in scaled] == [(4, 6), (4, 6)]
    wanted = Image.fromarray(large.pixels).resize((6, 4), Image.Resampling.BICUBIC)
    assert (scaled[1].pixels == np.asarray(wanted)).all()
    [grey] = fitted([small], threat, 1, scale=False)
    assert (grey.pixels[..., 0] == np.asarray(Image.fromarray(small.pixels).convert("L"))).all()
    two = Threat(IMAGE, (((5, 5),), ((3, 4),)))
    assert fitted([large], two, 3, scale=True)[0].size == (3, 4)


def test_pasted_pixels_are_the_patch_and_no_others_change():
    image = np.zeros((*IMAGE, 3), np.uint8)
    patch = _patch(2, 3)
    made = pasted(image, patch, np.asarray([[2, 3, 1, 4], [2, 3, 8, 0]]))
    assert (made[1:3, 4:7] == patch.pixels).all()
    assert (made[8:10, :3] == patch.pixels).all()
    made[1:3, 4:7] = made[8:10, :3] = 0
    assert not made.any()
    assert not image.any()


def test_files_of_patches(tmp_path):
    one, other = _patch(2, 2), _patch(3, 3)
    folder = tmp_path / "f"
    folder.mkdir()
    Image.fromarray(one.pixels).save(folder / "b.png")
    Image.fromarray(other.pixels).save(folder / "a.png")
    (folder / "read.me").write_text("no image")
    assert [patch.name for patch in read(folder)] == ["a.png", "b.png"]
    assert (read(folder)[1].pixels == one.pixels).all()
    assert (read(folder / "a.png")[0].pixels == other.pixels).all()
    floats = np.linspace(0, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "p.npz", patches=floats, names=np.array(["x", "y"]))
    assert [patch.name for patch in read(tmp_path / "p.npz")] == ["x", "y"]
    assert (read(tmp_path / "p.npz")[0].pixels == np.rint(255 * floats[0])).all()


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"patch": np.zeros((1, 2, 2, 3))}, "expected an .npz with patches"),
        ({"patches": np.zeros((2, 2, 3))}, r"got \[2, 2, 3\]"),
        ({"patches": np.full((1, 2, 2, 3), 7.0)}, "got 7 to 7"),
        ({"patches": np.full((1, 2, 2, 3), np.nan)}, "got nan"),
        ({"patches": np.zeros((1, 2, 2, 3), np.int64)}, "expected uint8 or floating"),
        ({"patches": np.zeros((2, 2, 2, 3)), "names": np.array(["a", "a"])}, "names, each once"),
    ],
)
def test_what_is_no_file_of_patches_is_said(tmp_path, stored, said):
    np.savez(tmp_path / "p.npz", **stored)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "p.npz")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    command = ["--num-images", "12", "--patch", "3", "--defense", DEFENSE, "--out", str(folder)]
    assert certify.main(command) == 0
    patches = np.stack([np.full((3, 3, 1), level, np.uint8) for level in (0, 255)])
    np.savez(folder.parent / "p.npz", patches=patches, names=np.array(["black", "white"]))
    np.savez(folder.parent / "large.npz", patches=np.zeros((1, 4, 4, 1)))
    return folder


@pytest.fixture(scope="module")
def tested(run):
    assert attack.main([str(run), "--patch-images", str(run.parent / "p.npz")]) == 0
    return run / "patches"


def _lines(folder):
    _, *lines = (json.loads(line) for line in (folder / LINES).read_text().splitlines())
    return lines


def test_every_patch_is_put_on_every_image_and_every_defense_asked(tested, run):
    images, labels = digits_arrays("test")
    lines = _lines(tested)
    assert {(line["defense"], line["patch"], line["number"]) for line in lines} == {
        (spec, name, number)
        for spec in ("undefended", DEFENSE)
        for name in ("black", "white")
        for number in range(12)
    }
    assert len(lines) == 48
    assert any(line["broken"] for line in lines)  # else little would be shown here
    for line in lines:
        [[height, width, row, column]] = line["place"]
        wanted = images[line["number"], ..., 0].copy()
        wanted[row : row + 3, column : column + 3] = 255 * (line["patch"] == "white")
        assert (height, width) == (3, 3)
        assert (np.asarray(Image.open(tested / line["file"])) == wanted).all()
        assert line["right"] == (line["after"] == labels[line["number"]])
        assert not (line["broken"] and line["certified"])
    [summary] = [json.loads((tested / "attack.json").read_text())]
    known = json.loads((run / "results.json").read_text())
    plain, defended = summary["results"]
    assert plain["clean"] == known["undefended_accuracy"]
    assert defended["clean"] == known["defenses"][0]["clean_accuracy"]
    assert defended["worst_case"] == known["defenses"][0]["worst_case_accuracy"]
    for entry in (plain, defended):
        own = [line for line in lines if line["defense"] == entry["defense"]]
        wrong = {line["number"] for line in own if not line["right"]}
        assert entry["all_patches"] == (12 - len(wrong)) / 12
        assert entry["all_patches"] <= min(entry["patches"].values())
    assert defended["worst_case"] <= defended["all_patches"]


def test_a_certificate_that_the_run_alone_has_is_no_proof_that_failed(
    tested, run, tmp_path, capsys
):
    """The rows of images were edited: all are certified there."""
    broken = [line for line in _lines(tested) if line["broken"] and line["defense"] != "undefended"]
    assert broken
    edited = tmp_path / "run"
    shutil.copytree(run, edited, ignore=shutil.ignore_patterns("patches", "tables"))
    with (run / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (edited / "per_image.csv").open("w", newline="") as file:
        write = csv.DictWriter(file, rows[0])
        write.writeheader()
        write.writerows({**row, f"{DEFENSE} 3x3 worst_case": "1"} for row in rows)
    assert attack.main([str(edited), "--patch-images", str(run.parent / "p.npz")]) == 2
    error = capsys.readouterr().err
    assert error.count("its certificate is of the run alone") == len(broken)
    assert "a proof of this program is wrong" not in error
    assert not (edited / "patches" / "contradictions.json").exists()


def test_images_that_were_not_asked_about_with_every_patch_do_not_count():
    ids = ("a", "b", "c")
    claims = Claims(
        ids, (0, 0, 0), {"undefended": tuple(Claim(n, n < 2, False, 1.0) for n in range(3))}
    )
    right = {
        ("x", "a"): True,
        ("y", "a"): False,
        ("x", "b"): True,
        ("y", "b"): True,
        ("x", "c"): True,
    }
    lines = [
        {"defense": "undefended", "patch": patch, "image": image, "right": is_right,
         "broken": None, "certified": False}
        for (patch, image), is_right in right.items()
    ]  # fmt: skip
    patches = [_patch(2, 2, name="x"), _patch(2, 2, name="y")]
    [entry] = given_patch_table.summary(lines, ["undefended"], patches, claims)
    assert (entry["images"], entry["clean"]) == (2, 1.0)
    assert entry["patches"] == {"x": 1.0, "y": 0.5}
    assert entry["all_patches"] == 0.5
    assert entry["contradictions"] == []
    lines[-1] |= {"broken": True, "certified": True}  # which is told at once
    [entry] = given_patch_table.summary(lines, ["undefended"], patches, claims)
    assert (entry["images"], entry["contradictions"]) == (2, ["c"])
    [entry] = given_patch_table.summary(lines[-1:], ["undefended"], patches, claims)
    shares = (entry["clean"], entry["all_patches"], *entry["patches"].values())
    assert (entry["images"], entry["contradictions"], set(shares)) == (0, ["c"], {None})
    assert "0.0" not in given_patch_table.text_of([entry], 80)  # none is right of no image


def test_it_goes_on_and_other_patches_are_another_test(tested, run, capsys):
    before = (tested / LINES).read_bytes()
    whole = before.splitlines(keepends=True)
    (tested / LINES).write_bytes(b"".join(whole[:20]) + whole[20][:9])
    command = [str(run), "--patch-images", str(run.parent / "p.npz")]
    assert attack.main(command) == 0
    assert sorted((tested / LINES).read_bytes().splitlines()) == sorted(before.splitlines())
    assert attack.main([*command, "--attack-seed", "1"]) == 2
    assert "expected this same attack, but attack.seed is 0 there" in capsys.readouterr().err


def test_the_patched_images_are_a_data_set(tested, tmp_path, capsys):
    command = ["--dataset", f"attacked:{tested}", "--split", "white", "--model", "vit_digits"]
    out = ["--patch", "3", "--defense", DEFENSE, "--out", str(tmp_path / "o")]
    assert certify.main([*command, *out]) == 0
    assert "right in spite of the patch" in capsys.readouterr().err
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    plain, defended = json.loads((tested / "attack.json").read_text())["results"]
    assert results["undefended_accuracy"] == plain["patches"]["white"]
    assert results["defenses"][0]["clean_accuracy"] == defended["patches"]["white"]
    assert results["provenance"]["dataset"] == "attacked"
    assert results["provenance"]["attacked"]["run"]["dataset"] == "digits"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}", "--patch-images", "{dir}/large.npz"], "got patch 0 of 4x4 pixels"),
        (["{run}", "--patch-images", "{dir}/none"], "expected an image, a folder of images or"),
        (["--patch-images", "{dir}/p.npz"], "--patch-images: expected RUN_FOLDER"),
        (["{run}", "--patch-images", "{dir}/p.npz", "--steps", "3"], "--steps: has no use with"),
        (["{run}", "--patch-images", "{dir}/p.npz", "--place", "8,0"], "--place 8,0: expected a"),
        (
            ["{run}", "--patch-images", "{dir}/p.npz", "--place", "7"],
            "--place: expected ROW,COLUMN",
        ),
        (
            ["{run}", "--place", "8,8"],
            "--place 8,8: expected a place inside what the threat allows",
        ),
        (["{run}", "--place", "1,1", "--places", "random"], "--places: has no use with --place"),
        (
            ["{run}", "--patch-images", "{dir}/p.npz", "--num-images", "14", "--out", "{dir}/o"],
            "error: --num-images: expected at most the 12 images of ",
        ),
        (["{run}", "--scale-patch-images"], "--scale-patch-images: expected --patch-images"),
    ],
)
def test_bad_input_is_one_line(run, capsys, words, said):
    names = {"run": run, "dir": run.parent}
    assert attack.main([word.format(**names) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
