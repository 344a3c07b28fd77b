"""The command line of every program: what was typed, what does not apply, and what --help says."""

from __future__ import annotations

import argparse
import dataclasses
import re

import pytest

from certmask_jax.programs import (
    benchmark,
    certification_options,
    choose,
    convert_weights,
    merge,
    recipe_options,
    training_options,
)
from certmask_jax.programs.command_line import CommandLine, as_options, check_uses, hint, named
from certmask_jax.programs.number_options import number, whole
from certmask_jax.training.recipes import RECIPES, Recipe

PARSERS = {
    "certify": certification_options.parser,
    "choose": choose.parser,
    "train": training_options.parser,
    "merge": merge.parser,
    "convert_weights": convert_weights.parser,
    "benchmark": benchmark.parser,
}


def _small():
    parse = CommandLine(prog="p", description=None)
    parse.add_argument("--size", default="5")
    parse.add_argument("--sizes-too", action="append")
    parse.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True)
    parse.add_argument("--maybe", nargs="?", const="there")
    parse.add_argument("--count", type=int, default=1)
    parse.add_argument("files", nargs="*")
    return parse


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        ("", {}),
        ("--size 5", {"size": "--size"}),  # its default, and typed yet
        ("--size=5 --no-keep", {"size": "--size", "keep": "--no-keep"}),
        ("--sizes-too 1 --sizes-too 2", {"sizes_too": "--sizes-too"}),
        ("a b --maybe", {"maybe": "--maybe"}),
        ("-- --size", {}),
    ],
)
def test_what_was_typed_is_known_whatever_its_value(words, typed):
    assert _small().parse_args(words.split()).typed == typed


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--size -3", "size", "-3"),
        ("--size -3x4", "size", "-3x4"),
        ("--size -1e-3", "size", "-1e-3"),
        ("--size -.5", "size", "-.5"),
        ("--size -inf", "size", "-inf"),
        ("--sizes-too -1 --sizes-too -2x2", "sizes_too", ["-1", "-2x2"]),
        ("--maybe --size 3", "maybe", "there"),
    ],
)
def test_a_word_like_a_negative_number_is_a_value(words, name, value):
    assert getattr(_small().parse_args(words.split()), name) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--siz 5", r"^--siz: there is no such option \(did you mean --size\?\)$"),
        ("--other", r"^--other: there is no such option \(see --help\)$"),
        ("--size", "^--size: expected a value, got none$"),
        ("--size --keep", "^--size: expected a value, got none$"),
        ("--size 1 --size 2", "^--size: expected once, got --size 1 and --size 2$"),
        ("--size 1 --size=1", "^--size: expected once"),
        ("--keep --no-keep", "^--keep: expected once, got --keep and --no-keep$"),
        ("--keep=yes", "^--keep/--no-keep: expected no value, got 'yes'$"),
        ("--count two", "^--count: expected a whole number, got 'two'$"),
        ("-x", "^-x: there is no such option"),
    ],
)
def test_errors_are_one_line_that_names_the_option(words, message):
    with pytest.raises(ValueError, match=message) as raised:
        _small().parse_args(words.split())
    assert "\n" not in str(raised.value)


def test_options_without_use_are_named_as_they_were_typed():
    arguments = _small().parse_args(["--no-keep", "--size", "5", "--count", "3"])
    check_uses(arguments, ("keep", "size", "count"), "here")
    with pytest.raises(ValueError, match=r"^--count: has no use here; leave it out$"):
        check_uses(arguments, ("keep", "size"), "here")
    with pytest.raises(ValueError, match=r"^--no-keep, --size: have no use here; leave them out$"):
        check_uses(arguments, ("count",), "here")


def test_words_for_another_program_are_whole_options():
    words = ["a", "--size", "-3", "--keep", "--sizes-too=1", "--count", "2", "--sizes-too", "--3"]
    kept = _small().without(words, ("count", "keep"))
    assert kept == ["--size", "-3", "--sizes-too=1", "--sizes-too", "--3"]
    assert _small().without(["--no-keep", "--count=2", "b"], ("count",)) == ["--no-keep"]


def test_errors_of_the_library_begin_with_the_option():
    for text, begins in (
        ("held_out: expected 3", "--held-out: expected 3"),
        ("expected 3", "--held-out: expected 3"),
        ("n: expected 3", "--held-out: expected 3"),
        ("--other: expected 3", "--other: expected 3"),
    ):
        with pytest.raises(ValueError, match=f"^{begins}$"), named("--held-out", "n"):
            raise ValueError(text)
    with pytest.raises(ValueError, match=r"^--input-size: odd$"), as_options("input_size"):
        raise ValueError("input_size: odd")
    with pytest.raises(ValueError, match=r"^size: odd$"), as_options("input_size"):
        raise ValueError("size: odd")


@pytest.mark.parametrize(
    ("word", "names", "expected"),
    [
        ("mask_per_axis", ["masks_per_axis", "mask_size"], "masks_per_axis"),
        ("--num", ["--num-classes", "--new-head"], "--num-classes"),
        ("nothing", ["masks_per_axis"], None),
        ("float32", ["highest", "bfloat16"], None),  # another number, not a slip of the finger
        ("float16", ["float32", "bfloat16"], "float32"),
        ("bfloat", ["float32", "bfloat16"], "bfloat16"),
    ],
)
def test_did_you_mean(word, names, expected):
    assert hint(word, names) == (f" (did you mean {expected}?)" if expected else "")


def test_numbers():
    assert whole(1, 3)(" 3 ") == 3
    for text in ("0", "4", "x", "1.0", "1_0", "\u0663", "", "1" * 5000, "nan"):
        with pytest.raises(argparse.ArgumentTypeError):
            whole(1, 3)(text)
    assert number(above=0, below=1)("1e-3") == 1e-3
    for text in ("0", "1", "nan", "inf", "-inf", "x", "1_0", "\u0663", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            number(above=0, below=1)(text)


# --- what --help says ---


@pytest.mark.parametrize("name", PARSERS)
def test_help_fits_80_columns_and_says_every_default(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    parse = PARSERS[name]()
    text = parse.format_help()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert not any(line.endswith(" ") for line in text.splitlines())
    for action in parse._actions:
        if action.help is argparse.SUPPRESS or action.dest in ("help", "list"):
            continue
        assert action.help, action.dest
        needs_default = action.option_strings and not action.required
        assert "default" in action.help or not needs_default, action.dest


def test_train_help_has_the_meaning_and_the_values_of_every_field():
    text = training_options.parser().format_help()
    about = recipe_options.about_fields()
    assert list(about) == [field.name for field in dataclasses.fields(Recipe)]
    assert "see Recipe" not in about.values()
    table = text[text.index("  option ") :].splitlines()
    assert table[0].split() == ["option", *RECIPES]
    rows = {row.split()[0]: row.split()[1:] for row in table[1:]}
    for field in dataclasses.fields(Recipe):
        option = "--" + field.name.replace("_", "-")
        assert re.search(rf"^  {option}[ ,]", text, re.MULTILINE)
        values = [getattr(recipe, field.name) for _, recipe in RECIPES.values()]
        words = {None: "chosen", True: "yes", False: "no"}
        shown = [str(v) if v is not None and not isinstance(v, bool) else words[v] for v in values]
        assert rows.pop(option) == shown
    assert rows == {}
    plain = " ".join(text.split())
    assert "side of the random squares in pixels; chosen is 128 at 224, scaled" in plain
    assert "passes over the training images (default: patchcleanser 10, from_scratch 100" in plain
    assert "of sgd, the fraction of the step before that is taken again (default: 0.9)" in plain
    assert "`" not in text
