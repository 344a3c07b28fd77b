"""Images of a run that are gone or damaged are named; the others are shown, and no wrong ones."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import paged_run
import pytest
from PIL import Image

from certmask_jax.certification import report as reports
from certmask_jax.programs import report

IDS = ("bee/a.png", "bee/b.png", "bee/c.png", "bee/d.png", "ant/e.png")  # bee is class 1


@pytest.fixture
def run(tmp_path):
    """The folder of a run, and that of its images, each of one grey level."""
    pictures = tmp_path / "pictures"
    for level, name in enumerate(IDS):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * level, np.uint8)).save(pictures / name)
    (pictures / "cow").mkdir()
    (pictures / "cow" / "of_another_class.png").write_bytes((pictures / IDS[0]).read_bytes())
    made = paged_run.made()
    command = (
        f"certmask certify --dataset image_folder --data-dir {pictures} --model vit_digits "
        "--input-size 8"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    named = dataclasses.replace(made, ids=IDS, provenance={**made.provenance, "command": command})
    reports.write(named, folder)
    return folder, pictures


def _shown(folder):
    """Of each image whether it has a picture, and what the page says is missing."""
    assert report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    said = re.findall("<p>(.*?)</p>", page[page.index('<div class="missing"') :].split("</div>")[0])
    return ["pic" in one for one in data["images"]], said


def test_those_that_are_gone_or_damaged_are_named_and_the_others_are_shown(run):
    folder, pictures = run
    there, said = _shown(folder)
    assert all(there)
    assert not any("image" in line for line in said)
    (pictures / IDS[1]).unlink()
    (pictures / IDS[3]).write_bytes((pictures / IDS[3]).read_bytes()[:50])
    there, said = _shown(folder)
    assert there == [True, False, True, False, True]
    assert said[-1] == (
        "Of 5 images 1 is not there (bee/b.png) and 1 is there and cannot be read (bee/d.png); the "
        "other 3 are shown."
    )
    for name in IDS[:3]:
        (pictures / name).unlink(missing_ok=True)
    there, said = _shown(folder)
    assert there == [False] * 4 + [True]
    assert said[-1].startswith(
        "Of 5 images 3 are not there (bee/a.png, bee/b.png, bee/c.png) and 1 is"
    )
    assert said[-1].endswith("; the other one is shown.")


def test_none_and_others_are_refused(run):
    folder, pictures = run
    (pictures / IDS[0]).unlink()
    (pictures / "ant" / "e.png").rename(pictures / "ant" / "f.png")
    for name in IDS[1:4]:
        (pictures / name).write_bytes(b"no image")
    there, said = _shown(folder)
    assert not any(there)
    assert said[-1].startswith("Images are not at hand: none of 5 is there and can be read, the ")
    # A folder more, and every class has another number: these are images of another data set.
    (pictures / "ant" / "f.png").rename(pictures / "ant" / "e.png")
    (pictures / "cow").rename(pictures / "aaa")
    there, said = _shown(folder)
    assert not any(there)
    assert said[-1].startswith(
        "Images are not at hand: ant/e.png is of class 1 there, and was of 0"
    )
