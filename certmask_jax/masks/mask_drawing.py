"""Masks as a small picture, SVG, for notebooks."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDTH = 168  # of the drawing, in pixels
_MOST = 400  # boxes that are drawn


def svg_of(
    boxes: NDArray[np.int32], image_size: tuple[int, int], patch: tuple[int, int], title: str
) -> str:
    """The outlines of all masks on an image, the first mask filled, and a patch.

    Args:
      boxes: ``int32[N, R, 4]`` as in ``MaskSet``.
      image_size: ``(height, width)`` in pixels.
      patch: ``(height, width)`` of a patch, which is drawn in a corner of the first mask.
      title: what a reader of screens hears.
    """
    height, width = image_size
    one = _WIDTH / width
    used = [[tuple(map(int, box)) for box in mask if box[0] < box[2] and box[1] < box[3]]
            for mask in boxes]  # fmt: skip
    outlines = list(dict.fromkeys(box for mask in used for box in mask))[:_MOST]
    faint = max(0.12, min(0.9, 12 / max(1, len(outlines))))
    parts = [f'<rect width="{_WIDTH}" height="{one * height:.1f}" fill="#eceff1"/>']
    parts += [_rect(box, one, 'fill="#00897b" fill-opacity="0.55"') for box in used[0]]
    parts += [
        _rect(box, one, f'fill="none" stroke="#263238" stroke-opacity="{faint:.2f}"')
        for box in outlines
    ]
    if used[0]:
        top, left = used[0][0][:2]
        spot = (top, left, top + patch[0], left + patch[1])
        parts.append(_rect(spot, one, 'fill="#d84315"'))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{_WIDTH}" '
        f'height="{one * height:.1f}" viewBox="0 0 {_WIDTH} {one * height:.1f}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _rect(box: tuple[int, ...], one: float, how: str) -> str:
    top, left, bottom, right = (one * edge for edge in box)
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{bottom - top:.1f}" {how}/>'
    )
