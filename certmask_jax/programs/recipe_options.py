"""The recipe of a training as options: each of its fields is one, described by its docstring."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from typing import Any, Literal, Union

from certmask_jax import models
from certmask_jax.programs.command_line import as_options
from certmask_jax.programs.number_options import number, seed, whole
from certmask_jax.training import cutout
from certmask_jax.training.recipes import RECIPES, Recipe

_TYPES: dict[str, Any] = {
    "epochs": whole(1, 100_000),
    "cutout_squares": whole(1, 1000),
    "copies": whole(1, 1000),
    "cutout_band": whole(1),
    "feature_window": whole(0),
    "bounds_patch": whole(0),
    "bounds_places": whole(1, 1000),
    "learning_rate": number(above=0),
    "seed": seed,
}


def add(group: Any) -> None:
    """Adds the options to an argument group."""
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        metavar="NAME",
        help="where the options below start from: "
        + "; ".join(f"{name}, {about}" for name, (about, _) in RECIPES.items())
        + " (default: head with --train head, digits for random vit_digits, patchcleanser with "
        "--weights, else from_scratch)",
    )
    kinds, about = typing.get_type_hints(Recipe), about_fields()
    for name, kind in kinds.items():
        text = f"{about[name]} (default: {_default(name)})".replace("%", "%%")
        group.add_argument(_flag(name), help=text, **_option(name, kind))
    group.add_argument(
        "--cutout-patch",
        action="append",
        metavar="PATCH",
        help="for cutout mask_set, two_masks and greedy: the patch that the masks hide, in pixels "
        "(5, 5x9) or percent of them (2%%); repeat for several sizes, one is drawn a step "
        "(default: 2%%)",
    )
    group.add_argument(
        "--cutout-masks",
        metavar="KEYS",
        help="for the same: the masks, as --defense of certify takes them: partition=2/3, "
        "masks_per_axis=4,split=even, ... (default: masks_per_axis=6; with --two-parts "
        "mask_stride=1, those of the defense patchcure)",
    )


def read(arguments: argparse.Namespace) -> Recipe:
    """The named recipe, with the fields that were given instead of its own.

    Raises:
      ValueError: for a value out of range.
    """
    name = arguments.recipe
    if name is None and arguments.train == "head":
        name = "head"
    elif name is None and arguments.weights is not None:
        name = "patchcleanser"
    elif name is None:
        name = "digits" if arguments.model == models.DEFAULT else "from_scratch"
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(arguments, field.name) is not None
    }
    with as_options(*(field.name for field in dataclasses.fields(Recipe))):
        return dataclasses.replace(RECIPES[name][1], **given)


def about_fields() -> dict[str, str]:
    """Field of the recipe -> what its docstring says of it: meaning and unit."""
    section = inspect.cleandoc(Recipe.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section.partition("\n\n")[0], re.MULTILINE)
    about = dict.fromkeys((field.name for field in dataclasses.fields(Recipe)), "see Recipe")
    for name, text in entries:
        plain = re.sub(r"(, see)? \(?:\w+:`[^`]*`\)?", "", " ".join(text.split()))
        plain = re.sub(r"[`\"]", "", plain).rstrip(".")
        about[name] = plain.replace("None for", f"{_shown(None)} is")
    about["cutout"] += ": " + "; ".join(f"{name}, {what}" for name, what in cutout.ABOUT.items())
    return about


def recipes_table() -> str:
    """Every field's value in every recipe, one line a field, indented."""
    rows = [["option", *RECIPES]]
    for field in dataclasses.fields(Recipe):
        values = [_shown(getattr(recipe, field.name)) for _, recipe in RECIPES.values()]
        rows.append([_flag(field.name), *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    )


def _default(name: str) -> str:
    """The value of a field, by recipe where they differ."""
    values = {key: _shown(getattr(recipe, name)) for key, (_, recipe) in RECIPES.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _shown(value: object) -> str:
    if value is None:
        return "chosen"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _option(name: str, kind: Any) -> dict[str, Any]:
    """argparse's arguments for a field of this type; None stands for the recipe's own value."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return {"choices": typing.get_args(kind), "metavar": "NAME"}
    if origin in (Union, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    return {"type": _TYPES.get(name, kind), "metavar": "N" if kind is int else "X"}
