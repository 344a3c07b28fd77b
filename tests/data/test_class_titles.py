"""Names of classes for people: every form of file, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certmask_jax.data.class_titles import find, read

IDS = ("n01440764", "n02012849", "n03126707")
SYNSETS = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn00000001 other\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LOC_synset_mapping.txt", SYNSETS),
        ("words.txt", SYNSETS.replace(" ", "\t", 1)),
        ("names.csv", "id,title\nn01440764,tench\nn02012849,crane\nn03126707,crane\n"),
        ("names.txt", "tench\ncrane\ncrane\n"),
        ("numbers.csv", '1,crane\n0,"tench, Tinca tinca"\n2,crane\n'),
        ("numbers.txt", "index\tname\n0\ttench\n1\tcrane\n2\tcrane\n"),
        ("a.json", json.dumps({"0": ["n01440764", "tench"], "1": ["n02012849", "crane"],
                               "2": ["n03126707", "crane"]})),
        ("b.json", json.dumps({"n01440764": "tench, x", "n02012849": "crane",
                               "n03126707": "crane"})),
        ("c.json", json.dumps({"0": "tench", "1": "crane", "2": "crane"})),
        ("d.json", json.dumps(["tench", "crane", "crane"])),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_names_and_tells_two_alike_apart(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content)
    assert read(file, IDS) == ("tench", "crane (n02012849)", "crane (n03126707)")


def test_what_the_file_does_not_know_stays_as_it_is(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(SYNSETS)
    names = ("", "n01440764-fish", "n01440764/n00000001", "cat", "n01440764/n99999999")
    assert read(file, names) == ("", "tench", "tench / other", "cat", "n01440764/n99999999")


@pytest.mark.parametrize("delimiter", [" ", ",", ";", "\t"])
def test_ids_are_those_that_names_of_classes_begin_with(tmp_path, delimiter):
    file = tmp_path / "a.txt"
    file.write_text(f"n01440764{delimiter}tench\nn00000001{delimiter}other\n")
    names = ("n00000001-something", "n01440764-fish")
    assert read(file, names) == ("other", "tench")
    assert read(file, ("n01440764/n00000001", "cat")) == ("tench / other", "cat")


def test_numbers_with_a_gap_or_twice_are_no_numbers_of_outputs(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("0,tench\n2,crane\n")  # lines, of which what is before the comma is shown
    assert read(file, ("x", "y")) == ("0", "2")
    file.write_text("0,tench\n0,fish\n1,crane\n")
    assert read(file, ("x", "y", "z")) == ("0 (x)", "0 (y)", "1")


def test_of_some_outputs_of_a_larger_model(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("".join(f"name {i}\n" for i in range(10)))
    assert read(file, ("x", "y"), outputs=[3, 9]) == ("name 3", "name 9")
    with pytest.raises(ValueError, match="expected a name for each of the 2 classes"):
        read(file, ("x", "y"), outputs=[3, 10])


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", "n00000001 other\n", "expected names of the classes of the run (n01440764, "),
        (
            "a.txt",
            "tench\ncrane\n",
            "a name for each of the 3 classes of the run, in their order, got 2",
        ),
        ("a.json", "[", "expected JSON of names"),
        ("a.json", "[1]", 'expected {"id": "name"}'),
        ("a.json", '{"a": 1}', "got 'a': 1"),
        ("a.txt", b"\xff", "expected text in UTF-8"),
    ],
)
def test_what_is_no_such_file_is_one_line(tmp_path, name, content, line):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r".") as caught:
        read(file, IDS)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="found no file"):
        read(tmp_path / "gone", IDS)


def test_it_is_found_beside_the_images_and_only_for_imagenets_ids(tmp_path, monkeypatch):
    folder = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    folder.mkdir(parents=True)
    assert find(folder, IDS) is None
    (tmp_path / "LOC_synset_mapping.txt").write_text(SYNSETS)
    assert find(folder, IDS)[0] == "tench"
    assert find(folder, ("cat", "dog")) is None
    (folder / "synset_words.txt").write_text("something else\n")  # of one class only
    assert find(folder, IDS)[0] == "tench"
    assert find(folder / "class", IDS) is None  # too far below
    monkeypatch.chdir(folder)
    assert find(Path(), IDS)[0] == "tench"
    assert find(Path("class"), IDS) is None
