"""Numbers and what they count agree: one image, and not one images."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from certmask_jax._text import counted

ROOT = Path(__file__).resolve().parents[1]
_THINGS = (
    "images|masks|defenses|steps|runs|places|patches|files|rows|columns|classes|devices|passes|"
    "searches|lines|tables|minutes|labels|models|entries|names|candidates|sizes|shapes|views|"
    "goals|certificates|alerts|cells"
)
_PLURAL = re.compile(rf" (?:\w+ )?(?:{_THINGS})\b")

# What these count is never one, or no number of things.
_NEVER_ONE = {
    "what is left without the window of {} cells around it",  # of 3x3 cells
    "A and {}: {} defenses in common",
    "All {} images of the run.",
    "All {} masks say",
    "all {} masks say",
    "local logits: all masked images of an image from {} distinct fields, as many as {} whole "
    "images have",
    "an attack in {} contradicts certificates of the same rows",  # a folder
    "it says nothing of a subset, and it is of {} of the {} images of {}",
    "time: {} expected, at {} images/s (measured on {}), and start-up",
    "time: {} expected, at {} passes/s in chunks of {}, {} of them padding (measured on {}), and "
    "start-up",
    "windows of {} cells, patchcure with {}",
    "views: logits are means over {} views of each masked image, which is {} forward passes: {}",
    "{} devices, 64 each",
    "{} masks, {} images",
    "{} names in it are",
    "{} of the {} images, drawn at random; the numbers above are of all.",
    "{} of the {} shapes of the patch have a map here.",
    "{} of {} images",
    "{} patches at once",
    "{} reach windows of {} cells",
    "{} shapes",
    "{} steps/s with real input, {} with one batch held constant; the device is busy {}% of the "
    "time; the input alone gives {} batches/s",
    "{} to {} ({} shapes)",
    "images{} {} {}% {}<{}, {} passes/s",
    "{}, {} images",
    "{}: expected a row for each of the {} images of {}, and its columns, but it is damaged ({})",
}


def test_one_is_one():
    assert counted(1, "image") == "1 image"
    assert counted(0, "image") == "0 images"
    assert counted(1000, "masked image") == "1,000 masked images"
    assert [counted(n, "pass", "passes") for n in (1, 2)] == ["1 pass", "2 passes"]


def _said(file):
    """Texts with numbers in them, but those of errors, which say what is expected."""
    tree = ast.parse(file.read_text())
    raised = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in raised:
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
            )


def test_no_text_counts_in_the_plural_alone():
    plurals = []
    for room in ("programs", "pages", "certification"):
        for file in sorted((ROOT / "certmask_jax" / room).rglob("*.py")):
            for text in _said(file):
                for part in text.split("{}")[1:]:
                    if _PLURAL.match(part):
                        plurals.append((str(file.relative_to(ROOT)), text))
    assert [one for one in plurals if one[1] not in _NEVER_ONE] == []
