"""PatchCURE's pooling of local logits as its program does it, in plain NumPy and float32.

Imports nothing of the package. What is hidden is taken off the sum of all, as there, and masks
begin at multiples of the stride: where these do not end at the border no mask hides it.
"""

from __future__ import annotations

import numpy as np


def answers(features: np.ndarray, mask: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """The label of each image of ``features [T, H, W, K]``: ``int[T]``.

    Args:
      features: local logits.
      mask, stride: height and width of masks in cells, and from one to the next.
    """
    features = np.asarray(features, np.float32)
    _, height, width, _ = features.shape
    hidden = []
    for row in range(0, height - mask[0] + 1, stride[0]):
        for column in range(0, width - mask[1] + 1, stride[1]):
            cells = np.zeros((height, width), bool)
            cells[row : row + mask[0], column : column + mask[1]] = True
            hidden.append(cells)
    total = features.sum(axis=(1, 2), dtype=np.float32)

    def label(cells: np.ndarray) -> np.ndarray:
        off = np.where(cells[None, :, :, None], features, np.float32(0))
        return (total - off.sum(axis=(1, 2), dtype=np.float32)).argmax(axis=1)

    base = total.argmax(axis=1)
    one = np.stack([label(cells) for cells in hidden], axis=1)
    two = np.array([[label(a | b) for b in hidden] for a in hidden]).transpose(2, 0, 1)
    labels = base.copy()
    for image, (first, pairs) in enumerate(zip(one, two, strict=True)):
        for number, said in enumerate(first):
            if said != base[image] and (pairs[number] == said).all():
                labels[image] = said
                break
    return labels
