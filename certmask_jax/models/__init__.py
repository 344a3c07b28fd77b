"""Models by name: the Flax module, its data config, and the apply function that ``forward`` takes.

A model here is an example of ``apply_fn(params, images) -> logits``; any other will do.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from certmask_jax.models.cifar_resnet import CifarResNet
from certmask_jax.models.vit import VisionTransformer

Params = Any
"""A model's variables: ``{"params": ..., "batch_stats": ...}``."""

DEFAULT = "vit_digits"
"""The model that ships with weights."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a model wants its images.

    Attributes:
      input_size: ``(height, width)`` that the model sees.
      mean, std: per channel, of pixels scaled to [0, 1].
      channels: 3 (RGB) or 1 (grey).
      resize: shorter side in pixels before the centre crop to ``input_size``; None resizes straight
        to ``input_size``.
      interpolation: Pillow's name of it, on uint8.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    resize: int | None = None
    interpolation: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class Model:
    """A named model.

    Attributes:
      name: as it was asked for.
      num_classes: K.
      module: the Linen module, in eval mode; ``train_module`` in training mode.
      data_config: preprocessing that it was trained with.
      apply_fn: ``(params, normalised images float32[B, h, w, c]) -> logits float32[B, K]``. Equal
        models share it, so that JAX compiles once.
    """

    name: str
    num_classes: int
    module: nn.Module
    train_module: nn.Module
    data_config: DataConfig
    apply_fn: Callable[[Params, Array], Array] = dataclasses.field(repr=False)

    def init(self, key: Array) -> Params:
        """Random variables."""
        size, channels = self.data_config.input_size, self.data_config.channels
        return self.module.init(key, np.zeros((1, *size, channels), np.float32))

    def param_shapes(self) -> Params:
        """The tree of ``jax.ShapeDtypeStruct``, without allocating."""
        return jax.eval_shape(self.init, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class _Entry:
    about: str
    build: Callable[..., nn.Module]  # (num_classes=, is_training=) -> module
    data_config: DataConfig
    num_classes: int = 10


_CIFAR = DataConfig((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DIGITS = DataConfig((8, 8), (0.305,), (0.376,), channels=1)
_HALF = (0.5, 0.5, 0.5)

_MODELS: dict[str, _Entry] = {
    "vit_digits": _Entry(
        "ViT for 8x8 grey digits, 2-pixel tokens; ships with weights",
        functools.partial(VisionTransformer, patch=2, width=48, depth=4, num_heads=4),
        _DIGITS,
    ),
    **{
        f"cifar_resnet{depth}": _Entry(
            f"ResNet-{depth} for 32x32, option-A shortcuts (He et al., 2016)",
            functools.partial(CifarResNet, blocks_per_stage=(depth - 2) // 6),
            _CIFAR,
        )
        for depth in (20, 32, 44, 56)
    },
    "vit_tiny_patch4_32": _Entry(
        "ViT-Ti for 32x32, 4-pixel tokens (Dosovitskiy et al., 2021)",
        functools.partial(VisionTransformer, patch=4, width=192, depth=12, num_heads=3),
        DataConfig((32, 32), _HALF, _HALF),
    ),
}


def names() -> dict[str, str]:
    """Name -> one line about it."""
    return {name: entry.about for name, entry in _MODELS.items()}


@functools.lru_cache(maxsize=64)
def create(
    name: str, *, num_classes: int | None = None, input_size: tuple[int, int] | None = None
) -> Model:
    """A model by name.

    Args:
      name: one of :func:`names`.
      num_classes: 10 for all of these by default.
      input_size: ``(height, width)`` other than the model's own; resizes straight to it.

    Raises:
      ValueError: for an unknown name, listing what there is.
    """
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"model: expected one of {', '.join(_MODELS)}, got {name!r}{hint}")
    entry = _MODELS[name]
    classes = entry.num_classes if num_classes is None else num_classes
    config = entry.data_config
    if input_size is not None:
        config = dataclasses.replace(config, input_size=input_size, resize=None)
    module = entry.build(num_classes=classes, is_training=False)

    def apply_fn(params: Params, images: Array) -> Array:
        return module.apply(params, images)  # type: ignore[return-value]

    trained = entry.build(num_classes=classes, is_training=True)
    return Model(name, classes, module, trained, config, apply_fn)


def default_weights(name: str) -> Path | None:
    """The weights that ship with a model, or None."""
    path = Path(__file__).parent.parent / "pretrained" / f"{name}.npz"
    return path if path.is_file() else None
