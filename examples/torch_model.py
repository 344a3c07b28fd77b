"""A PyTorch model, certified by the same programs: --model examples.torch_model:create.

Put your own module into ``network``. Here it is a small one for the digits that ship, whose
weights are random: what is certified is that it is no good.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from certmask_jax import models


def network() -> torch.nn.Module:
    """Any module, images ``[B, c, h, w]`` -> logits ``[B, K]``."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    )


def create() -> models.Model:
    """What the programs call."""
    module = network().eval()
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())

    @torch.inference_mode()
    def logits(images: np.ndarray) -> np.ndarray:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return module(torch.from_numpy(channels_first)).numpy()

    return models.from_function(
        logits, num_classes=10, input_size=(8, 8), channels=1, sha256=digest.hexdigest()
    )
