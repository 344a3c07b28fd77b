"""Names of efficientnet_lite_pytorch's files (and of EfficientNet-PyTorch's), as timm has them.

There blocks are numbered through, and timm counts them in stages. A stage ends where the number of
channels that a block gives out changes, as it does between all stages of these models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from certmask_jax.weights.stored import Entry

_MARK = "_conv_stem.weight"
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(.+)")
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {**_EXPANDED, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def renamed(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Entries under timm's names, wherever such a model lies in a file; others as they are."""
    entries_there = dict(entries)
    for mark in [name for name in entries if re.search(rf"(?:^|[./]){_MARK}$", name)]:
        prefix = mark.removesuffix(_MARK)
        own = {name[len(prefix) :]: name for name in entries if name.startswith(prefix)}
        blocks = _stages({name: entries[whole].shape for name, whole in own.items()})
        for name, whole in own.items():
            entries_there[prefix + _timm_name(name, own, blocks)] = entries_there.pop(whole)
    return entries_there


def _stages(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The number of each block -> its stage and place there, as ``"1.0"``."""
    numbers = sorted({int(match[1]) for name in shapes if (match := _BLOCK.match(name))})
    stages: dict[str, str] = {}
    stage, place, before = -1, 0, None
    for number in numbers:
        features = shapes.get(f"_blocks.{number}._project_conv.weight", (None,))[0]
        stage, place = (stage, place + 1) if features == before else (stage + 1, 0)
        stages[str(number)], before = f"{stage}.{place}", features
    return stages


def _timm_name(name: str, names: Mapping[str, str], stages: Mapping[str, str]) -> str:
    """One name; what is not known is kept, so that the check of names lists it."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        module, _, leaf = name.partition(".")
        return f"{_OUTSIDE[module]}.{leaf}" if module in _OUTSIDE else name
    number, module, leaf = match.groups()
    words = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in names else _SEPARABLE
    return f"blocks.{stages[number]}.{words[module]}.{leaf}" if module in words else name
