"""A TFLite model in LiteRT: TFLITE_MODEL=FILE, --model examples.tflite_model:create.

For a file with images ``[B, h, w, c]`` in and logits ``[B, K]`` out, in floating point or
quantised. Where its B is a number, that is the batch. Pixels are in [0, 1]; give ``mean`` and
``std`` where the model wants others. Images of integers that are not quantised are given as levels
0..255. ``pip install ai-edge-litert`` brings what runs it.
"""

from __future__ import annotations

import os

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from certmask_jax import models


def create() -> models.Model:
    """What the programs call."""
    path = os.environ.get("TFLITE_MODEL")
    if not path:
        raise ValueError("TFLITE_MODEL: expected a TFLite file, got none; give TFLITE_MODEL=FILE")
    interpreter = Interpreter(model_path=path)
    images_in = _only("input, the images", interpreter.get_input_details())
    logits_out = _only("output, the logits", interpreter.get_output_details())
    batch, height, width, channels = _shape_of_images(images_in)
    number = images_in["index"]
    interpreter.allocate_tensors()

    def logits(images: np.ndarray) -> np.ndarray:
        if len(interpreter.get_tensor(number)) != len(images):
            interpreter.resize_tensor_input(number, images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(number, _stored(images, images_in))
        interpreter.invoke()
        return _real(interpreter.get_tensor(logits_out["index"]), logits_out)

    return models.from_function(
        logits,
        num_classes=logits_out["shape"].tolist()[-1],
        input_size=(height, width),
        channels=channels,
        dtype="uint8" if _are_levels(images_in) else "float32",
        batch=None if batch == -1 else batch,
        files=[path],
    )


def _only(what: str, tensors: list[dict]) -> dict:
    if len(tensors) != 1:
        names = ", ".join(tensor["name"] for tensor in tensors)
        raise ValueError(f"TFLITE_MODEL: expected one {what}, got {names}")
    return tensors[0]


def _shape_of_images(tensor: dict) -> list[int]:
    """B, which is -1 where it is any, h, w and c."""
    shape = tensor["shape_signature"].tolist()
    if len(shape) != 4 or min(shape[1:]) < 1 or shape[3] not in (1, 3):
        raise ValueError(
            f"{tensor['name']}: expected images [B, h, w, c] of one size with 1 or 3 channels, got "
            f"{shape}"
        )
    kind = np.dtype(tensor["dtype"])
    if kind.kind not in "fiu" or (_are_levels(tensor) and np.iinfo(kind).max < 255):
        raise ValueError(
            f"{tensor['name']}: expected floating, quantised or uint8 images, got {kind} "
            "without a scale, which cannot hold levels 0..255"
        )
    return shape


def _is_quantised(tensor: dict) -> bool:
    """Whether its integers stand for others; a scale of 0 says that it has none."""
    return tensor["quantization"][0] != 0


def _are_levels(tensor: dict) -> bool:
    return np.issubdtype(tensor["dtype"], np.integer) and not _is_quantised(tensor)


def _stored(numbers: np.ndarray, tensor: dict) -> np.ndarray:
    """As a tensor holds them, in integers if it is quantised."""
    kind = np.dtype(tensor["dtype"])
    if np.issubdtype(kind, np.floating) or _are_levels(tensor):
        return numbers.astype(kind)
    scale, zero = tensor["quantization"]
    whole = np.round(numbers / scale) + zero
    return np.clip(whole, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


def _real(stored: np.ndarray, tensor: dict) -> np.ndarray:
    """What integers of a tensor stand for."""
    if np.issubdtype(stored.dtype, np.floating):
        return stored
    numbers = stored.astype(np.float32)
    if not _is_quantised(tensor):
        return numbers
    scale, zero = tensor["quantization"]
    return (numbers - zero) * np.float32(scale)
