"""An ONNX model in ONNX Runtime: ONNX_MODEL=FILE, --model examples.onnx_model:create.

For a file with images ``float32[B, c, h, w]`` in and logits ``[B, K]`` out; of several outputs
ONNX_OUTPUT=NAME takes one. Where B is a number, that is the batch. Pixels are in [0, 1]; give
``mean`` and ``std`` where the model wants others.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

from certmask_jax import models


def create() -> models.Model:
    """What the programs call."""
    path = os.environ.get("ONNX_MODEL")
    if not path:
        raise ValueError("ONNX_MODEL: expected an ONNX file, got none; give ONNX_MODEL=FILE")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images_in, logits_out = _only_input(session), _output(session)
    batch, channels, height, width = _shape_of_images(images_in)
    if len(logits_out.shape) != 2 or not isinstance(logits_out.shape[1], int):
        raise ValueError(
            f"{logits_out.name}: expected logits [B, K] with a number of classes, got "
            f"{logits_out.shape}; ONNX_OUTPUT=NAME takes another output"
        )

    def logits(images: np.ndarray) -> np.ndarray:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return session.run([logits_out.name], {images_in.name: channels_first})[0]

    return models.from_function(
        logits,
        num_classes=logits_out.shape[1],
        input_size=(height, width),
        channels=channels,
        batch=batch if isinstance(batch, int) else None,
        files=[path],
    )


def _only_input(session: onnxruntime.InferenceSession) -> onnxruntime.NodeArg:
    names = [one.name for one in session.get_inputs()]
    if len(names) != 1:
        raise ValueError(f"ONNX_MODEL: expected one input, the images, got {', '.join(names)}")
    return session.get_inputs()[0]


def _output(session: onnxruntime.InferenceSession) -> onnxruntime.NodeArg:
    """That of ONNX_OUTPUT, or the only one."""
    outputs = {one.name: one for one in session.get_outputs()}
    names = ", ".join(outputs)
    chosen = os.environ.get("ONNX_OUTPUT")
    if chosen and chosen not in outputs:
        raise ValueError(f"ONNX_OUTPUT: expected one of {names}, got {chosen}")
    if not chosen and len(outputs) != 1:
        raise ValueError(f"ONNX_MODEL: expected one output, got {names}; give ONNX_OUTPUT=NAME")
    return outputs[chosen or names]


def _shape_of_images(images_in: onnxruntime.NodeArg) -> list:
    """B, which may be a name, c, h and w."""
    shape = images_in.shape
    if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise ValueError(
            f"{images_in.name}: expected images [B, c, h, w] with c, h and w as numbers, got "
            f"{shape}; python -m onnxruntime.tools.make_dynamic_shape_fixed makes them such"
        )
    if shape[1] not in (1, 3):
        raise ValueError(
            f"{images_in.name}: expected images [B, c, h, w] with 1 or 3 channels, got {shape}; "
            "one of [B, h, w, c] needs images without the transpose in this file"
        )
    return shape
