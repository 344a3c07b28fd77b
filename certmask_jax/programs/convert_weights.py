"""Converts weights between formats, checked against a model.

    certmask convert-weights IN OUT --model NAME

IN is .npz (PyTorch's names, Google's ViT or BiT), .safetensors, an Orbax folder, or PyTorch's .pth,
.pt, .th, .tar, .bin where PyTorch is installed; or pip:NAME, hf:OWNER/NAME or timm:NAME. OUT is
.safetensors (timm reads it), .npz, or an Orbax folder (.orbax or no suffix).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import jax

from certmask_jax import weights
from certmask_jax._text import counted
from certmask_jax.programs import model_options, paths, program
from certmask_jax.programs.command_line import CommandLine, check_not_typed
from certmask_jax.programs.number_options import seed


def parser() -> CommandLine:
    """The command line."""
    parse = CommandLine(
        prog=program.command("convert_weights"),
        description="Converts weights between formats, checked against a model.",
    )
    parse.add_argument(
        "source",
        type=paths.weights_address,
        metavar="IN",
        help="weights to read: a file, pip:NAME, hf:OWNER/NAME or timm:NAME",
    )
    parse.add_argument(
        "out",
        type=paths.local_output,
        metavar="OUT",
        help=".safetensors, .npz, or an Orbax folder to write",
    )
    model_options.add(
        parse,
        model=None,
        about_model="default: what is said of IN, where it is published",
        weights_for=None,
        new_head=True,
    )
    parse.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="of --new-head (default: %(default)s)"
    )
    parse.add_argument(
        "--overwrite", action="store_true", help="replace an existing OUT (default: refuse)"
    )
    return parse


def run(arguments: argparse.Namespace) -> None:
    """Reads, checks, writes; prints one line."""
    if not arguments.new_head:
        check_not_typed(arguments, ("seed",), "without --new-head, which it draws")
    if arguments.model is None and not model_options.may_say_model(arguments.source):
        raise ValueError(
            "--model: required for a file, which does not say what it is of (certify --list names "
            "them)"
        )
    out = arguments.out
    if out.exists() and not arguments.overwrite:
        raise FileExistsError(f"OUT {out}: exists already; --overwrite replaces it")
    weights.check_writable(out)
    options = model_options.read(arguments, model=arguments.model, address=arguments.source)
    options = options.with_card()
    said = None if options.card is None or options.new_head else options.card.num_classes
    model = options.create(num_classes=said)
    file = options.read(arguments.source)
    for note in options.taken(file, model)[1]:
        print(note, file=sys.stderr)
    params = options.load(file, model, seed=arguments.seed)
    weights.save(out, params, card=options.card_for(model))
    entries = len(jax.tree.leaves(params))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params["params"]))
    print(
        f"{out}: {model.name} with {counted(model.num_classes, 'class', 'classes')}, "
        f"{counted(entries, 'entry', 'entries')}, "
        f"{parameters:,} parameters, sha256 {weights.digest(params)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    run(parser().parse_args(argv))
    return 0
