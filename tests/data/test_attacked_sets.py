"""The folder of an attack as a data set: its pixels, labels and splits, and what is damaged."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from certmask_jax import data
from certmask_jax.data import attacked_sets
from certmask_jax.models import DataConfig

# One that resizes and crops: patched images have been through that.
CONFIG = DataConfig(input_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,), resize=12)
SPECS = ("undefended", "double_masking:masks_per_axis=2")


def _pixels(number, spec):
    return np.random.default_rng([number, SPECS.index(spec)]).integers(0, 256, (8, 8), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three images under each of two; of the plain model 0 and 2 are broken."""
    lines = []
    for spec in SPECS:
        (tmp_path / spec.partition(":")[0]).mkdir()
        for number, label in enumerate((4, 0, 9)):
            line = {"defense": spec, "number": number, "image": f"test:{number}", "label": label,
                    "class": str(label), "broken": number != 1 and spec == SPECS[0],
                    "file": f"{spec.partition(':')[0]}/{number}.png"}  # fmt: skip
            Image.fromarray(_pixels(number, spec)).save(tmp_path / line["file"])
            lines.append(line)
        # Answered wrongly without a patch: it was not attacked.
        lines.append({"defense": spec, "number": 3, "image": "test:3", "label": 1, "class": "1",
                      "broken": None})  # fmt: skip
    _write(tmp_path, lines, about={"class_names": list("abcdefghij")})
    return tmp_path


def _write(folder, lines, *, settings=None, about=None):
    known = {"dataset": "digits", "attack": {"seed": 0}, **(settings or {})}
    head = {"format": 1, "settings": known, "about": about or {}}
    text = "".join(json.dumps(line) + "\n" for line in [head, *lines])
    (folder / attacked_sets.LINES).write_text(text)


def _load(folder, split=None, **options):
    options = {"num_outputs": 10, "data_config": CONFIG, **options}
    return data.load(f"attacked:{folder}", split=split, **options)


def test_pixels_and_labels_are_those_of_the_attack(folder):
    for spec in SPECS:
        read = _load(folder, spec)
        batch = read.read(0, 10)
        assert batch.ids == ("test:0", "test:1", "test:2")
        assert batch.labels.tolist() == [4, 0, 9]
        for number in range(3):
            assert (batch.images[number, ..., 0] == _pixels(number, spec)).all()
    assert read.class_names == tuple("abcdefghij")
    assert "right in spite of the patch" in read.notes[0]


def test_a_split_may_be_the_broken_ones_alone_and_be_cut(folder):
    assert _load(folder, "undefended/broken").read(0, 9).ids == ("test:0", "test:2")
    assert _load(folder, "undefended/broken[1:]").read(0, 9).ids == ("test:2",)
    assert _load(folder, f"{SPECS[1]}[:2]").read(0, 9).ids == ("test:0", "test:1")


def test_the_other_spelling_is_the_same(folder):
    one = _load(folder, "undefended")
    other = data.load(
        "attacked", data_dir=folder, split="undefended", data_config=CONFIG, num_outputs=10
    )
    assert one.facts == other.facts
    assert one.name == other.name == "attacked"


def test_facts_tell_one_attack_from_another_by_pixels_and_settings(folder):
    first = _load(folder, "undefended").facts["attacked"]
    assert first["run"] == {"dataset": "digits"}
    assert first["attack"] == {"seed": 0}
    assert first["images_sha256"] != _load(folder, SPECS[1]).facts["attacked"]["images_sha256"]
    Image.fromarray(_pixels(0, SPECS[1])).save(folder / "undefended/0.png")
    assert first["images_sha256"] != _load(folder, "undefended").facts["attacked"]["images_sha256"]
    lines = attacked_sets.read_lines(folder).lines
    _write(folder, lines, settings={"attack": {"seed": 1}})
    assert first["attack_sha256"] != _load(folder, "undefended").facts["attacked"]["attack_sha256"]


