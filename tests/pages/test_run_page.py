"""The page of a run, made from a table that was written by hand."""

from __future__ import annotations

import dataclasses
import json
import re

import hand_made_reports
import numpy as np
import paged_run
import pytest
from paged_run import IDS

from certmask_jax.certification import certified_size
from certmask_jax.masks.threats import Threat
from certmask_jax.pages import pictures, run_page
from certmask_jax.programs import page_of_run, report


def _page(*, saved=True, images=paged_run.pixels, most_images=10, **options):
    return page_of_run.made_page(
        paged_run.made(),
        paged_run.saved() if saved else None,
        images,
        most_images=most_images,
        **options,
    ).html


def _data(page):
    script = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(script[1])


@pytest.fixture(scope="module")
def page():
    return _page()


@pytest.fixture(scope="module")
def images(page):
    return {image["id"]: image for image in _data(page)["images"]}


def test_every_image_has_its_verdicts_and_its_cells(page, images):
    double, alerts = _data(page)["defenses"]
    (places,) = double["maps"]
    assert (places["rows"], places["cols"], places["shape"]) == ([0, 2], [0, 2], [1, 1])
    cells = {
        name: [
            [image["d"][0].get("s", ["hhhh"])[0][spot] for spot in row] for row in places["spot"]
        ]
        for name, image in images.items()
    }
    assert cells == {
        "certified": [["h", "h"], ["h", "h"]],
        "mask 2 errs": [["h", "f"], ["h", "h"]],
        "wrong": [["f", "f"], ["f", "f"]],
        "neither stands": [["f", "f"], ["h", "h"]],
        # Masks 1 and 2 are lost, with each other; of masks 3 and 4 a pair is not known.
        IDS[4]: [["f", "f"], ["o", "o"]],
    }
    assert [image["d"][0]["c"] for image in images.values()] == [1, 0, 0, 0, 0]
    assert places["hiding"][places["spot"][0][1]] == [1]
    assert double["masks"][3] == [[2, 2, 4, 4]]
    assert alerts["pair"] == []
    assert images["mask 2 errs"]["d"][0]["wide"] == [25.0]
    assert images[IDS[4]]["d"][0]["openShare"] == [50.0]


def test_labels_under_masks_are_those_of_the_table(page, images):
    double = _data(page)["defenses"][0]
    for name, wrong in paged_run.said().items():
        image = images[name]
        for i, row in enumerate(double["pair"]):
            for j, column in enumerate(row):
                sign = image["t"][column]
                label = {".": image["label"], "?": -3}.get(sign)
                label = image["w"][ord(sign) - ord("a")] if label is None else label
                assert label == wrong.get((min(i, j), max(i, j)), image["label"])


def test_why_is_said_from_the_rule(images):
    assert images["certified"]["d"][0]["answered"] == "All masks say cat."
    assert images["certified"]["d"][0]["proved"].startswith(
        "Wherever a patch is, a mask hides it and stands by cat"
    )
    dog = paged_run.NAMES[0]
    one = images["mask 2 errs"]["d"][0]
    assert one["answered"] == (
        f"Most masks say cat; mask 2 says {dog} and does not stand, as with mask 1 it says cat."
    )
    assert one["proved"] == (
        "Only mask 2 hides a patch at row 0, column 2, and it does not stand by cat: mask 2 says "
        f"{dog}."
    )
    assert one["only"] == 1
    two = images["neither stands"]["d"][0]
    assert two["answered"] == (
        f"{dog} and cat have most masks, 2 each, and cat is taken; masks 1 and 2 disagree and "
        f"neither stands: mask 1 says {dog}, and with mask 2 cat."
    )
    assert "only" not in two
    assert images["wrong"]["d"][0]["proved"] == f"Without any patch the answer is {dog}, not cat."
    assert images["wrong"]["d"][1]["answered"].startswith(f"The image says {dog}, and no mask")
    alert = images["mask 2 errs"]["d"][1]
    assert alert["answered"] == f"An alert: the image says cat, but mask 2 says {dog}."


def test_classes_say_by_what_they_are_in_order(page):
    assert "2 classes, the least certified first by the mean of all defenses" in page
    alone = dataclasses.replace(paged_run.made(), defenses=paged_run.made().defenses[:1])
    made = page_of_run.made_page(alone, None, paged_run.no_pixels, most_images=9).html
    assert "2 classes, the least certified first<" in made
    assert "raised an alert" in page
    assert "raised an alert" not in made


