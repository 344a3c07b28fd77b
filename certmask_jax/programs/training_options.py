"""The command line of training, and the recipe that it asks for."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from typing import Any, Literal, Union

from certmask_jax import models
from certmask_jax.inference.preprocessing import ENCODINGS
from certmask_jax.programs import data_options, model_options, parts_options, paths, program
from certmask_jax.programs.command_line import CommandLine, as_options, check_not_typed
from certmask_jax.programs.number_options import number, seed, whole
from certmask_jax.training import cutout
from certmask_jax.training.recipes import RECIPES, Recipe

_OF_CHECKPOINTS = ("resume", "checkpoint_every", "keep_best")
_OF_RESULTS = (*_OF_CHECKPOINTS, "out", "overwrite", "run_folder", "test_images", "max_steps")
_OF_SQUARES = ("cutout_size", "cutout_squares")
_OF_MASKS = ("cutout_patch", "cutout_masks")
_OF_BANDS = ("cutout_band",)
_TYPES: dict[str, Any] = {
    "epochs": whole(1, 100_000),
    "cutout_squares": whole(1, 1000),
    "copies": whole(1, 1000),
    "cutout_band": whole(1),
    "feature_window": whole(0),
    "learning_rate": number(above=0),
    "seed": seed,
}
_MOST_WORKERS = 256


def parser() -> CommandLine:
    """The command line; every field of the training recipe is an option."""
    parse = CommandLine(
        prog=program.command("train"),
        description="Trains a model with Cutout, or fine-tunes one, and writes its weights.",
        epilog="Without arguments it remakes the shipped digits model. The recipes, whose values "
        f"the options of that group replace one by one:\n{recipes_table()}",
    )
    group = parse.add_argument_group("what is trained on what")
    group.add_argument(
        "--dataset",
        default="digits",
        metavar="NAME",
        help="what to train on; certify --list names them (default: %(default)s)",
    )
    group.add_argument(
        "--data-dir",
        type=paths.local_path,
        metavar="DIR",
        help="where the data set was prepared (default: none, for digits alone)",
    )
    data_options.add_class_index(group)
    group.add_argument("--split", default="train", help="images to train on (default: %(default)s)")
    group.add_argument(
        "--test-split",
        default="test",
        metavar="SPLIT",
        help="images to evaluate on at the end (default: %(default)s)",
    )
    model_options.add(
        group,
        model=models.DEFAULT,
        about_model="default: %(default)s",
        weights_for="start from these (default: random)",
        new_head=True,
    )
    group.add_argument(
        "--encoding",
        choices=tuple(ENCODINGS),
        help="how the model is told what is hidden, which decides its input channels: "
        + "; ".join(f"{name}, {about}" for name, about in ENCODINGS.items())
        + " (default: as the model says itself, fill)",
    )
    parts_options.add(
        group,
        (
            "train the model as PatchCURE cuts it, a stem whose features lose the masks that "
            "--cutout says, and a head on what is left. Certify it with the same option",
            "the whole model, whose images lose them",
        ),
    )
    group = parse.add_argument_group("what is written")
    group.add_argument(
        "--out",
        type=paths.local_path,
        metavar="FILE",
        help="weights file (default: RUN_FOLDER or runs, /MODEL.npz)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace an existing --out (default: refuse)"
    )
    group.add_argument(
        "--run-folder",
        type=paths.local_path,
        metavar="DIR",
        help="for checkpoints, metrics.csv, curves.png (default: none of these are kept)",
    )
    group.add_argument(
        "--checkpoint-every",
        type=whole(1),
        metavar="STEPS",
        help="a checkpoint after so many steps too, in the run folder (default: one after each "
        "epoch)",
    )
    group.add_argument(
        "--keep-best",
        type=whole(1),
        default=1,
        metavar="N",
        help="how many checkpoints to keep beside the latest: the best by --held-out, else the "
        "last ones (default: %(default)s)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from the run folder's latest checkpoint, if any (default: a new run)",
    )
    group.add_argument(
        "--held-out",
        type=whole(0),
        default=0,
        metavar="N",
        help="keep N random training images out; their accuracy says which checkpoints are best "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--test-images",
        type=whole(1),
        default=500,
        metavar="N",
        help="how many images of the test split to evaluate at the end (default: %(default)s)",
    )
    group.add_argument(
        "--max-steps",
        type=whole(1),
        metavar="STEPS",
        help="stop after so many steps in all, then write and evaluate what there is: a try. The "
        "learning rates are those of the whole run, which --resume goes on with (default: the "
        "whole run)",
    )
    group = parse.add_argument_group("how images are read")
    group.add_argument(
        "--input",
        choices=("auto", "memory", "stream"),
        default="auto",
        help="all decoded once into memory, or each when its turn comes (default: what fits)",
    )
    group.add_argument(
        "--memory-mb",
        type=whole(0),
        default=2000,
        metavar="MB",
        help="what fits, for --input auto, in megabytes of decoded pixels (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=whole(1, _MOST_WORKERS),
        default=8,
        metavar="N",
        help="threads that decode (default: %(default)s)",
    )
    group.add_argument(
        "--on-unreadable",
        choices=("stop", "skip"),
        default="stop",
        help="images that cannot be decoded: stop, or skip, where the next image takes the place "
        "(default: stop)",
    )
    group.add_argument(
        "--measure-input",
        type=whole(1),
        nargs="?",
        const=50,
        metavar="STEPS",
        help="train nothing; say how busy the input keeps the device, from measurements of so many "
        "steps (50 if no number follows) (default: train)",
    )
    group = parse.add_argument_group("recipe")
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
    return parse


def read_recipe(arguments: argparse.Namespace) -> Recipe:
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


def check_uses(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Refuses options that this training has no use for.

    Raises:
      ValueError: naming them.
    """
    if arguments.measure_input is not None:
        check_not_typed(arguments, _OF_RESULTS, "with --measure-input, which trains nothing")
    if arguments.run_folder is None:
        needs = [arguments.typed[name] for name in _OF_CHECKPOINTS if name in arguments.typed]
        if needs:
            raise ValueError(f"{', '.join(needs)}: expected a --run-folder to keep checkpoints in")
    if arguments.input != "auto":
        check_not_typed(arguments, ("memory_mb",), f"with --input {arguments.input}")
    if arguments.weights is None:
        needs = ["new_head", "resize_positions", "weights_entry"]
        needs = [arguments.typed[name] for name in needs if name in arguments.typed]
        if needs:
            raise ValueError(f"{', '.join(needs)}: expected --weights to start from")
        if recipe.train != "all":
            raise ValueError(
                f"--train {recipe.train}: expected --weights to start from, since the rest of the "
                "model is left as it is"
            )
    if recipe.train == "head":
        if arguments.measure_input is not None:
            raise ValueError("--measure-input: has no use with --train head, which reads once")
    else:
        check_not_typed(arguments, ("copies",), f"with --train {recipe.train}")
    if recipe.optimizer != "sgd":
        check_not_typed(arguments, ("momentum",), f"with --optimizer {recipe.optimizer}")
    useless = () if recipe.cutout == "random" else _OF_SQUARES
    if recipe.cutout not in cutout.OF_MASKS:
        useless = (*useless, *_OF_MASKS)
    if recipe.cutout not in cutout.BANDS:
        useless = (*useless, *_OF_BANDS)
    check_not_typed(arguments, useless, f"with --cutout {recipe.cutout}")


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
