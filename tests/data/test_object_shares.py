"""Boxes through resize and crop: held against images that are painted and preprocessed."""

from __future__ import annotations

import numpy as np
import pytest

from certmask_jax.data import preprocess
from certmask_jax.data.object_boxes import Objects
from certmask_jax.data.object_shares import covered_share, placed, shares
from certmask_jax.models import DataConfig

CROPPED = DataConfig((56, 48), (0.5,), (0.5,), channels=1, resize=64, interpolation="bilinear")
STRAIGHT = DataConfig((40, 60), (0.5,), (0.5,), channels=1, interpolation="bilinear")


@pytest.mark.parametrize("config", [CROPPED, STRAIGHT])
@pytest.mark.parametrize("size", [(200, 301), (301, 200), (128, 128), (333, 129)])
def test_a_box_is_where_the_painted_one_is_seen(config, size):
    height, width = size
    for box in ((10, 20, 90, 110), (0, 0, width, height), (60, 5, 128, height), (0, 90, 30, 128)):
        left, top, right, bottom = box
        image = np.zeros((*size, 1), np.uint8)
        image[top:bottom, left:right] = 255
        seen = preprocess(image, config)[..., 0] / 255
        (edges,) = placed([box], size, config)
        assert covered_share(edges[None], config.input_size) == pytest.approx(
            seen.mean(), abs=0.012
        )
        if edges[0] < edges[2] and edges[1] < edges[3]:
            # Where brightness begins and ends along each side, to half a pixel.
            down, across = seen.max(axis=1) / seen.max(), seen.max(axis=0) / seen.max()
            for profile, low, high in ((down, edges[1], edges[3]), (across, edges[0], edges[2])):
                assert profile.sum() == pytest.approx(high - low, abs=0.6)
                assert (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum() == (
                    pytest.approx((low + high) / 2, abs=0.5)
                )


def test_a_union_counts_each_pixel_once():
    rng = np.random.default_rng(5)
    for count in (1, 2, 5, 9):
        corners = np.sort(rng.integers(0, 30, (count, 2, 2)), axis=1)  # [n, end, axis]
        painted = np.zeros((30, 30), np.bool_)
        for (left, top), (right, bottom) in corners:
            painted[top:bottom, left:right] = True
        boxes = corners.reshape(count, 4).astype(np.float64)
        assert covered_share(boxes, (30, 30)) == pytest.approx(painted.mean(), abs=1e-12)


def test_all_that_is_seen_is_no_more_than_all():
    edges = (151.21603890718268, 223.8681841486047)  # differences add up to a little more than 224
    for left, right in [*np.random.default_rng(0).uniform(0, 224, (2000, 2)).tolist(), edges]:
        boxes = np.array([[0, 0, max(left, right), 224], [min(left, right), 0, 224, 224]])
        assert 1 - 1e-12 < covered_share(boxes, (224, 224)) <= 1


def test_the_size_that_comes_with_boxes_is_the_one_they_are_in():
    half = Objects(((0, 0, 50, 100),), (100, 100))
    same = Objects(((0, 0, 50, 100),), None)
    covered = shares({"a": half, "b": same}, {"a": (400, 400), "b": (100, 200)}, STRAIGHT)
    assert covered == {"a": pytest.approx(0.5), "b": pytest.approx(0.25)}
    with pytest.raises(ValueError, match="b: expected the size of its file"):
        shares({"b": same}, {}, STRAIGHT)


def test_a_box_outside_is_named_and_a_pixel_over_the_edge_is_rounding():
    (edges,) = placed([(-1, 0, 101, 100)], (100, 100), STRAIGHT)
    assert edges.tolist() == [0, 0, 60, 40]
    with pytest.raises(ValueError, match=r"dog: expected boxes inside the image of 100x80 \(he"):
        shares({"dog": Objects(((0, 0, 82, 5),), None)}, {"dog": (100, 80)}, STRAIGHT)
    with pytest.raises(ValueError, match="x 0 to 5, y -2 to 9"):
        placed([(0, -2, 5, 9)], (100, 80), STRAIGHT)
