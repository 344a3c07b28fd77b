"""An ONNX model in ONNX Runtime: ONNX_MODEL=FILE, --model examples.onnx_model:create.

For a file with images ``float32[B, c, h, w]`` in and logits out. Where its B is a number, that is
the batch. Pixels are in [0, 1]; give ``mean`` and ``std`` where the model wants others.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

from certmask_jax import models


def create() -> models.Model:
    """What the programs call."""
    path = os.environ["ONNX_MODEL"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images_in, logits_out = session.get_inputs()[0], session.get_outputs()[0]
    batch, channels, height, width = images_in.shape

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
