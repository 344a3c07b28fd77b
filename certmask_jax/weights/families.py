"""What weights look like: family, depth, tokens, classes; for errors that say what is wrong.

Judged from timm's names and the shapes in PyTorch's layout alone, so that a file and a model are
described in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

from certmask_jax._settings import Naming

Shapes = Mapping[str, tuple[int, ...]]
"""PyTorch name -> shape in PyTorch's layout."""

_HEADS = ("head.fc", "head", "fc", "linear", "classifier")
# A family, by a name that it has and others have not; the first that fits.
_FAMILIES = (
    ("ViT", "blocks.0.attn.qkv.weight"),
    ("ResMLP", "blocks.0.linear_tokens.weight"),
    ("MLP-Mixer", "blocks.0.mlp_tokens.fc1.weight"),
    ("BiT ResNetV2", "stages.0.blocks.0.norm1.weight"),
    ("BagNet", "conv2.weight"),  # its stem has two convolutions
    ("ResNet", "layer4.0.conv1.weight"),
    ("CIFAR ResNet", "layer3.0.conv1.weight"),
    ("EfficientNet", "blocks.1.0.conv_pwl.weight"),
)
# Families that are no models here, for errors that say so.
_FOREIGN = (
    ("MobileNet", "conv_stem.weight"),
    ("Swin transformer", "layers.0.blocks.0.attn.qkv.weight"),
    ("ConvNeXt", "stages.0.blocks.0.conv_dw.weight"),
    ("DenseNet", "features.denseblock1.denselayer1.conv1.weight"),
    ("torchvision's VGG, AlexNet or ConvNeXt", "features.0.weight"),
    ("torchvision's ViT", "encoder.layers.encoder_layer_0.ln_1.weight"),
    ("Hugging Face's ViT", "encoder.layer.0.layernorm_before.weight"),
    ("OpenAI's CLIP", "visual.conv1.weight"),
)
# Parts that some ViTs have and those here have not.
_PARTS = (
    ("LayerScale", "blocks.0.ls1.gamma"),
    ("register tokens", "reg_token"),
    ("register tokens", "register_tokens"),
    ("a distillation token", "dist_token"),
    ("a norm after pooling", "fc_norm.weight"),
    ("squeeze-and-excitation", "blocks.0.0.se.conv_reduce.weight"),
    ("norms of queries and keys", "blocks.0.attn.q_norm.weight"),
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


def _seen_by_head(shapes: Shapes) -> tuple[int, ...]:
    return next((shape[1:] for name, shape in shapes.items() if is_head(name) and shape[1:]), ())


def prefixes(names: Set[str]) -> list[str]:
    """What stands in front of the names by which a family is known; ``""`` where nothing does."""
    ends = [mark for _, mark in _FAMILIES if mark != "conv2.weight"]  # blocks have that one too
    return list(
        dict.fromkeys(
            name[: len(name) - len(mark)]
            for mark in ends
            for name in sorted(names)
            if _ends(name, mark)
        )
    )


def family(shapes: Shapes) -> str | None:
    """The family, such as ``"ViT"``; None when it is not known."""
    return next((one for one, name in _FAMILIES if name in shapes), None)


def describe(shapes: Shapes) -> str:
    """A model in words, such as ``"a ViT (12 blocks, width 192, 4x4 tokens, 10 classes)"``."""
    kind = family(shapes)
    if kind is None:
        foreign = next((f for f, n in _FOREIGN if any(_ends(name, n) for name in shapes)), None)
        if foreign is not None:
            return f"{foreign}, which is no model here"
        return "a family that is not known here"
    facts = [f"{_blocks(shapes)} blocks"]
    tokens = shapes.get("patch_embed.proj.weight", shapes.get("stem.proj.weight", ()))
    if len(tokens) == 4:
        facts += [f"width {tokens[0]}", f"{tokens[2]}x{tokens[3]} tokens"]
    facts += [f"with {part}" for part, name in _PARTS if name in shapes]
    classes = num_classes(shapes)
    facts.append("no head" if classes is None else f"{classes} classes")
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind} ({', '.join(facts)})"


