"""A run of which something is damaged: it is said in one sentence, and the rest is shown."""

from __future__ import annotations

import html
import json
import shutil

import pytest
from PIL import Image

from certmask_jax.certification import report as reports
from certmask_jax.programs import report
from certmask_jax.tables import evidence_store

NO_MAPS, NO_IMAGES = "There are no maps: ", "No image is shown: "
AGAIN = "give the command of the run again to mend it."


def _cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _remove(file):
    file.unlink()


def _turn_into_folder(file):
    file.unlink()
    file.mkdir()


@pytest.fixture(scope="module")
def whole(digits_run, tmp_path_factory):
    """The run with an attack."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(digits_run, folder)
    (folder / "attack").mkdir()
    line = {"defense": "undefended", "number": 0, "label": 1, "class": "1", "after": 2,
            "image": reports.read(folder).ids[0], "broken": True}  # fmt: skip
    lines = [{"format": 1, "settings": {}}, line]
    (folder / "attack" / "attacks.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    return folder


@pytest.mark.parametrize(
    ("name", "how", "begins", "says"),
    [
        ("per_image.csv", _cut, NO_IMAGES, "per_image.csv: expected a row for each of the 12"),
        ("per_image.csv", _remove, "per_image.csv is not there", "so no image is shown."),
        ("per_image.csv", _turn_into_folder, NO_IMAGES, "cannot be read (Is a directory)."),
        (
            "tables/table.json",
            _cut,
            NO_MAPS,
            "table.json: expected the facts of a prediction table",
        ),
        ("tables/table.json", _remove, NO_MAPS, "begins with table.json, got one without"),
        ("tables/masked_images.npy", _cut, NO_MAPS, "masked_images.npy: is damaged"),
        ("tables/predictions/c/0/0", _cut, NO_MAPS, "predictions/c/0/0: is damaged"),
        ("tables/margins/c/1/0", _remove, NO_MAPS, "margins/c/1/0 is the first file missing"),
        ("tables/labels/c/0", _cut, NO_MAPS, "labels/c/0: is damaged"),
        ("tables/ids/000000.json", _cut, NO_MAPS, "ids/000000.json: is damaged"),
        ("tables/labels/zarr.json", _cut, "", f"other programs that read zarr cannot: {AGAIN}"),
        ("tables/labels/zarr.json", _remove, "", "labels/zarr.json: is missing; the page does"),
        ("tables/labels/zarr.json", _turn_into_folder, "", "cannot be read (Is a directory)"),
        ("attack/attacks.jsonl", _remove, "No patched images", "attacks.jsonl is not there."),
        ("attack/attacks.jsonl", _turn_into_folder, "No patched images", "Is a directory."),
    ],
)
def test_one_sentence_and_the_rest(whole, tmp_path, capsys, name, how, begins, says):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    how(folder / name)
    assert report.main([str(folder)]) == 0
    said = capsys.readouterr().err.splitlines()
    if name != "attack/attacks.jsonl" and name != "per_image.csv":
        assert said.pop() == "1 patched image of the attack is not there."
    (line,) = said
    assert line.startswith(begins)
    assert says in line
    assert "Error(" not in line
    assert "--" not in line.split("(python")[0]  # no option of this program would help
    page = html.unescape((folder / "report.html").read_text())
    assert f"<p>{line}</p>" in page
    assert "double_masking:masks_per_axis=2" in page
    assert ('id="data"' in page) == (name != "per_image.csv")
    if name != "per_image.csv":
        assert '"pic":"data:image/png' in page
        assert ('"maps":[' in page) == (begins != NO_MAPS)


def test_a_patched_image_of_which_a_byte_is_another_is_not_there(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    lines = [json.loads(x) for x in (folder / "attack" / "attacks.jsonl").read_text().splitlines()]
    head, one, *_ = lines
    lines = [head, {**one, "file": "good.png"}, {**one, "number": 499, "file": "bad.png"}]
    text = "".join(f"{json.dumps(x)}\n" for x in lines)
    (folder / "attack" / "attacks.jsonl").write_text(text)
    good, bad = folder / "attack" / "good.png", folder / "attack" / "bad.png"
    Image.new("L", (8, 8), 7).save(good)
    content = bytearray(good.read_bytes())
    content[content.index(b"IDAT") - 1] = 2  # its length: Pillow raises a SyntaxError
    bad.write_bytes(content)
    assert report.main([str(folder)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == ["1 patched image of the attack is not there."]


def test_a_run_that_is_whole_says_nothing(digits_run, tmp_path, capsys):
    assert report.main([str(digits_run), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", None])
def test_evidence_that_is_damaged_is_named_too(whole, tmp_path, capsys, content):
    """Beside tables: a page needs none of it, and says so."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "attack")
    (folder / "evidence").mkdir()
    facts = {"num_images": 12, "images_per_block": 12}
    evidence_store.begun(folder / "evidence", facts, {})
    if content is not None:
        (folder / "evidence" / evidence_store.RECORD).write_bytes(content)
    assert report.main([str(folder)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"The page does without evidence: {folder / 'evidence'}")
    assert ("1 of 1 blocks are missing or damaged" in line) == (content is None)
    assert '"maps":[' in (folder / "report.html").read_text()
