"""Text that can be written anywhere, and files that hold some."""

from __future__ import annotations

import os

import pytest

from certmask_jax._text import encodable, json_of, like, names_of, nearest, some, text_in
from certmask_jax.files.unreadable import UnreadableImage


@pytest.mark.parametrize("text", ["", "plain", "Bild \u00e4\n\u7d50\u679c", "\U0001f600"])
def test_what_can_be_written_stays(text):
    assert encodable(text) == text


def test_bytes_that_are_no_text_become_escapes():
    name = os.fsdecode(b"caf\xe9.png")
    assert encodable(name) == "caf\\udce9.png"
    encodable(name).encode()


def test_an_unreadable_image_is_named():
    error = UnreadableImage("3/x.png", "cut short", where="/data/3/x.png")
    assert str(error) == "/data/3/x.png: expected an image that can be decoded (cut short)"
    assert (error.image_id, error.why) == ("3/x.png", "cut short")


def test_text_of_a_file_is_utf_8_without_its_mark_and_other_bytes_are_named(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes("\ufeffK\u00e4fer\r\n".encode())
    assert text_in(file) == "K\u00e4fer\r\n"
    for content, got in (("a".encode("utf-16-le"), "zero bytes"), (b"\xff", "other bytes")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"a.csv: expected text in UTF-8, got {got}"):
            text_in(file)


def test_json_that_nests_too_deeply_is_damaged_like_any_other():
    assert json_of(b'{"a": [1]}') == {"a": [1]}
    assert json_of('{"a": 1, "a": 2}', each_object=list) == [("a", 1), ("a", 2)]
    for text in ("{", "[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(ValueError, match=r"."):
            json_of(text)


def test_some_names_and_how_many_there_are():
    assert some([]) == ""
    assert some(["a", "b"], 2) == "a, b"
    assert some(["a", "b", "c"], 2) == "a, b, ... (3 in all)"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("masks_per_axi", ["masks_per_axis"]),  # begun
        ("cifar_resnet2O", ["cifar_resnet20", "cifar_resnet32"]),  # each differs in one letter
        ("bagnett", ["bagnet"]),
        ("resnet18", ["cifar_resnet20", "cifar_resnet32"]),  # of that family
        ("x9", []),
        ("", []),
    ],
)
def test_the_names_that_are_like_a_word(word, expected):
    names = ["bagnet", "cifar_resnet20", "cifar_resnet32", "masks_per_axis", "vit"]
    assert sorted(nearest(word, names)) == expected
    assert (like(word, names) == "") == (not expected)


def test_names_that_may_be_meant_stand_in_a_sentence():
    assert like("resnet", ["aresnet1", "aresnet2"]).startswith(" (did you mean aresnet")
    assert " or aresnet" in like("resnet", ["aresnet1", "aresnet2"])
    assert like("digit", ["digits"]) == " (did you mean digits?)"


def test_names_are_listed_in_a_line_or_where_they_are_is_said():
    assert names_of({"a": 1, "b": 2}, "models", "list()") == "a, b"
    many = [f"name{i}" for i in range(99)]
    assert names_of(many, "models", "list()") == "the 99 models of list()"
