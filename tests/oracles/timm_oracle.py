"""timm, the oracle of our models, where it is installed (extra: parity)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

_DECLARED: list[Any] = []  # a library that is dropped takes its operators with it


def load_timm() -> ModuleType:
    """timm, or a skip. Works beside a torchvision that was built for another torch.

    torchvision registers a fake of two operators of its own at import, which fails where its
    binary part cannot be loaded (a CUDA build beside a CPU build of torch). None of them is used
    here, so they are declared.
    """
    torch = pytest.importorskip("torch", reason="needs the extra: parity")
    try:
        return pytest.importorskip("timm", reason="needs the extra: parity")
    except RuntimeError:
        pass
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
    return pytest.importorskip("timm", reason="needs the extra: parity")