def test_classes_keep_the_outputs_that_they_had(folder):
    lines = [
        {**line, "label": line["label"] % 3} for line in attacked_sets.read_lines(folder).lines
    ]
    classes = {"cat": 2, "dog": 0, "eel": 1}
    _write(folder, lines, settings={"classes": classes})
    read = _load(folder, "undefended")
    assert read.read(0, 9).labels.tolist() == [1, 0, 0]
    assert dict(read.classes) == classes
    # A model that chose among three of its ten outputs numbers these from 0.
    _write(folder, lines, settings={"classes": classes, "only_classes": [3, 5, 8]})
    assert _load(folder, "undefended").read(0, 9).labels.tolist() == [5, 3, 3]
    again = _load(folder, "undefended", only_classes=True)
    assert again.read(0, 9).labels.tolist() == [1, 0, 0]
    assert again.outputs == (3, 5, 8)


def test_given_patches_are_there_once_for_all_defenses(folder):
    lines = [
        {**line, "patch": "banana", "file": f"undefended/{line['number']}.png"}
        for line in attacked_sets.read_lines(folder).lines
        if line["broken"] is not None
    ]
    _write(folder, lines)
    assert _load(folder).read(0, 9).ids == ("test:0", "test:1", "test:2")
    assert _load(folder, "banana/broken").read(0, 9).ids == ("test:0", "test:2")


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (None, "expected split, whose patched images are meant: undefended, double_masking:masks"),
        ("undefnded", "got 'undefnded' (did you mean undefended?)"),
        (
            f"{SPECS[1]}/broken",
            f"expected images of {SPECS[1]} that are broken",
        ),
    ],
)
def test_a_split_that_there_is_not_is_said(folder, split, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        _load(folder, split)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [*lines[:2], lines[2][:30], *lines[3:]], "line 3 is damaged"),
        (lambda lines: [lines[0], '{"defense": "undefended"}'], "line 2 is damaged"),
        (lambda lines: ["[]", *lines[1:]], "in its first line"),
        (lambda lines: [lines[0].replace('"format": 1', '"format": 9')], "got format 9"),
        (lambda lines: [], "in its first line"),
    ],
)
def test_damaged_lines_are_said(folder, damage, said):
    path = folder / attacked_sets.LINES
    path.write_text("".join(line + "\n" for line in damage(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{re.escape(said)}"):
        _load(folder, "undefended")


def test_what_two_processes_wrote_at_the_same_time_counts_once(folder):
    path = folder / attacked_sets.LINES
    alone = attacked_sets.read_lines(folder)
    head, *lines = path.read_text().splitlines(keepends=True)
    given = json.dumps({**json.loads(lines[0]), "patch": "toaster"}) + "\n"
    path.write_text("".join([head, *lines, given, *lines[::-1], given]))
    twice = attacked_sets.read_lines(folder)
    assert twice.lines == [*alone.lines, json.loads(given)]


def test_images_of_another_size_than_the_model_wants_are_said_to_be_resized(folder):
    """A patch that is resized is another one, so what was broken need not be any more."""
    smaller = dataclasses.replace(CONFIG, input_size=(6, 6))
    [note] = [
        note for note in _load(folder, "undefended", data_config=smaller).notes if "6x6" in note
    ]
    assert "of 8x8 pixels are resized" in note
    for same in (_load(folder, "undefended"), _load(folder, "undefended", native=True,
                                                    data_config=smaller)):  # fmt: skip
        assert not any("resized" in note for note in same.notes)


def test_images_that_are_gone_and_folders_of_something_else_are_said(folder, tmp_path):
    (folder / "undefended/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        _load(folder, "undefended")
    with pytest.raises(FileNotFoundError, match="expected the folder of an attack"):
        _load(tmp_path / "nowhere", "undefended")
    with pytest.raises(ValueError, match="data_dir: expected none beside attacked:"):
        _load(folder, "undefended", data_dir=tmp_path)