_OF_CHANNELS = (
    {3: "fill", 6: "complement", 4: "mask_channel"},  # of images in colour
    {1: "fill", 2: "complement"},  # of grey ones; a mask channel makes two as well
)
"""Input channels of models, and the encoding that has so many."""


def _other_pooling(file: Shapes, model: Shapes) -> str | None:
    """What a file's head sees of a ViT's tokens, where the model's sees something else.

    timm norms the mean of tokens (``fc_norm``), and else all tokens before one is taken (``norm``).
    """
    is_mean = "fc_norm.weight" in file
    if is_mean == ("fc_norm.weight" in model) or "norm.weight" not in {*file, *model}:
        return None
    return "mean" if is_mean else "token"


def likely_causes(file: Shapes, model: Shapes, resizable: bool, say: Naming) -> str:
    """Why a file does not fit a model, and what to do; both as shapes under PyTorch's names.

    Args:
      resizable: whether resizing the position embeddings would make them fit.
      say: how the reader names settings.
    """
    wrong = {name for name in {*file, *model} if file.get(name) != model.get(name)}
    heads = {name for name in wrong if is_head(name)}
    before = {name for name in wrong if is_before_head(name)}
    positions = {"pos_embed"} & wrong & set(file) if resizable else set()
    got, wanted = num_classes(file), num_classes(model)
    fresh = say("new_head", True)
    causes = []
    if before:
        causes.append(
            f"a hidden layer before the head, as ImageNet-21k files have; {fresh} replaces both"
        )
    elif heads and got is None:
        causes.append(f"no head in the file; {fresh} starts one, which has to be trained")
    elif heads and _seen_by_head(file) != _seen_by_head(model):
        causes.append(f"a head of other features: {fresh} starts one, which has to be trained")
    elif heads and got != wanted:
        causes.append(
            f"another number of classes: {say('num_classes', got)} takes the file's head, {fresh} "
            "starts a fresh one, which has to be trained"
        )
    if positions:
        causes.append(
            f"another input size ({file['pos_embed'][1]} positions instead of "
            f"{model['pos_embed'][1]}): {say('resize_positions', True)} resizes them"
        )
    pooling, norms = _other_pooling(file, model), set()
    if pooling is not None:
        norms = {name for name in wrong if name.partition(".")[0] in ("norm", "fc_norm")}
        causes.append(f"another pooling: {say('pooling', pooling)} is what the file's head sees")
    inputs = {name for name in wrong if _differs_in_input(file.get(name, ()), model.get(name, ()))}
    if len(inputs) == 1:
        (first,) = inputs
        given, asked = file[first][1], model[first][1]
        encoding = next((of[given] for of in _OF_CHANNELS if {given, asked} <= of.keys()), None)
        if encoding is not None:
            causes.append(
                f"another encoding of what is hidden ({file[first][1]} input channels instead of "
                f"{model[first][1]}): {say('encoding', encoding)} is for as many"
            )
    if not wrong - heads - before - positions - inputs - norms and causes:
        return f"Likely {', and '.join(causes)}"
    if describe(file) != describe(model):
        return (
            f"Likely another model: expected {describe(model)}, the file looks like "
            f"{describe(file)}"
        )
    return "Likely another variant, or a file that is cut short"


def _differs_in_input(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether these are kernels of convolutions ``(out, in, h, w)`` alike but for ``in``."""
    return (
        len(one) == len(other) == 4
        and one != other
        and (*one[:1], *one[2:])
        == (
            *other[:1],
            *other[2:],
        )
    )


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith((f".{end}", f"/{end}"))


def _blocks(shapes: Shapes) -> int:
    pattern = re.compile(r"((?:stages\.\d+\.)?blocks|layer\d+)\.(\d+(?:\.\d+)?)\.")
    return len({match.groups() for name in shapes if (match := pattern.match(name))})
