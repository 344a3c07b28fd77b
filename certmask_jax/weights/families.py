"""What weights look like: family, depth, tokens, classes; for errors that say what is wrong.

Judged from timm's names and the shapes in PyTorch's layout alone, so that a file and a model are
described in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]
"""PyTorch name -> shape in PyTorch's layout."""

_HEADS = ("head.fc", "head", "fc", "linear")
# A family, by a name that it has and others have not; the first that fits.
_FAMILIES = (
    ("ViT", "blocks.0.attn.qkv.weight"),
    ("ResMLP", "blocks.0.linear_tokens.weight"),
    ("MLP-Mixer", "blocks.0.mlp_tokens.fc1.weight"),
    ("BiT ResNetV2", "stages.0.blocks.0.norm1.weight"),
    ("BagNet", "conv2.weight"),  # its stem has two convolutions
    ("ResNet", "layer4.0.conv1.weight"),
    ("CIFAR ResNet", "layer3.0.conv1.weight"),
)


def is_head(name: str) -> bool:
    """Whether an entry belongs to the last layer, which gives the logits."""
    return name.rpartition(".")[0] in _HEADS


def is_before_head(name: str) -> bool:
    """Whether it belongs to the hidden layer that ViTs have before an ImageNet-21k head."""
    return name.startswith("pre_logits.")


def num_classes(shapes: Shapes) -> int | None:
    """K, or None without a head."""
    return next((shape[0] for name, shape in shapes.items() if is_head(name) and shape), None)


def family(shapes: Shapes) -> str | None:
    """Such as ``"ViT"``; None when it is not known."""
    return next((found for found, name in _FAMILIES if name in shapes), None)


def describe(shapes: Shapes) -> str:
    """Such as ``"a ViT (12 blocks, width 192, 4x4 tokens, 10 classes)"``."""
    kind = family(shapes)
    if kind is None:
        return "a family that is not known here"
    facts = [f"{_blocks(shapes)} blocks"]
    tokens = shapes.get("patch_embed.proj.weight", shapes.get("stem.proj.weight", ()))
    if len(tokens) == 4:
        facts += [f"width {tokens[0]}", f"{tokens[2]}x{tokens[3]} tokens"]
    classes = num_classes(shapes)
    facts.append("no head" if classes is None else f"{classes} classes")
    return f"a {kind} ({', '.join(facts)})"


def likely_causes(file: Shapes, model: Shapes, resizable: bool) -> str:
    """Why a file does not fit a model, and what to do; both as shapes under PyTorch's names.

    Args:
      resizable: whether resizing the position embeddings would make them fit.
    """
    wrong = {name for name in {*file, *model} if file.get(name) != model.get(name)}
    heads = {name for name in wrong if is_head(name)}
    before = {name for name in wrong if is_before_head(name)}
    positions = {"pos_embed"} & wrong & set(file) if resizable else set()
    got, wanted = num_classes(file), num_classes(model)
    causes = []
    if before:
        causes.append(
            "a hidden layer before the head, as ImageNet-21k files have; "
            f"{_request('new_head')} replaces both"
        )
    elif heads and got is None:
        causes.append(f"no head in the file; {_request('new_head')} starts one")
    elif heads and got != wanted:
        causes.append(
            f"another number of classes: try --num-classes {got} (num_classes={got}), or "
            f"{_request('new_head')} for a fresh head"
        )
    if positions:
        causes.append(
            f"another input size ({file['pos_embed'][1]} positions instead of "
            f"{model['pos_embed'][1]}): {_request('resize_positions')} resizes them"
        )
    if not wrong - heads - before - positions and causes:
        return f"Likely {', and '.join(causes)}"
    if describe(file) != describe(model):
        return (
            f"Likely another model: expected {describe(model)}, the file looks like "
            f"{describe(file)}"
        )
    return "Likely another variant, or a file that is cut short"


def _request(keyword: str) -> str:
    # Not every program that reads weights has the option; the converter has.
    return f"{keyword}=True (--{keyword.replace('_', '-')} of experiments.train, convert_weights)"


def _blocks(shapes: Shapes) -> int:
    pattern = re.compile(r"((?:stages\.\d+\.)?blocks|layer\d+)\.(\d+)\.")
    return len({match.groups() for name in shapes if (match := pattern.match(name))})
