"""Converts weights between formats, checked against a model.

    python -m experiments.convert_weights IN OUT --model NAME

IN is .npz (PyTorch's names, Google's ViT or BiT), .safetensors, an Orbax folder, or PyTorch's .pth,
.pt, .th, .tar, .bin where PyTorch is installed. OUT is .safetensors (timm reads it), .npz, or an
Orbax folder (.orbax or no suffix).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from certmask_jax import models, weights


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(
        prog="python -m experiments.convert_weights",
        description="Converts weights between formats, checked against a model.",
    )
    parse.add_argument("source", type=Path, metavar="IN", help="weights to read")
    parse.add_argument(
        "out", type=Path, metavar="OUT", help=".safetensors, .npz, or an Orbax folder to write"
    )
    parse.add_argument("--model", required=True, help="what the weights are for")
    parse.add_argument("--num-classes", type=int, help="default: the model's own")
    parse.add_argument(
        "--input-size", type=_size, help="pixels, 32 or 32x48 (default: the model's own)"
    )
    parse.add_argument(
        "--new-head", action="store_true", help="start a fresh head, whatever head IN has"
    )
    parse.add_argument("--seed", type=int, default=0, help="of it (default: %(default)s)")
    parse.add_argument(
        "--resize-positions",
        action="store_true",
        help="resize a ViT's position embeddings to the input size",
    )
    parse.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    return parse


def run(arguments: argparse.Namespace) -> None:
    """Reads, checks, writes; prints one line."""
    out = arguments.out
    if out.exists() and not arguments.overwrite:
        raise FileExistsError(f"OUT {out}: exists already; --overwrite replaces it")
    weights.check_writable(out)
    model = models.create(
        arguments.model, num_classes=arguments.num_classes, input_size=arguments.input_size
    )
    params = weights.load(
        arguments.source,
        model,
        new_head=arguments.new_head,
        resize_positions=arguments.resize_positions,
        seed=arguments.seed,
    )
    weights.save(out, params)
    entries = len(jax.tree.leaves(params))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params["params"]))
    print(
        f"{out}: {model.name} with {model.num_classes} classes, {entries} entries, "
        f"{parameters:,} parameters, sha256 {weights.digest(params)}"
    )


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"expected pixels such as 32 or 32x48, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status (2 for bad input)."""
    try:
        run(parser().parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
