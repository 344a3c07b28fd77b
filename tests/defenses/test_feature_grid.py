"""Threats on a map of features: what patches reach, cell by cell, and what stands for it."""

from __future__ import annotations

import itertools

import numpy as np
import oracle_threats
import pytest

from certmask_jax.defenses.evidence_windows import reached_window
from certmask_jax.defenses.feature_grid import cells_of, threat_on_cells
from certmask_jax.masks.threats import Threat


def _reached(pixels, grid, field, stride):
    """The cells whose fields have one of the pixels: ``bool[H, W]``."""
    cells = np.zeros(grid, bool)
    for row, column in np.ndindex(grid):
        top, left = row * stride[0], column * stride[1]
        cells[row, column] = pixels[top : top + field[0], left : left + field[1]].any()
    return cells


def _cases():
    rng = np.random.default_rng(0)
    for number in range(60):
        image = tuple(rng.integers(5, 10, 2).tolist())
        field = tuple(rng.integers(1, 4, 2).tolist())
        stride = tuple(rng.integers(1, 5, 2).tolist())
        shapes = [tuple(rng.integers(1, 4, 2).tolist()) for _ in range(1 + number % 3)]
        region = []
        for _ in range(number % 4):  # none, one box, or several
            top, left = rng.integers(0, 3), rng.integers(0, 3)
            region.append((int(top), int(left), int(top) + 3, int(left) + int(rng.integers(2, 4))))
        patches = ((tuple(shapes)), (tuple(shapes[:1]))) if number % 7 == 0 else (tuple(shapes),)
        try:
            yield Threat(image, patches, tuple(region)), field, stride
        except ValueError:  # a shape that fits nowhere
            continue


def test_whatever_a_patch_reaches_lies_in_a_window():
    """Every placement by brute force; and every window is reached, if alone in its threat."""
    tried = several = 0
    for threat, field, stride in _cases():
        grid = cells_of(threat.image_size, field=field, stride=stride)
        attacked = oracle_threats.placements(threat.image_size, threat.patches, threat.region)
        reached = [_reached(pixels, grid, field, stride) for pixels in attacked]
        alone = (threat,) if len(threat) == 1 else _one_by_one(threat)
        if any(_reaches_all(one, grid, field, stride) for one in alone):
            with pytest.raises(ValueError, match="reach all of"):
                threat_on_cells(threat, field=field, stride=stride)
            continue
        on_cells = threat_on_cells(threat, field=field, stride=stride)
        windows = oracle_threats.placements(grid, on_cells.patches, on_cells.region)
        for cells in reached:
            assert any(not (cells & ~window).any() for window in windows), (threat, field, stride)
        tried += 1
        several += len(on_cells.region) > 1
        if len(threat) == 1 and any(cells.any() for cells in reached):
            sizes = {tuple(_size(cells)) for cells in reached if cells.any()}
            assert set(on_cells.shapes) <= sizes
    assert tried > 25
    assert several > 2


def _one_by_one(threat):
    return [Threat(threat.image_size, (shapes,), threat.region) for shapes in threat.patches]


def _reaches_all(threat, grid, field, stride):
    attacked = oracle_threats.placements(threat.image_size, threat.patches, threat.region)
    return any(_reached(pixels, grid, field, stride).all() for pixels in attacked)


def _size(cells):
    rows, columns = np.nonzero(cells)
    return np.ptp(rows) + 1, np.ptp(columns) + 1


def test_one_patch_anywhere_is_one_window():
    for image, patch, field, stride in itertools.product((16, 19), (1, 3), (2, 5), (1, 2, 4)):
        on_cells = threat_on_cells(Threat.of(image, patch), field=field, stride=stride)
        window = reached_window(patch, field=field, stride=stride, image_size=image)
        assert on_cells == Threat.of(cells_of(image, field=field, stride=stride), window)


def test_the_windows_of_the_paper():
    """14x2, 14x1 and 2x2 tokens of 16 pixels at 224, and patches of 32."""
    patch = Threat.of(224, 32)
    for tokens, grid, window in (
        ((14, 2), (1, 7), (1, 2)), ((14, 1), (1, 14), (1, 3)), ((2, 2), (7, 7), (2, 2)),
    ):  # fmt: skip
        pixels = (16 * tokens[0], 16 * tokens[1])
        on_cells = threat_on_cells(patch, field=pixels, stride=pixels)
        assert (on_cells.image_size, on_cells.shapes) == (grid, (window,))
    bagnet = threat_on_cells(patch, field=17, stride=8)
    assert (bagnet.image_size, bagnet.shapes) == ((26, 26), ((6, 6),))


def test_several_patches_and_a_region_arrive_too():
    columns = {"field": (8, 2), "stride": (8, 2)}
    two = threat_on_cells(Threat.of(8, 1, patches=2), **columns)
    assert two == Threat.of((1, 4), 1, patches=2)
    left = threat_on_cells(Threat.of(8, 2, region=(0, 0, 8, 3)), **columns)
    assert left == Threat.of((1, 4), (1, 2), region=(0, 0, 1, 2))


@pytest.mark.parametrize(
    ("image", "patch", "field", "stride", "words"),
    [
        (8, 3, (8, 4), (8, 4), "3x3 pixels reach all of them"),
        (8, 1, 9, 1, "field: expected one that fits into images of 8x8"),
        (8, 1, 2, 0, "stride: expected 1 or more"),
    ],
)
def test_what_proves_nothing_is_refused(image, patch, field, stride, words):
    with pytest.raises(ValueError, match=words):
        threat_on_cells(Threat.of(image, patch), field=field, stride=stride)
