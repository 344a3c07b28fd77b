"""The options of ``certmask benchmark``, and which measurement has a use for which."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from certmask_jax.programs import model_options, paths, runtime
from certmask_jax.programs.certification_options import MOST_MASKED_IMAGES, PRECISIONS
from certmask_jax.programs.command_line import CommandLine, check_uses
from certmask_jax.programs.measurements import absent_devices
from certmask_jax.programs.measurements.subjects import check_job
from certmask_jax.programs.number_options import whole

MEASUREMENTS = {
    "speed": "plain and masked forward pass, whole job, share of the peak, PyTorch",
    "passes": "forward passes an image, by mode",
    "fields": "the distinct fields of a model with local logits (BagNet), against whole images",
    "evidence": "defenses on local logits (PatchGuard, ...) over the plain pass of the same model",
    "analysis": "PatchGuard's certificate of evidence over a plain loop over windows in NumPy",
    "attack": "steps of the search for a patch, beside PyTorch's, and with few masks",
    "packing": "CPU time of runs of 1 to --images images over that of their useful passes",
    "latency": "of the defended predictor",
    "serving": "of a guard in one file, against PatchCleanser's loop over a plain model",
    "invariance": "logits in other batch positions, shapes and device counts",
    "scaling": "over 1, 2, 4, 8 devices",
    "storage": "tables on disk",
    "start_up": "of a process, with and without compiled programs on disk",
    "memory": "peak, by number of masks and of images",
}
"""Name -> what is measured."""

_MODEL = ("model", "precision", "gelu", "attention")  # what is measured without a job
USES = {
    "speed": ("job", *_MODEL, "images", "repeat", "chunk"),
    "passes": ("job", "precision", "images", "chunk"),
    "fields": ("job", *_MODEL, "repeat"),
    "evidence": ("job", *_MODEL, "repeat"),
    "analysis": ("evidence", "repeat"),
    "attack": ("job", *_MODEL, "repeat"),
    "packing": ("job", *_MODEL, "images", "repeat", "chunk"),
    "latency": ("job", "precision", "repeat", "chunk"),
    "serving": ("job", "precision", "repeat", "chunk"),
    "invariance": ("job", "precision"),
    "scaling": ("job", *_MODEL, "repeat"),
    "storage": ("repeat",),
    "start_up": ("job", *_MODEL),
    "memory": ("job", *_MODEL, "most_masks", "most_images"),
}
"""Name -> the options that it has a use for."""
_USED_BY_COMPILING = ("job", *_MODEL, "chunk", "compile_for")
_LEAST_MASKS, _LEAST_IMAGES = 36, 1000  # of the least case of memory
_MOST_IMAGES, _MOST_ROUNDS = 1_000_000, 1000
_WHOLE_ONLY = ("speed", "passes", "fields", "evidence", "packing", "serving")
_ALWAYS = ("only", "out", "cpu_devices", "compilation_cache", "distributed", "child")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    job: tuple[str, ...] | None
    model: str
    precision: str
    gelu: str | None
    attention: str | None
    images: int
    repeat: int
    chunk: int | None
    most_masks: int
    most_images: int
    measurements: tuple[str, ...]
    compile_for: str | None
    evidence: Path | None
    runtime: runtime.Runtime
    out: Path


def add(parse: CommandLine) -> None:
    """Adds the options."""
    parse.add_argument(
        "--job",
        metavar="OPTIONS",
        help="options of certify, in quotes: its model, images and first defense are "
        "measured (default: --model with random weights on random images; passes, latency and "
        "invariance of the embedded default)",
    )
    parse.add_argument(
        "--model",
        metavar="NAME",
        default="cifar_resnet20",
        help="what is measured without --job (default: %(default)s)",
    )
    parse.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="highest",
        metavar="NAME",
        help="of products, without --job: highest (float32), high, default (the backend's), "
        "bfloat16 (default: %(default)s)",
    )
    for option in _MODEL[2:]:
        model_options.add_of_vit(parse, option)
    parse.add_argument(
        "--images",
        type=whole(1, _MOST_IMAGES),
        default=32,
        metavar="N",
        help="images, of which all masked ones (default: %(default)s)",
    )
    parse.add_argument(
        "--repeat",
        type=whole(1, _MOST_ROUNDS),
        default=5,
        metavar="N",
        help="rounds of each measurement (default: %(default)s)",
    )
    parse.add_argument(
        "--chunk",
        type=whole(1, MOST_MASKED_IMAGES),
        metavar="N",
        help="masked images at once (default: chosen)",
    )
    parse.add_argument(
        "--most-masks",
        type=whole(_LEAST_MASKS),
        default=1176,
        metavar="N",
        help="of memory, in masks, to 3750 (default: %(default)s)",
    )
    parse.add_argument(
        "--most-images",
        type=whole(_LEAST_IMAGES),
        default=10_000,
        metavar="N",
        help="of memory, in images, to 50000 (default: %(default)s)",
    )
    parse.add_argument(
        "--evidence",
        type=paths.local_path,
        metavar="FILE",
        help="for analysis: an .npz file with local_logits [T, H, W, K] and label [T] (default: "
        "random ones, of BagNet-17's shape)",
    )
    parse.add_argument(
        "--only",
        action="append",
        choices=MEASUREMENTS,
        metavar="MEASUREMENT",
        help="; ".join(f"{name}: {about}" for name, about in MEASUREMENTS.items())
        + " (default: all; repeat for several)",
    )
    parse.add_argument(
        "--compile-for",
        choices=absent_devices.TARGETS,
        metavar="DEVICE",
        help="measure nothing: compile for four of a kind of accelerator that is not here (h100 or "
        "tpu-v5e), whose compiler has to be installed, and say what came out and what speed the "
        "compiler lets expect (default: measure)",
    )
    parse.add_argument(
        "--out",
        type=paths.local_output,
        default="runs/benchmark.json",
        metavar="FILE",
        help="JSON file to write (default: %(default)s)",
    )
    runtime.add(parse)
    parse.add_argument("--child", nargs="+", help=argparse.SUPPRESS)


def read_config(arguments: argparse.Namespace) -> Config:
    """Arguments -> config; ``ValueError`` for options without use, or a job that is none."""
    names = tuple(dict.fromkeys(arguments.only or MEASUREMENTS))
    if arguments.compile_for:
        names = ()
        used_ones = {*_USED_BY_COMPILING, *_ALWAYS} - {"only"}
        check_uses(arguments, used_ones, "with --compile-for, which runs nothing")
    elif not arguments.child:
        used = {option for name in names for option in USES[name]}
        check_uses(arguments, {*used, *_ALWAYS}, f"in {', '.join(names)}")
    job = arguments.job
    if job is not None:
        others = set(arguments.typed) - set(_MODEL)
        check_uses(arguments, others, "with --job, which has its own")
        try:
            job = tuple(shlex.split(job))
            asked = check_job(job)
            if asked.two_parts is not None:
                _check_whole(names, arguments.compile_for)
            _check_attention(asked.model.attention, asked.precision, arguments.compile_for)
        except ValueError as error:
            raise ValueError(f"--job: {error}") from error
    else:
        _check_attention(arguments.attention, arguments.precision, arguments.compile_for)
    return Config(
        job,
        arguments.model,
        arguments.precision,
        arguments.gelu,
        arguments.attention,
        arguments.images,
        arguments.repeat,
        arguments.chunk,
        arguments.most_masks,
        arguments.most_images,
        names,
        arguments.compile_for,
        arguments.evidence,
        runtime.read(arguments),
        arguments.out,
    )


def _check_whole(names: Sequence[str], compile_for: str | None) -> None:
    """``ValueError`` where a model in two parts would be measured as if it were run whole."""
    whole_ones = [name for name in names if name in _WHOLE_ONLY]
    if compile_for or whole_ones:
        what = f"--compile-for {compile_for}" if compile_for else f"--only {whole_ones[0]}"
        raise ValueError(
            f"--two-parts: expected a model that is run whole for {what}; leave it out, or measure "
            "latency, invariance or attack (--only), which run a model in two parts as it is"
        )


def _check_attention(attention: str | None, precision: str, compile_for: str | None) -> None:
    """``ValueError`` for cuDNN's attention where it cannot be, as far as options say."""
    if attention != "cudnn":
        return
    if compile_for:
        raise ValueError(
            f"--attention: expected xla with --compile-for {compile_for}, got cudnn, which JAX "
            "compiles only where cuDNN is, on a machine with such a GPU; measure it there (--only "
            "speed)"
        )
    if precision != "bfloat16":
        raise ValueError(
            f"--attention: expected cudnn with --precision bfloat16 alone, got {precision}"
        )
