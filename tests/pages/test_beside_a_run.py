"""What a page shows beside a run: objects by size, and classes as people call them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import hand_made_reports
import numpy as np
import pytest
from PIL import Image

from certmask_jax.certification import report as reports
from certmask_jax.certification.report import wilson_interval
from certmask_jax.data import digits_arrays, load
from certmask_jax.models import DataConfig
from certmask_jax.programs import boxes_of_run, certify, page_options, report
from certmask_jax.programs.job_facts import PATCH_LIVES

OPTIONS = ["--defense", "double_masking:masks_per_axis=2", "--dataset", "image_folder"]
OPTIONS += ["--model", "vit_digits"]


def _data(page):
    script = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(script[1])


def _text(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files of 24x16 pixels, which are resized to 8x8."""
    root = tmp_path_factory.mktemp("images")
    images, labels = digits_arrays("test")
    for number in range(6):
        file = root / str(labels[number]) / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(images[number, ..., 0]).resize((16, 24)).save(file)
    return root


@pytest.fixture(scope="module")
def boxes(tmp_path_factory, folder):
    """A box of each image but one: 25%, 50%, 50%, all, and two that overlap in 12.5%."""
    ids = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [
        (ids[0], 0, 0, 8, 12), (ids[1], 0, 0, 16, 12), (ids[2], 8, 0, 16, 24),
        (ids[3], 0, 0, 16, 24), (ids[4], 0, 0, 8, 24), (ids[4], 4, 0, 12, 12),
        ("elsewhere", 0, 0, 1, 1),
    ]  # fmt: skip
    file = tmp_path_factory.mktemp("boxes") / "boxes.csv"
    lines = [",".join(map(str, row)) for row in rows]
    file.write_text("\n".join(["id,x0,y0,x1,y1", *lines]) + "\n")
    return file, dict(zip(ids, (25.0, 50.0, 50.0, 100.0, 62.5, None), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder, boxes):
    """A run whose page was written: before the fixture that leaves pages out, which is a test's."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = [*OPTIONS, "--data-dir", str(folder), "--object-boxes", str(boxes[0])]
    assert certify.main([*command, "--out", str(out)]) == 0
    return out


def test_images_stand_in_the_bin_of_what_their_boxes_cover(run, boxes, tmp_path, capsys):
    page = run / "report.html"
    covered = {image["id"]: image.get("o") for image in _data(page)["images"]}
    assert covered == boxes[1]
    bins = [image.get("bin") for image in _data(page)["images"]]
    assert bins == [0, 1, 1, 3, 2, None]
    of_run, text = reports.read(run), _text(page)
    assert "5 of 6 images have boxes in boxes.csv. 1 name in it is no image of this run" in text
    rows = re.findall(
        r"<th scope=\"row\">(\d+ to \d+%)</th><td class=\"number\">(\d+)</td>", page.read_text()
    )
    assert rows == [("20 to 30%", "1"), ("50 to 60%", "2"), ("60 to 70%", "1"), ("90 to 100%", "1")]
    holds = of_run.defenses[0].per_image["worst_case"][1:3].mean()
    low, high = wilson_interval(float(holds), 2)
    clean = (of_run.defenses[0].per_image["answer"] == of_run.per_image["label"])[1:3].mean()
    cell = f"{100 * holds:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({100 * clean:.1f})"
    assert cell in text.split("50 to 60% 2 ")[1][:80]
    # Made again it finds the boxes by the command of the run; without them it has no such part.
    again = tmp_path / "again.html"
    assert report.main([str(run), "--out", str(again)]) == 0
    assert capsys.readouterr().err == (
        "boxes.csv: 1 name in it is no image of this run, such as elsewhere.\n"
    )
    assert _data(again) == _data(page)


def test_what_the_command_named_may_be_gone_and_what_is_typed_may_not(
    run, folder, boxes, tmp_path, capsys
):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    results = json.loads((moved / "results.json").read_text())
    command = results["provenance"]["command"]
    results["provenance"]["command"] = command.replace(str(boxes[0]), "/gone.csv")
    (moved / "results.json").write_text(json.dumps(results))
    assert report.main([str(moved)]) == 0
    line = "Nothing is shown by object size: --object-boxes /gone.csv: expected a file or folder"
    assert line in capsys.readouterr().err
    assert line in _text(moved / "report.html")
    assert "By object size" not in _text(moved / "report.html")
    assert report.main([str(moved), "--object-boxes", "/gone.csv"]) == 2
    assert capsys.readouterr().err.startswith("error: --object-boxes /gone.csv: expected a file")
    # Without the images it needs the sizes with the boxes.
    results["provenance"]["command"] = command.replace(str(folder), "/gone")
    (moved / "results.json").write_text(json.dumps(results))
    assert report.main([str(moved), "--object-boxes", str(boxes[0])]) == 0
    assert "the sizes of the images are in their files, and these are not at hand" in (
        capsys.readouterr().err
    )
    header, *rows = boxes[0].read_text().splitlines()
    whole = tmp_path / "whole.csv"
    whole.write_text(
        "\n".join([f"{header},image_width,image_height", *(f"{row},16,24" for row in rows)])
    )
    assert report.main([str(moved), "--object-boxes", str(whole)]) == 0
    page = moved / "report.html"
    assert {one["id"]: one.get("o") for one in _data(page)["images"]} == boxes[1]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("nothing,0,0,1,1", "expected boxes of images of the run, such as"),
        ("0/{0}.png,0,0,18,9", "expected boxes inside the image of 24x16 (height, width) pixels"),
        ("0/{0}.png,0,0,0,9", "row 2: expected a box with x0 < x1"),
    ],
)
def test_bad_boxes_are_one_line_before_any_work(folder, tmp_path, capsys, row, line):
    first = sorted(folder.rglob("*.png"))[0].relative_to(folder).as_posix()
    file = tmp_path / "b.csv"
    file.write_text(f"id,x0,y0,x1,y1\n{row.replace('0/{0}.png', first)}\n")
    out = tmp_path / "run"
    command = [*OPTIONS, "--data-dir", str(folder), "--out", str(out)]
    assert certify.main([*command, "--object-boxes", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --object-boxes")
    assert line in said
    assert said.count("\n") == 1
    assert not out.exists()
    assert certify.main([*command, "--object-boxes", str(file), "--no-page"]) == 2
    assert "--object-boxes: expected a page" in capsys.readouterr().err


def test_a_box_of_an_image_that_is_left_out_does_not_end_the_run(tmp_path):
    root = tmp_path / "images"
    for one in ("a", "b"):
        (root / one).mkdir(parents=True)
        Image.new("L", (16, 24)).save(root / one / "1.png")
    (root / "b" / "2.png").write_bytes(b"no image")
    file = tmp_path / "boxes.csv"
    file.write_text("id,x0,y0,x1,y1\na/1,0,0,8,24\nb/2,0,0,8,24\n")
    config = DataConfig((8, 8), (0.5,), (0.5,), channels=1)
    test_set = load("image_folder", data_dir=root, data_config=config, num_outputs=2)
    provenance = {"dataset": "image_folder", "data_config": dataclasses.asdict(config)}
    before = page_options.before(page_options.PageOptions(file), test_set, provenance)
    ids = ["a/1.png", "b/1.png", *(f"b/{number}.png" for number in range(3, 9))]
    made = hand_made_reports.report(hand_made_reports.result(), ids=ids, provenance=provenance)
    _, sizes, _ = page_options.after(before, made, test_set)
    assert sizes is not None
    assert sizes.shares.tolist()[0] == 0.5
    assert np.isnan(sizes.shares[1:]).all()
    assert sizes.said == ("1 name in it is no image of this run, such as b/2.",)


@pytest.mark.parametrize(("lives", "resize"), [("input", 10), ("native", None)])
def test_boxes_go_straight_to_the_input_where_patches_live_in_the_own_pixels(lives, resize):
    config = DataConfig((8, 8), (0.5,), (0.5,), channels=1, resize=10)
    of_config = {"data_config": dataclasses.asdict(config)}
    recorded = {"native_patches": lives == "native", "patch_lives": "in other words"}
    sentence = {"patch_lives": PATCH_LIVES[lives]}  # of a run of before it was recorded
    for known in (recorded, sentence):
        provenance = json.loads(json.dumps({**of_config, **known}))
        recovered = boxes_of_run.config_of(provenance)
        assert recovered == dataclasses.replace(config, resize=resize)


def test_classes_are_called_as_people_do(run, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {i} <script>, more\n" for i in range(10)))
    page = tmp_path / "page.html"
    assert report.main([str(run), "--class-names", str(names), "--out", str(page)]) == 0
    assert _data(page)["classes"] == [f"name {i} <script>" for i in range(10)]
    assert "<script>," not in page.read_text()
    assert f"name {digits_arrays('test')[1][0]} &lt;script&gt;" in page.read_text()
    names.write_text("one\ntwo\n")
    assert report.main([str(run), "--class-names", str(names), "--out", str(page)]) == 2
    assert "--class-names" in capsys.readouterr().err
    command = [*OPTIONS, "--data-dir", "x", "--class-names", str(names), "--no-page"]
    assert certify.main(command) == 2
    assert "--class-names: expected a page" in capsys.readouterr().err
    assert set(reports.read(run).class_names) <= {"", *map(str, range(10))}  # as they were


def test_names_of_classes_are_found_beside_the_images(tmp_path):
    images = tmp_path / "val"
    images.mkdir()
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n")
    made = dataclasses.replace(
        hand_made_reports.usual(),
        class_names=("n01440764", "n02102040"),
        provenance={"data_dir": str(images)},
    )
    named = page_options.with_names(made, None)
    assert named.class_names == ("tench", "n02102040")
    assert made.class_names == ("n01440764", "n02102040")
    elsewhere = dataclasses.replace(made, provenance={"data_dir": "/gone"})
    assert page_options.with_names(elsewhere, None) is elsewhere
    assert page_options.with_names(elsewhere, None, images).class_names[0] == "tench"
    without = dataclasses.replace(made, provenance={})
    assert page_options.with_names(without, None) is without
