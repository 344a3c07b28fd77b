"""The command line of training, and the recipe that it asks for."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any, Literal, Union

from certmask_jax import models
from certmask_jax.training import cutout
from certmask_jax.training.recipes import RECIPES, Recipe
from experiments import model_options, paths


def parser() -> argparse.ArgumentParser:
    """The command line; every field of the training recipe is an option."""
    parse = argparse.ArgumentParser(
        prog="python -m experiments.train",
        description="Trains a model with Cutout, or fine-tunes one, and writes its weights.",
        epilog="Without arguments it remakes the shipped digits model.",
    )
    group = parse.add_argument_group("what is trained on what")
    group.add_argument("--dataset", default="digits", help="name (default: %(default)s)")
    group.add_argument("--data-dir", type=paths.local_path, help="where the data set was prepared")
    group.add_argument("--split", default="train", help="to train on (default: %(default)s)")
    group.add_argument("--test-split", default="test", help="default: %(default)s")
    model_options.add(
        group,
        model=models.DEFAULT,
        about_model="default: %(default)s",
        weights_for="start from these (default: random)",
        new_head=True,
    )
    group = parse.add_argument_group("what is written")
    group.add_argument(
        "--out",
        type=paths.local_path,
        help="weights file (default: RUN_FOLDER or runs, /MODEL.npz)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    group.add_argument(
        "--run-folder",
        type=paths.local_path,
        help="for checkpoints, metrics.csv, curves.png (default: none)",
    )
    group.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="beside one after each epoch"
    )
    group.add_argument(
        "--keep-best", type=int, default=1, help="checkpoints beside the latest (default: 1)"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from the run folder's latest checkpoint, if any",
    )
    group.add_argument(
        "--held-out",
        type=int,
        default=0,
        metavar="N",
        help="keep N random training images out; their accuracy says which checkpoints are best",
    )
    group.add_argument(
        "--test-images", type=int, default=500, help="to evaluate at the end (default: 500)"
    )
    group = parse.add_argument_group("how images are read")
    group.add_argument(
        "--input",
        choices=("auto", "memory", "stream"),
        default="auto",
        help="all decoded once into memory, or each when its turn comes (default: what fits)",
    )
    group.add_argument(
        "--memory-mb", type=int, default=2000, help="what fits, for auto (default: %(default)s)"
    )
    group.add_argument("--workers", type=int, default=8, help="threads that decode (default: 8)")
    group.add_argument(
        "--on-unreadable",
        choices=("stop", "skip"),
        default="stop",
        help="skip: the next image takes its place (default: stop)",
    )
    group.add_argument(
        "--measure-input",
        type=int,
        nargs="?",
        const=50,
        metavar="STEPS",
        help="train nothing; say how busy the input keeps the device",
    )
    group = parse.add_argument_group("recipe")
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="where the options below start from: "
        + "; ".join(f"{name}, {about}" for name, (about, _) in RECIPES.items())
        + " (default: digits for random vit_digits, patchcleanser with --weights, else "
        "from_scratch)",
    )
    kinds = typing.get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        group.add_argument(f"--{field.name.replace('_', '-')}", **_option(kinds[field.name]))
    group.add_argument(
        "--cutout-patch",
        action="append",
        metavar="PATCH",
        help="for cutout mask_set, two_masks and greedy: the patch that the masks hide (5, 5x9, "
        "2%%; default 2%%); repeat for several sizes, one is drawn a step",
    )
    group.add_argument(
        "--cutout-masks",
        default="masks_per_axis=6",
        metavar="KEYS",
        help="the masks, as --defense takes them: partition=2/3, masks_per_axis=4,split=even, ... "
        "(default: %(default)s)",
    )
    return parse


def read_recipe(arguments: argparse.Namespace) -> Recipe:
    """The named recipe, with the fields that were given instead of its own.

    Raises:
      ValueError: for a value out of range.
    """
    name = arguments.recipe
    if name is None and arguments.weights is not None:
        name = "patchcleanser"
    elif name is None:
        name = "digits" if arguments.model == models.DEFAULT else "from_scratch"
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Recipe)
        if getattr(arguments, field.name) is not None
    }
    return dataclasses.replace(RECIPES[name][1], **given)


def _option(kind: Any) -> dict[str, Any]:
    """argparse's arguments for a field of this type; None stands for the recipe's own value."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        about = " (" + "; ".join(f"{n}: {a}" for n, a in cutout.ABOUT.items()) + ")"
        return {
            "choices": choices,
            "help": "default: the recipe's" + (about if kind == cutout.Cutout else ""),
        }
    if origin in (Union, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": "default: the recipe's"}
    return {"type": kind, "help": "default: the recipe's"}
