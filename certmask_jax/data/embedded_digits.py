"""The embedded digits: scikit-learn's handwritten ones, read without it, in two splits."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_DIGITS_TEST = 500
_DIGITS_SEED = 2026


def digits_arrays(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """The digits' ``train`` (1,297) or ``test`` (500) split: images ``uint8[T, 8, 8, 1]``, labels.

    The split is a fixed shuffle; the grey levels 0 to 16 are spread over 0 to 255.
    """
    chosen = {"test": slice(_DIGITS_TEST), "train": slice(_DIGITS_TEST, None)}
    if split not in chosen:
        raise ValueError(f"split: expected one of {', '.join(sorted(chosen))}, got {split!r}")
    pixels, labels = _shuffled_digits()
    return pixels[chosen[split]].copy(), labels[chosen[split]].copy()


@functools.cache
def _shuffled_digits() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """All of them, parsed once."""
    rows = _digits_as_shipped()
    shuffled = rows[np.random.default_rng(_DIGITS_SEED).permutation(len(rows))]
    pixels = np.round(shuffled[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return pixels, shuffled[:, -1].astype(np.int32)


def _digits_as_shipped() -> NDArray[np.float64]:
    """``[1797, 65]``: the 64 grey levels of each digit, and its label.

    To import scikit-learn takes longer than everything else before a run, so its file is read
    without that where it lies where it always did.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt") as text:
                return np.loadtxt(text, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
