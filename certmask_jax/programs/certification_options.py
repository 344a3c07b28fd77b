"""The command line of certification: what can be typed, and what is said of it."""

from __future__ import annotations

import argparse

from certmask_jax.inference import views
from certmask_jax.inference.preprocessing import ENCODINGS
from certmask_jax.programs import (
    data_options,
    model_options,
    page_options,
    parts_options,
    paths,
    printing,
    program,
    runtime,
    threat_options,
)
from certmask_jax.programs.command_line import CommandLine
from certmask_jax.programs.number_options import number, seed, whole

MOST_MASKED_IMAGES = 1 << 20  # at once: more than any device holds
HIDDEN_TOKENS = ("fill", "drop")
PRECISIONS = ("highest", "high", "default", "bfloat16")


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(
        prog=program.command("certify"),
        description="Certifies an image classifier against adversarial patches: runs the model on "
        "every masked image once, and reports what each defense answers and what is proved.",
        epilog="Example:\n"
        f"  {program.command('certify')} --dataset cifar10 --data-dir DIR \\\n"
        "      --model cifar_resnet20 --weights FILE --patch 5 \\\n"
        "      --defense double_masking:masks_per_axis=6",
    )
    parse.add_argument(
        "--list", action="store_true", help="name data sets, models and defenses, and no more"
    )
    group = parse.add_argument_group("what is classified")
    data_options.add(group)
    group = parse.add_argument_group("what classifies")
    model_options.add(
        group,
        model=None,
        about_model="default: the shipped model of the digits",
        weights_for="of the model",
        new_head=False,
    )
    group.add_argument(
        "--encoding",
        choices=tuple(ENCODINGS),
        help="how the model is told what is hidden, which decides its input channels: "
        + "; ".join(f"{name}, {about}" for name, about in ENCODINGS.items())
        + "; part of the result (default: as the model says itself, fill)",
    )
    group.add_argument(
        "--precision",
        default="highest",
        help="of products: highest (float32), high, default (the backend's), bfloat16; part of "
        "the result (default: %(default)s)",
    )
    group.add_argument(
        "--views",
        default=views.NONE,
        metavar="NAME[+NAME]",
        help="average the logits over views of each masked image, each of which is a forward pass: "
        + "; ".join(f"{name}, {about}" for name, about in views.ABOUT.items())
        + "; joined by +, every view of every view; part of the result (default: %(default)s)",
    )
    parts_options.add(group)
    group.add_argument(
        "--hidden-tokens",
        choices=HIDDEN_TOKENS,
        default="fill",
        help="what a ViT is given of a token that a mask hides: its fill as of all pixels, or "
        "nothing (drop: hidden tokens are left out of the sequence, as smoothed ViTs do, for less "
        "work); part of the result (default: %(default)s)",
    )
    group = parse.add_argument_group("what attacks and what defends")
    threat_options.add(group)
    group.add_argument(
        "--patched",
        type=seed,
        metavar="SEED",
        help="certify images that are patched already: on each a patch (of --patch, one size) of "
        "random noise at a random location, which SEED decides (default: images as they are)",
    )
    group.add_argument(
        "--patch-lives",
        choices=("input", "native"),
        default="input",
        help="in the image that the model sees, after any resize (the papers' way), or in the data "
        "set's own pixels: images are then masked first and resized on the device (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--defense",
        action="append",
        metavar="NAME[:key=value,...]",
        help="repeat for several; --list names them and their options; built_for=SIZE builds the "
        "masks for a patch larger than --patch; or your own, package.module:Class[:key=value,...], "
        "which is called with the masks and its keys (default: double_masking, "
        "challenger_masking, minority_reports, certmask and certmask_detection)",
    )
    group.add_argument(
        "--fill",
        default="mean",
        help="what masked pixels become: mean (the model's mean colour), black, gray, white, or "
        "pixel values such as 128 or 124,116,104 (default: %(default)s)",
    )
    group.add_argument(
        "--margin-guard",
        type=number(least=0),
        default=0.0,
        metavar="E",
        help="certify only images whose logit margins are all above E, or on evidence that no "
        "errors below E/2 change (default: %(default)s)",
    )
    group = parse.add_argument_group("how it runs")
    group.add_argument(
        "--decide",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out the masked images that can no longer change an answer or a verdict; "
        "--no-decide evaluates the whole table, for other defenses later (default: --decide)",
    )
    group.add_argument(
        "--whole-images",
        action="store_true",
        help="evaluate every masked image whole, also where a model's logits are local (BagNet): "
        "its distinct fields, each evaluated once, are the same for less (default: by fields where "
        "a model has them)",
    )
    group.add_argument(
        "--chunk",
        type=whole(1, MOST_MASKED_IMAGES),
        metavar="N",
        help="masked images that all devices evaluate at once (default: chosen by the model and "
        "the devices)",
    )
    group.add_argument(
        "--keep-evidence",
        action="store_true",
        help="keep what defenses on evidence see of each image too, local logits or logits of "
        "bands, for --from-tables with other defenses and for Python; --dry-run says how large "
        "that is (default: what they answer and prove alone)",
    )
    group.add_argument(
        "--page",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write report.html into the folder, one page that shows the results and every image, "
        "with what a patch could change there (a few seconds) (default: --page)",
    )
    page_options.add(group)
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would take (passes, operations, disk, time), from ten seconds of "
        "it, and no more (default: the run itself)",
    )
    group.add_argument(
        "--max-minutes",
        type=number(above=0),
        metavar="M",
        help="end cleanly when M minutes are over, or soon before, with exit status 3 if there is "
        "more to do; what compiles then is waited for, seconds for a large model; the same command "
        "goes on (default: no end)",
    )
    group.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="one of N jobs, 0 to N-1, each of which does every N-th block of images; then "
        f"{program.command('merge')} puts them together (default: %(default)s, all of it)",
    )
    runtime.add(group)
    group.add_argument(
        "--out",
        type=paths.run_path,
        help="folder for results, new or of this same run, which then goes on; local, or "
        "gs://BUCKET/FOLDER or s3://BUCKET/FOLDER (default: runs/DATASET-MODEL-HASH, the same for "
        "the same command)",
    )
    group.add_argument(
        "--from-tables",
        type=paths.run_path,
        metavar="RUN",
        help="print the defenses again from the tables of a run folder, without a model, or others "
        "(--patch, --defense) that its tables or kept evidence suffice for (default: a run with a "
        "model)",
    )
    printing.add(group)
    return parse
