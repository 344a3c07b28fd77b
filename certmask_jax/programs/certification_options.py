"""The command line of certification, and the config that it comes down to."""

from __future__ import annotations

import argparse
import dataclasses
import re

from certmask_jax import models
from certmask_jax.files import storage
from certmask_jax.inference import views
from certmask_jax.inference.preprocessing import ENCODINGS
from certmask_jax.programs import (
    data_options,
    defense_specs,
    evidence_entries,
    model_options,
    page_options,
    parts_options,
    paths,
    printing,
    program,
    runtime,
    threat_options,
)
from certmask_jax.programs.command_line import (
    CommandLine,
    as_options,
    check_not_typed,
    check_uses,
    hint,
)
from certmask_jax.programs.data_options import DataOptions
from certmask_jax.programs.model_options import ModelOptions
from certmask_jax.programs.number_options import number, seed, whole
from certmask_jax.programs.page_options import PageOptions
from certmask_jax.programs.parts_options import PartsOptions
from certmask_jax.programs.runtime import Runtime
from certmask_jax.programs.threat_options import ThreatOptions

_OF_THREAT = ("patch", "patch_area", "sizes", "patches", "patch_region")
_OF_TABLES = (*_OF_THREAT, "from_tables", "defense", "margin_guard", "format", "out")
_OF_WRITING = (
    *("margin_guard", "max_minutes", "format", "out", "page"),
    *page_options.DESTINATIONS,
)
MOST_MASKED_IMAGES = 1 << 20  # at once: more than any device holds
HIDDEN_TOKENS = ("fill", "drop")
PRECISIONS = ("highest", "high", "default", "bfloat16")
_NAMED_FILLS = {"black": (0.0,), "gray": (127.5,), "white": (255.0,)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to certify; one field for each option of the command line."""

    data: DataOptions
    model: ModelOptions
    patch_lives: str
    threat: ThreatOptions
    patched: int | None
    fill: str
    defenses: tuple[str, ...]
    precision: str
    views: str
    two_parts: PartsOptions | None
    hidden_tokens: str
    decide: bool
    whole_images: bool
    chunk: int | None
    margin_guard: float
    shard: tuple[int, int]
    max_minutes: float | None
    keep_evidence: bool
    page: bool
    shown: PageOptions
    dry_run: bool
    runtime: Runtime
    out: storage.AnyPath | None
    from_tables: storage.AnyPath | None
    format: str


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


def check_modes(arguments: argparse.Namespace) -> None:
    """Refuses options that what is asked for has no use for.

    Raises:
      ValueError: naming them.
    """
    if arguments.list:
        check_uses(arguments, ("list",), "with --list, which names what there is and does no more")
    if arguments.dry_run:
        check_not_typed(arguments, _OF_WRITING, "as --dry-run prints no results and writes none")
    if arguments.from_tables is None:
        _check_on_evidence(arguments)
        if arguments.dataset == "digits":
            check_not_typed(arguments, ("on_unreadable",), "with digits, which are embedded")


def check_from_tables(arguments: argparse.Namespace) -> None:
    """Refuses options that ``--from-tables`` has no use for; ``ValueError`` names them."""
    check_uses(
        arguments,
        _OF_TABLES,
        "with --from-tables, which prints what the tables of a run hold (another data set, model "
        "or fill is another run)",
    )
    placed = [arguments.typed[d] for d in ("patches", "patch_region") if d in arguments.typed]
    if placed and not (arguments.patch or arguments.patch_area or arguments.sizes):
        raise ValueError(
            f"{', '.join(placed)}: expected the whole threat with --from-tables, --patch (or "
            "--patch-area, --sizes) too; without any of them it is that of the run"
        )


def read_config(arguments: argparse.Namespace) -> Config:
    """Arguments -> config, after ``check_modes``; ``ValueError`` for what is not possible."""
    if arguments.precision not in PRECISIONS:
        like = hint(arguments.precision, PRECISIONS)
        raise ValueError(
            f"--precision: expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, got "
            f"{arguments.precision!r}{like or ' (highest is float32)'}"
        )
    with as_options("views"):
        views.read(arguments.views)
    read_fill(arguments.fill)
    for place, spec in enumerate(arguments.defense or ()):
        defense_specs.check(spec)
        if spec in arguments.defense[:place]:
            raise ValueError(f"--defense: expected each one once, got {spec} twice")
    chosen = data_options.read(arguments)
    model = arguments.model
    if model is None and not model_options.may_say_model(arguments.weights):
        if arguments.dataset != "digits" and arguments.from_tables is None:
            raise ValueError(
                f"--model: expected a model for data set {arguments.dataset!r} (--list names "
                "them); only digits has a default"
            )
        model = models.DEFAULT
    if arguments.weights is None and arguments.weights_entry is not None:
        raise ValueError("--weights-entry: expected --weights, a file to find it in, beside it")
    return Config(
        data=chosen,
        model=model_options.read(arguments, model=model),
        patch_lives=arguments.patch_lives,
        threat=threat_options.read(arguments),
        patched=arguments.patched,
        fill=arguments.fill,
        defenses=tuple(arguments.defense or ()),
        precision=arguments.precision,
        views=arguments.views,
        two_parts=parts_options.read(arguments.two_parts),
        hidden_tokens=arguments.hidden_tokens,
        decide=arguments.decide,
        whole_images=arguments.whole_images,
        chunk=arguments.chunk,
        margin_guard=arguments.margin_guard,
        shard=read_shard(arguments.shard),
        max_minutes=arguments.max_minutes,
        keep_evidence=arguments.keep_evidence,
        page=arguments.page,
        shown=page_options.read(arguments),
        dry_run=arguments.dry_run,
        runtime=runtime.read(arguments),
        out=arguments.out,
        from_tables=arguments.from_tables,
        format=arguments.format,
    )


def _check_on_evidence(arguments: argparse.Namespace) -> None:
    """Refuses options that defenses on evidence, where there are no others, have no use for."""
    specs = arguments.defense or ()
    if not specs or not all(map(evidence_entries.is_on_evidence, specs)):
        return
    check_not_typed(
        arguments,
        ("whole_images",),
        "with defenses on evidence alone, which evaluate no masked image (--keep-evidence keeps "
        "what they see, for other defenses later)",
    )
    if all(map(evidence_entries.is_local, specs)):
        mode = "with defenses on local logits alone, of which the model sees images as they are"
        check_not_typed(arguments, ("fill",), mode)


def read_shard(text: str) -> tuple[int, int]:
    """``"0/4"`` -> (0, 4)."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"--shard: expected I/N with I from 0 to N-1, such as 0/4 to 3/4, got {text!r}"
        )
    return int(match[1]), int(match[2])


def read_fill(text: str) -> tuple[float, ...] | None:
    """``"mean"`` -> None, a named or numbered fill -> pixel values in 0 to 255, per channel."""
    if text == "mean":
        return None
    if text in _NAMED_FILLS:
        return _NAMED_FILLS[text]
    try:
        values = tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--fill: expected mean, {', '.join(_NAMED_FILLS)}, or pixel values such as 128 or "
            f"124,116,104, got {text!r}{hint(text, ('mean', *_NAMED_FILLS))}"
        ) from error
    if len(values) not in (1, 3) or not all(0 <= value <= 255 for value in values):
        raise ValueError(
            f"--fill: expected one pixel value in [0, 255], or one for each of three channels, got "
            f"{text!r}"
        )
    return values
