"""Threats by brute force on pixels: every placement, and what hides it. Imports nothing of ours."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np


def placements(image_size: tuple[int, int], patches: Any, region: Any = ()) -> list[np.ndarray]:
    """The attacked pixels ``bool[h, w]`` of every placement: each patch of any of its shapes."""
    height, width = image_size
    may = np.ones(image_size, dtype=bool)
    if len(region):
        may[:] = False
        for top, left, bottom, right in region:
            may[top:bottom, left:right] = True
    each = []
    for shapes in patches:
        alone = []
        for h, w in shapes:
            for row in range(height - h + 1):
                for col in range(width - w + 1):
                    pixels = np.zeros(image_size, dtype=bool)
                    pixels[row : row + h, col : col + w] = True
                    if not (pixels & ~may).any():
                        alone.append(pixels)
        each.append(alone)
    return [np.logical_or.reduce(chosen) for chosen in itertools.product(*each)]


def hidden(boxes: Any, image_size: tuple[int, int], attacked: list[np.ndarray]) -> np.ndarray:
    """Whether each mask covers every attacked pixel of each placement: ``bool[V, L]``."""
    covers = np.zeros((len(boxes), len(attacked)), dtype=bool)
    for number, mask in enumerate(np.asarray(boxes)):
        masked = np.zeros(image_size, dtype=bool)
        for top, left, bottom, right in mask:
            masked[top:bottom, left:right] = True
        for place, pixels in enumerate(attacked):
            covers[number, place] = all(masked[y, x] for y, x in np.argwhere(pixels))
    return covers


def minimal(patterns: np.ndarray) -> set[tuple[bool, ...]]:
    """Columns of ``bool[V, L]`` without those that are a strict superset of another."""
    every = {tuple(column) for column in patterns.T.tolist()}
    return {
        p
        for p in every
        if not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in every)
    }


def rectangles(image_size: tuple[int, int], area: int) -> list[tuple[int, int]]:
    """Every rectangle of at most ``area`` pixels inside the image."""
    sides = itertools.product(range(1, image_size[0] + 1), range(1, image_size[1] + 1))
    return [(h, w) for h, w in sides if h * w <= area]


def contain_all(large: Any, small: Any) -> bool:
    """Whether each of ``small`` fits one of ``large``, upright."""
    return all(any(h <= a and w <= b for a, b in large) for h, w in small)
