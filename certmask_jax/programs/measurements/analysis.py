"""PatchGuard's certificate of evidence that is at hand, over a plain loop over windows in NumPy.

The loop goes about it as the authors' program does: one image after the other, one window after the
other, and for each the sums of the windows that meet it anew.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses import patchguard
from certmask_jax.programs.measurements import timing

_SHAPE = (14, 26, 26, 10)  # BagNet-17 on images of 224 pixels, and a golden file of that shape
_WINDOW = 6  # cells of it that a patch of 32 pixels reaches
_LEAD = 1.0  # of the label's evidence, where it is random


def measure(file: Path | None, repeat: int) -> dict[str, Any]:
    """Seconds an image of both, in turn, and on how many images they differ.

    Args:
      file: ``.npz`` with ``local_logits float[T, H, W, K]`` and ``label int[T]``; else random ones
        of BagNet-17's shape, most of which are certified.
      repeat: rounds.

    Raises:
      ValueError: for a file without these, or with maps that a window of 6x6 cells does not fit.
      OSError: for a file that cannot be read.
    """
    evidence, labels = _random() if file is None else read(file)
    looped: list[bool] = []
    ours: list[NDArray[np.bool_]] = []

    def of_loop() -> None:
        looped[:] = [
            certified_by_loop(image, int(label), _WINDOW)
            for image, label in zip(evidence, labels, strict=True)
        ]

    def of_package() -> None:
        worst_case = patchguard.robust_masking_worst_case(evidence, labels, window=_WINDOW)
        ours[:] = [np.asarray(worst_case)]

    seconds = timing.in_turn({"loop": of_loop, "package": of_package}, repeat)
    count = len(labels)
    return {
        "evidence": "random" if file is None else file.name,
        "shape": list(evidence.shape),
        "window": _WINDOW,
        "certified": int(ours[0].sum()),
        "verdicts that differ": int((ours[0] != np.array(looped)).sum()),
        "milliseconds_an_image": {
            name: timing.spread([1000 * s / count for s in of]) for name, of in seconds.items()
        },
        "package_over_loop": timing.ratio(seconds["loop"], seconds["package"]),
    }


def certified_by_loop(evidence: NDArray[Any], label: int, window: int) -> bool:
    """Robust masking's certificate of one image, ``[H, W, K]``, at T = 0: window by window.

    For each window that a patch may reach: the label's evidence outside, less its largest window
    there, against the others' evidence outside. Ties go to the largest label.
    """
    clipped = np.maximum(np.asarray(evidence, np.float64), 0)
    rows, columns = (n - window + 1 for n in clipped.shape[:2])
    places = [(row, column) for row in range(rows) for column in range(columns)]
    inside = np.empty((rows, columns, clipped.shape[2]))
    for row, column in places:
        inside[row, column] = _box(clipped, row, column, window).sum(axis=(0, 1))
    total = clipped.sum(axis=(0, 1))
    if _last_of_largest(total) != label:
        return False
    for row, column in places:
        kept = clipped[..., label].copy()
        _box(kept, row, column, window)[:] = 0
        largest = inside[..., label].copy()
        for other in range(max(0, row - window + 1), min(row + window, rows)):
            for across in range(max(0, column - window + 1), min(column + window, columns)):
                largest[other, across] = _box(kept, other, across, window).sum()
        scores = total - inside[row, column]
        scores[label] = kept.sum() - largest.max()
        if _last_of_largest(scores) != label:
            return False
    return True


def _box(cells: NDArray[Any], row: int, column: int, side: int) -> NDArray[Any]:
    return cells[row : row + side, column : column + side]


def _last_of_largest(scores: NDArray[Any]) -> int:
    return len(scores) - 1 - int(scores[::-1].argmax())


def _random() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    random = np.random.default_rng(0)
    labels = random.integers(0, _SHAPE[3], _SHAPE[0]).astype(np.int32)
    units = np.rint(64 * random.normal(0, 1, _SHAPE)) / 64  # sums of these are exact
    units += _LEAD * (np.arange(_SHAPE[3]) == labels[:, None, None, None])
    return units.astype(np.float32), labels


def read(file: Path) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """``local_logits [T, H, W, K]`` and ``label int32[T]`` of a file; errors as of ``measure``."""
    if file.is_file() and not zipfile.is_zipfile(file):  # NumPy would speak of pickles
        raise ValueError(
            f"evidence: expected an .npz file with local_logits and label, got {file}, which is no "
            ".npz file"
        )
    try:
        with np.load(file) as arrays:
            evidence, labels = arrays["local_logits"], arrays["label"]
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"evidence: expected an .npz file with local_logits and label, got {file} ({error})"
        ) from error
    if (
        evidence.ndim != 4
        or not len(evidence)
        or min(evidence.shape[1:3]) < _WINDOW
        or labels.shape != evidence.shape[:1]
    ):
        raise ValueError(
            "evidence: expected local_logits [T, H, W, K] of an image or more and of at least "
            f"{_WINDOW}x{_WINDOW} cells, and label [T], got {list(evidence.shape)} and "
            f"{list(labels.shape)}"
        )
    if not np.issubdtype(evidence.dtype, np.number) or not np.isfinite(evidence).all():
        raise ValueError(
            f"evidence: expected finite numbers as local_logits, got others ({evidence.dtype})"
        )
    classes = evidence.shape[3]
    wrong = [label for label in labels.tolist() if label not in range(classes)]
    if wrong:
        raise ValueError(f"evidence: expected label from 0 to {classes - 1}, got {wrong[0]!r}")
    return evidence, labels.astype(np.int32)
