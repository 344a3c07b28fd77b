"""The page that certify writes: of a run with images, a table and an attack; and when it cannot."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from certmask_jax.certification import report as reports
from certmask_jax.programs import certify, page_of_run, report
from certmask_jax.programs.attacking.attack_folder import LINES

REAL = page_of_run.try_page  # before the fixture that takes its place
OPTIONS = ["--num-images", "6", "--defense", "double_masking:masks_per_axis=2"]


def _data(page):
    script = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(script[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose page was written: before the fixture that leaves pages out, which is a test's."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert certify.main([*OPTIONS, "--out", str(folder)]) == 0
    return folder


def test_a_run_has_a_page_with_its_images(run):
    data = _data(run / "report.html")
    assert len(data["images"]) == 6
    assert all(image["pic"].startswith("data:image/png") for image in data["images"])
    assert data["defenses"][0]["pair"]
    # Made again from the folder, with the images that its command finds, it holds the same.
    again = run.parent / "again.html"
    assert report.main([str(run), "--out", str(again)]) == 0
    assert _data(again) == data


def test_patched_images_stand_beside(run, tmp_path, capsys):
    of_run = reports.read(run)
    attack = tmp_path / "attack"
    (attack / "images").mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(attack / "images" / "a.png")
    head = {"format": 1, "settings": {}}
    spec = of_run.defenses[0].spec
    about = {"number": 2, "label": 1, "class": "1", "image": of_run.ids[2], "certified": False}
    lines = [
        {**about, "defense": spec, "after": "alert", "broken": False, "file": "gone"},
        {**about, "defense": "undefended", "after": 3, "broken": True, "file": "images/a.png"},
        {**about, "defense": "of another run", "after": 3, "broken": True},
        {**about, "defense": spec, "image": of_run.ids[1], "after": 3, "broken": None},
    ]
    text = "".join(json.dumps(line) + "\n" for line in [head, *lines])
    (attack / LINES).write_text(text)
    out = tmp_path / "page.html"
    assert report.main([str(run), "--attack", str(attack), "--out", str(out)]) == 0
    images = _data(out)["images"]
    assert [len(image.get("attack", ())) for image in images] == [0, 0, 2, 0, 0, 0]
    first, second = images[2]["attack"]
    assert (first["d"], first["after"], first["pic"]) == (0, -2, None)
    assert (second["d"], second["broken"]) == (None, True)
    assert second["pic"].startswith("data:image/png")
    assert "1 patched image of the attack is not there." in out.read_text()
    assert report.main([str(run), "--attack", str(tmp_path)]) == 2
    assert "--attack" in capsys.readouterr().err


def test_a_page_that_cannot_be_made_fails_no_run(run, tmp_path, capsys, monkeypatch):
    def fails(*given, **options):
        raise RuntimeError("a defect\nof pages")

    monkeypatch.setattr(page_of_run, "made_page", fails)
    of_run = reports.read(run)
    assert REAL(of_run, None, lambda rows: (None, ""), tmp_path) == ()
    said = capsys.readouterr().err
    assert said.startswith("no report.html (a defect\\nof pages); ")
    assert said.endswith(f"report {tmp_path} tries again\n")


def test_images_of_other_labels_are_not_shown(run, tmp_path):
    results = json.loads((run / "results.json").read_bytes())
    other = tmp_path / "run"
    other.mkdir()
    rows = (run / "per_image.csv").read_text().splitlines()
    cells = rows[1].split(",")
    cells[1] = str((int(cells[1]) + 1) % 10)
    (other / "per_image.csv").write_text(
        "\r\n".join([rows[0], ",".join(cells), *rows[2:]]) + "\r\n"
    )
    (other / "results.json").write_text(json.dumps(results))
    assert report.main([str(other)]) == 0
    text = (other / "report.html").read_text()
    assert "Images are not at hand: test:0 is of class" in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", "how I call certmask", "expected a new file, or a page of this program"),
        ("folder", None, "expected a file for the page, got a folder"),
        ("notes.txt/page.html", "my own notes", "expected a folder around it, but"),
    ],
)
def test_a_page_replaces_pages_alone(digits_run, tmp_path, capsys, name, content, said):
    first = tmp_path / name.partition("/")[0]
    if content is None:
        first.mkdir()
    else:
        first.write_text(content)
    assert report.main([str(digits_run), "--out", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
    assert content is None or first.read_text() == content
    assert [one.name for one in tmp_path.iterdir()] == [first.name]


def test_a_page_is_replaced_where_one_is(digits_run, tmp_path):
    """Also the page in a run's folder that an earlier version wrote: its name says what it is."""
    assert report.main([str(digits_run), "--out", str(tmp_path / "new" / "page.html")]) == 0
    first = (tmp_path / "new" / "page.html").read_text()
    assert report.main([str(digits_run), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text() == first
    of_run = page_of_run.page_file(digits_run)
    of_run.write_text("<!doctype html>, of before")
    assert report.main([str(digits_run)]) == 0
    assert of_run.read_text() == first
