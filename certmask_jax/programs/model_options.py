"""The options that choose a model and its weights, alike in every program."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from certmask_jax.masks import geometry
from certmask_jax.models.vit_choices import ATTENTIONS, GELUS, POOLINGS
from certmask_jax.programs import paths, spec_keys
from certmask_jax.programs.chosen_model import ModelOptions
from certmask_jax.programs.number_options import whole
from certmask_jax.weights import Address, card_of
from certmask_jax.weights.installed_packages import InstalledPackage

_MOST_CLASSES = 32767  # labels are int16 in tables
_MOST_PIXELS = 8192  # a side


def add(
    group: Any, *, model: str | None, about_model: str, weights_for: str | None, new_head: bool
) -> None:
    """Adds the options to an argument group.

    Args:
      group: argparse's.
      model: name of the default model, if there is one; ``about_model`` describes it.
      weights_for: what ``--weights`` does; None where weights are given otherwise.
      new_head: whether a fresh head makes sense.
    """
    group.add_argument(
        "--model",
        metavar="NAME",
        default=model,
        help="name, timm's too, or a PatchCleanser checkpoint's; certify --list names them; or "
        "your own, package.module:create, which is called with the options of models.create that "
        f"are given and returns a models.Model ({about_model})",
    )
    if weights_for is not None:
        group.add_argument(
            "--weights",
            type=paths.weights_address,
            metavar="FILE",
            help=f"{weights_for}: .npz (PyTorch's names, Google's ViT or BiT), .safetensors, an "
            "Orbax folder, or PyTorch's .pth, .th, .tar, .ckpt where torch is installed; or "
            "pip:NAME, the file of an installed package; or hf:OWNER/NAME[@REVISION] of the "
            "Hugging Face Hub, or timm:NAME, which say the model and its preprocessing too"
            + ("" if model is not None else " (default: those that ship with the model)"),
        )
    group.add_argument(
        "--weights-entry",
        metavar="NAME",
        help="which set of weights, where a file has several: state_dict_ema, ema_params, or "
        "what its names begin with (ema_model.) (default: a lone one, else the run says which)",
    )
    group.add_argument(
        "--num-classes",
        type=whole(1, _MOST_CLASSES),
        metavar="K",
        help="outputs of the model (default: what its weights or the data set have, else the "
        "model's own)",
    )
    group.add_argument(
        "--input-size",
        type=_size,
        metavar="N|HxW",
        help="pixels that the model sees, height x width (default: the model's own)",
    )
    add_of_vit(group, "gelu")
    group.add_argument(
        "--pooling", choices=POOLINGS, help="of a ViT: what the head looks at (default: token)"
    )
    add_of_vit(group, "attention")
    group.add_argument(
        "--resize-positions",
        action="store_true",
        help="resize a ViT's position embeddings to the input size (default: weights of another "
        "are refused)",
    )
    if new_head:
        group.add_argument(
            "--new-head",
            action="store_true",
            help="start a fresh head, whatever the weights have (default: theirs)",
        )


def add_of_vit(group: Any, option: str) -> None:
    """Adds an option of ViTs by its name, ``gelu`` or ``attention``, to a parser or its group."""
    choices, about = {
        "gelu": (
            GELUS,
            "of a ViT: tanh is what Google's own weights were trained with (default: exact, as "
            "timm runs them)",
        ),
        "attention": (
            ATTENTIONS,
            "of a ViT: cudnn is cuDNN's flash attention, on NVIDIA GPUs with --precision bfloat16 "
            "(default: xla, which runs anywhere)",
        ),
    }[option]
    group.add_argument(f"--{option}", choices=choices, help=about)


def may_say_model(address: Address | None) -> bool:
    """Whether a card may say what weights are of: where they are published, or in a file itself."""
    if isinstance(address, Path):
        return card_of(address) is not None
    return address is not None and not isinstance(address, InstalledPackage)


def read(
    arguments: argparse.Namespace, *, model: str | None, address: Address | None = None
) -> ModelOptions:
    """Arguments -> options.

    Args:
      arguments: as they were parsed.
      model: the name that they come down to; None where the weights may say it.
      address: of the weights, where no option says it.
    """
    return ModelOptions(
        model=model or "",
        num_classes=arguments.num_classes,
        input_size=arguments.input_size,
        gelu=arguments.gelu,
        pooling=arguments.pooling,
        attention=arguments.attention,
        encoding=getattr(arguments, "encoding", None),
        weights=address or getattr(arguments, "weights", None),
        card=None,
        weights_entry=getattr(arguments, "weights_entry", None),
        new_head=getattr(arguments, "new_head", False),
        resize_positions=arguments.resize_positions,
        can_start_head=hasattr(arguments, "new_head"),
    )


def _size(text: str) -> tuple[int, int]:
    try:
        size = geometry.as_size(spec_keys.size(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if max(size) > _MOST_PIXELS:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_PIXELS} pixels, got {text!r}")
    return size
