"""The command line of training, and which of its options go together."""

from __future__ import annotations

import argparse

from certmask_jax import models
from certmask_jax.inference.preprocessing import ENCODINGS
from certmask_jax.programs import (
    data_options,
    model_options,
    parts_options,
    paths,
    program,
    recipe_options,
)
from certmask_jax.programs.command_line import CommandLine, check_not_typed
from certmask_jax.programs.number_options import whole
from certmask_jax.training import cutout
from certmask_jax.training.recipes import Recipe

_OF_CHECKPOINTS = ("resume", "checkpoint_every", "keep_best")
_OF_RESULTS = (*_OF_CHECKPOINTS, "out", "overwrite", "run_folder", "test_images", "max_steps")
_OF_SQUARES = ("cutout_size", "cutout_squares")
_OF_MASKS = ("cutout_patch", "cutout_masks")
_OF_BANDS = ("cutout_band",)
_MOST_WORKERS = 256


def parser() -> CommandLine:
    """The command line; every field of the training recipe is an option."""
    parse = CommandLine(
        prog=program.command("train"),
        description="Trains a model with Cutout, or fine-tunes one, and writes its weights.",
        epilog="Without arguments it remakes the shipped digits model. The recipes, whose values "
        f"the options of that group replace one by one:\n{recipe_options.recipes_table()}",
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
        type=paths.local_output,
        metavar="FILE",
        help="weights file (default: RUN_FOLDER or runs, /MODEL.npz)",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace an existing --out (default: refuse)"
    )
    group.add_argument(
        "--run-folder",
        type=paths.local_output,
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
    recipe_options.add(parse.add_argument_group("recipe"))
    return parse


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
