"""Google's published ViT and BiT files, under timm's names and in PyTorch's layouts.

The files are those of github.com/google-research/vision_transformer (Dosovitskiy et al., 2021;
also written by big_vision) and of github.com/google-research/big_transfer (Kolesnikov et al.,
2020). Their convolutions are HWIO; ViT's attention keeps its heads apart, ``[D, heads, D/heads]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.weights.names import Arrays

Layout = Callable[[NDArray[Any]], NDArray[Any]]

_VIT_MARK, _BIT_MARK = "embedding/kernel", "resnet/root_block/standardized_conv2d/kernel"
MARKS = (_VIT_MARK, _BIT_MARK)
"""A name that Google's files have and others have not, ViT's and BiT's."""

_VIT_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_PROJECTIONS = ("query", "key", "value")


def translate(arrays: Arrays) -> Arrays:
    """Renames weights of Google's to timm's names; other ``arrays`` stay as they are.

    Names that are not known are kept, so that the check of names lists them.
    """
    marks = [name for name in arrays if name == _VIT_MARK or name.endswith(f"/{_VIT_MARK}")]
    if len(marks) == 1:
        prefix = marks[0].removesuffix(_VIT_MARK)  # opt/target/, params/
        return _vit({name.removeprefix(prefix): array for name, array in arrays.items()})
    return _bit(arrays) if _BIT_MARK in arrays else arrays


def num_classes(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int | None:
    """K of a file with these names behind a prefix; None without a head."""
    head = shapes.get(f"{prefix}head/kernel", shapes.get(f"{prefix}resnet/head/conv2d/kernel"))
    return head[-1] if head else None


def _same(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _transposed(array: NDArray[Any]) -> NDArray[Any]:
    return array.T


def _conv(array: NDArray[Any]) -> NDArray[Any]:
    """HWIO -> OIHW."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _into_heads(array: NDArray[Any]) -> NDArray[Any]:
    """Query, key or value: ``[D, heads, D/heads]`` -> ``[D, D]``; a bias ``[heads, D/heads]``."""
    return array.reshape(len(array), -1).T if array.ndim == 3 else array.reshape(-1)


def _out_of_heads(array: NDArray[Any]) -> NDArray[Any]:
    """The output projection: ``[heads, D/heads, D]`` -> ``[D, D]``."""
    return array.reshape(-1, array.shape[-1]).T


_VIT_TOP: dict[str, tuple[str, Layout]] = {
    "embedding/kernel": ("patch_embed.proj.weight", _conv),
    "embedding/bias": ("patch_embed.proj.bias", _same),
    "cls": ("cls_token", _same),
    "Transformer/posembed_input/pos_embedding": ("pos_embed", _same),
    "pos_embedding": ("pos_embed", _same),  # big_vision
    "Transformer/encoder_norm/scale": ("norm.weight", _same),
    "Transformer/encoder_norm/bias": ("norm.bias", _same),
    # Only in files that were trained on ImageNet-21k; a hidden layer before their head.
    "pre_logits/kernel": ("pre_logits.fc.weight", _transposed),
    "pre_logits/bias": ("pre_logits.fc.bias", _same),
    "head/kernel": ("head.weight", _transposed),
    "head/bias": ("head.bias", _same),
}
# The numbers count modules in the order of their creation; big_vision counts each kind apart.
_VIT_IN_BLOCK: tuple[tuple[str, str, Layout], ...] = (
    (r"LayerNorm_0/scale", "norm1.weight", _same),
    (r"LayerNorm_0/bias", "norm1.bias", _same),
    (r"MultiHeadDotProductAttention_[01]/out/kernel", "attn.proj.weight", _out_of_heads),
    (r"MultiHeadDotProductAttention_[01]/out/bias", "attn.proj.bias", _same),
    (r"LayerNorm_[12]/scale", "norm2.weight", _same),
    (r"LayerNorm_[12]/bias", "norm2.bias", _same),
    (r"MlpBlock_[03]/Dense_0/kernel", "mlp.fc1.weight", _transposed),
    (r"MlpBlock_[03]/Dense_0/bias", "mlp.fc1.bias", _same),
    (r"MlpBlock_[03]/Dense_1/kernel", "mlp.fc2.weight", _transposed),
    (r"MlpBlock_[03]/Dense_1/bias", "mlp.fc2.bias", _same),
)


def _vit(arrays: Arrays) -> Arrays:
    renamed: Arrays = {}
    rest: Arrays = {}
    for name, array in arrays.items():
        target = _vit_target(name)
        if target is None:
            rest[name] = array
        else:
            renamed[target[0]] = target[1](array)
    return {**renamed, **_fused(rest)}


def _vit_target(name: str) -> tuple[str, Layout] | None:
    if name in _VIT_TOP:
        return _VIT_TOP[name]
    block = _VIT_BLOCK.fullmatch(name)
    if block is None:
        return None
    for pattern, target, layout in _VIT_IN_BLOCK:
        if re.fullmatch(pattern, block[2]):
            return f"blocks.{block[1]}.{target}", layout
    return None


def _fused(arrays: Arrays) -> Arrays:
    """Query, key and value of a block as timm's one layer; others are left as they are."""
    arrays = dict(arrays)
    first = re.compile(
        r"(Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/)query/(kernel|bias)"
    )
    for match in [match for name in arrays if (match := first.fullmatch(name))]:
        names = [f"{match[1]}{projection}/{match[3]}" for projection in _PROJECTIONS]
        if len({arrays[name].shape if name in arrays else None for name in names}) > 1:
            continue  # one is missing or of another shape: the check of names says so
        leaf = "weight" if match[3] == "kernel" else "bias"
        parts = [_into_heads(arrays.pop(name)) for name in names]
        arrays[f"blocks.{match[2]}.attn.qkv.{leaf}"] = np.concatenate(parts)
    return arrays


_BIT_TOP: dict[str, tuple[str, Layout]] = {
    "resnet/root_block/standardized_conv2d/kernel": ("stem.conv.weight", _conv),
    "resnet/group_norm/gamma": ("norm.weight", _same),
    "resnet/group_norm/beta": ("norm.bias", _same),
    "resnet/head/conv2d/kernel": ("head.fc.weight", _conv),
    "resnet/head/conv2d/bias": ("head.fc.bias", _same),
}
_BIT_UNIT = re.compile(r"resnet/block(\d+)/unit(\d+)/([abc])/(.+)")
_BIT_IN_UNIT: dict[str, tuple[str, Layout]] = {
    "standardized_conv2d/kernel": ("conv{}.weight", _conv),
    "group_norm/gamma": ("norm{}.weight", _same),
    "group_norm/beta": ("norm{}.bias", _same),
    "proj/standardized_conv2d/kernel": ("downsample.conv.weight", _conv),
}


def _bit(arrays: Arrays) -> Arrays:
    renamed: Arrays = {}
    for name, array in arrays.items():
        target, layout = _BIT_TOP.get(name, (name, _same))
        unit = _BIT_UNIT.fullmatch(name)
        if unit is not None and unit[4] in _BIT_IN_UNIT:
            inner, layout = _BIT_IN_UNIT[unit[4]]
            place = f"stages.{int(unit[1]) - 1}.blocks.{int(unit[2]) - 1}"
            target = f"{place}.{inner.format('abc'.index(unit[3]) + 1)}"
        renamed[target] = layout(array)
    return renamed
