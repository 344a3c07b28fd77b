"""A CIFAR ResNet in PyTorch, for comparison, where torch is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax.inference.masking import hidden_pixels
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.programs.measurements.pytorch_loops import BATCHES
from certmask_jax.programs.measurements.subjects import Subject

_ITEMS = 8192  # masked images of one call: some seconds


def counts(subject: Subject, masks: MaskedImages) -> dict[str, int]:
    """Loop -> how many masked images it evaluates; none where torch or a model of it is missing."""
    variables = subject.params
    if not isinstance(variables, dict) or "layer1_0" not in variables.get("params", {}):
        return {}
    if importlib.util.find_spec("torch") is None:
        return {}
    return {name: batch * len(_some(masks, name)) for name, batch in BATCHES.items()}


def seconds(file: Path, name: str) -> float:
    """What a loop takes in a process of its own; ``file`` is of ``write``."""
    program = [
        sys.executable,
        "-m",
        "certmask_jax.programs.measurements.pytorch_loops",
        str(file),
        name,
    ]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"the loop {name} failed: {result.stderr[-2000:]}")
    return float(result.stdout.split()[-1])


def write(
    file: Path, subject: Subject, images: NDArray[np.uint8], masks: MaskedImages, name: str
) -> None:
    """Writes what a loop needs: weights, images, and some of the masks from all over."""
    np.savez(file, **arrays(subject, images, masks.boxes[_some(masks, name)]))  # type: ignore[arg-type]


def arrays(
    subject: Subject, images: NDArray[np.uint8], boxes: NDArray[np.int32]
) -> dict[str, NDArray[Any]]:
    """The content of the file, see ``pytorch_loops.loop``."""
    leaves = jax.tree_util.tree_flatten_with_path(subject.params)[0]
    mean, std = (
        np.asarray(v, np.float32) for v in (subject.preprocessing.mean, subject.preprocessing.std)
    )
    pixels = (images.astype(np.float32) / 255 - mean) / std
    size = (images.shape[1], images.shape[2])
    hidden = [np.asarray(hidden_pixels(jnp.asarray(union), size)) for union in boxes]
    return {
        **{"/".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves},
        "images": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),
        "hidden": np.stack(hidden)[:, None],
    }


def _some(masks: MaskedImages, name: str) -> NDArray[np.int64]:
    count = min(_ITEMS // BATCHES[name], len(masks))
    return np.linspace(0, len(masks) - 1, count).astype(np.int64)
