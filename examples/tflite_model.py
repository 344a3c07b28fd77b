"""A TFLite model in LiteRT: TFLITE_MODEL=FILE, --model examples.tflite_model:create.

For a file with images ``[B, h, w, c]`` in and logits out, in floating point or quantised. Where its
B is a number, that is the batch. Pixels are in [0, 1]; give ``mean`` and ``std`` where the model
wants others. ``pip install ai-edge-litert`` brings what runs it.
"""

from __future__ import annotations

import os

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from certmask_jax import models


def create() -> models.Model:
    """What the programs call."""
    path = os.environ["TFLITE_MODEL"]
    interpreter = Interpreter(model_path=path)
    images_in, logits_out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    batch, height, width, channels = images_in["shape_signature"].tolist()
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
        batch=None if batch == -1 else batch,
        files=[path],
    )


def _stored(numbers: np.ndarray, tensor: dict) -> np.ndarray:
    """As a tensor holds them, in integers if it is quantised."""
    kind = np.dtype(tensor["dtype"])
    if np.issubdtype(kind, np.floating):
        return numbers.astype(kind)
    scale, zero = tensor["quantization"]
    whole = np.round(numbers / scale) + zero
    return np.clip(whole, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)


def _real(stored: np.ndarray, tensor: dict) -> np.ndarray:
    """What integers of a tensor stand for."""
    if np.issubdtype(stored.dtype, np.floating):
        return stored
    scale, zero = tensor["quantization"]
    return (stored.astype(np.float32) - zero) * np.float32(scale)