def test_what_comes_from_outside_cannot_leave_its_place(page):
    assert "<b>bold" not in page
    assert "<b>left" not in page
    assert page.count("</script>") == 2


def test_numbers_stand_in_the_page_without_scripts(page):
    text = re.sub(r"<[^>]+>", " ", page)
    assert "5 images of pets (test) were certified for the model by hand" in text
    assert "one patch of 1x1 pixels anywhere on the 4x4 image" in text
    assert "20.0 [3.6, 62.4]" in text  # 1 of 5 by double masking
    assert "certmask certify --dataset image_folder" in text


def test_what_is_gone_is_named_and_the_rest_is_shown():
    page = _page(saved=False, images=paged_run.no_pixels, missing=["There is no table."])
    assert "There is no table." in page
    assert "Images are not at hand: they are gone." in page
    data = _data(page)
    assert [image["d"][0]["c"] for image in data["images"]] == [1, 0, 0, 0, 0]
    assert "pic" not in data["images"][0]
    assert data["defenses"][0]["noMap"] == (
        "No map of places: of this defense only verdicts are at hand."
    )


def test_a_larger_run_is_sampled_and_says_so():
    page = _page(most_images=2)
    assert len(_data(page)["images"]) == 2
    assert "2 of the 5 images, drawn at random; the numbers above are of all." in page
    assert (run_page.sample(5, 2) == run_page.sample(5, 2)).all()
    assert run_page.sample(7).tolist() == list(range(7))


def test_a_run_over_sizes_has_its_curves_and_says_both_ends():
    sizes = [Threat.of(8, side) for side in (1, 2)]
    results = [
        hand_made_reports.result(threat=threat, certified=certified)
        for threat, certified in zip(sizes, (6, 3), strict=True)
    ]
    family = certified_size.Family("double_masking", None, (0, 1))
    made = certified_size.with_curves(hand_made_reports.report(*results), [family])
    page = run_page.page_of(made, rows=run_page.sample(8), inspected={})
    text = re.sub(r"<[^>]+>", " ", page)
    assert "Against 1x1, on 75.0% [40.9, 92.9] of the images no such patch can" in text
    assert "against 2x2, on 37.5% [13.7, 69.4] of the images no such patch can" in text
    assert page.count("<polyline") == 2
    assert "own masks: certified 37.5% at 2x2" in page
    (one,) = re.findall(r'<polyline points="([^"]+)"[^>]*stroke-width="2"/>', page)
    (_, first), (_, second) = (map(float, point.split(",")) for point in one.split())
    # 300 units high with 14 above and 44 below: 75% and 37.5% of 242 from below.
    assert (first, second) == (74.5, 165.2)


def test_photographs_are_made_as_small_as_the_budget_takes():
    rng = np.random.default_rng(0)
    photographs = [rng.integers(0, 256, (224, 224, 3), np.uint8) for _ in range(6)]
    roomy, tight = (pictures.data_uris(photographs, budget=b) for b in (10**9, 20_000))
    assert all(one.startswith("data:image/jpeg;base64,") for one in roomy)
    assert sum(map(len, tight)) < 24_000 < sum(map(len, roomy))
    small = pictures.data_uris([rng.integers(0, 256, (8, 8, 1), np.uint8)], budget=1)
    assert small[0].startswith("data:image/png;base64,")


def test_the_program_says_what_is_not_there(tmp_path, capsys):
    folder = paged_run.written(tmp_path / "run")
    assert report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "The tables of the run are not there, so there are no maps." in page
    assert "Images are not at hand: " in page
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    (folder / "per_image.csv").unlink()
    assert report.main([str(folder), "--out", str(tmp_path / "other.html")]) == 0
    assert "per_image.csv is not there" in (tmp_path / "other.html").read_text()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("results.json", None, "expected the folder of a finished run, with results.json"),
        ("results.json", "{", "results.json: is damaged"),
        ("results.json", '{"provenance": {}}', "results.json: expected the results of a run, but"),
    ],
)
def test_without_results_there_is_no_page_and_one_line(tmp_path, capsys, name, content, line):
    folder = paged_run.written(tmp_path / "run")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    assert report.main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said
    assert not (folder / "report.html").exists()
