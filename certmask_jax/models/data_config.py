"""How a model wants its images, checked when it is said, not when the first image is read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.whole_numbers import as_whole, checked_whole

_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a model wants its images.

    Attributes:
      input_size: ``(height, width)`` that the model sees.
      mean, std: per channel, of pixels scaled to [0, 1]; or one value for all channels.
      channels: 3 (RGB) or 1 (grey).
      resize: shorter side in pixels before the centre crop to ``input_size``; None resizes straight
        to ``input_size``. It is no less than the longer side of that, or a crop would have black
        borders.
      interpolation: Pillow's name of it, on uint8.

    Raises:
      ValueError: for what cannot be, naming it.
    """

    input_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    resize: int | None = None
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        size = _pair(self.input_size)
        channels = as_whole(self.channels)
        if channels not in (1, 3):
            raise ValueError(f"channels: expected 3 (RGB) or 1 (grey), got {self.channels!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list | np.ndarray):
                raise ValueError(
                    f"{name}: expected numbers, one for each channel, as a tuple, got {values!r}"
                )
        normalised = Preprocessing(mean=self.mean, std=self.std)
        normalised.check_channels(channels)
        resize = self.resize
        if resize is not None:
            resize = checked_whole(resize, "resize", 1)
            if resize < max(size):
                raise ValueError(
                    f"resize: expected {max(size)} or more, as the crop to {size[0]}x{size[1]} "
                    f"would have black borders otherwise, got {resize}; None resizes straight to it"
                )
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"interpolation: expected one of {', '.join(_INTERPOLATIONS)}, got "
                f"{self.interpolation!r}"
            )
        checked: dict[str, Any] = {
            "input_size": size,
            "mean": normalised.mean,
            "std": normalised.std,
            "channels": channels,
            "resize": resize,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def _pair(size: Any) -> tuple[int, int]:
    """``(height, width)`` as ints."""
    try:
        height, width = (checked_whole(side, "side", 1) for side in size)
    except (TypeError, ValueError):
        raise ValueError(
            f"input_size: expected (height, width), two whole numbers of 1 or more, got {size!r}"
        ) from None
    return height, width
