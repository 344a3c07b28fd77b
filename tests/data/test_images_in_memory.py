"""Data sets of images in memory."""

from __future__ import annotations

import numpy as np
import pytest

from certmask_jax import data
from certmask_jax.models import DataConfig

CONFIG = DataConfig(input_size=(8, 8), channels=1, mean=(0.5,), std=(0.5,))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 8, 8, 1), np.uint8)


def test_what_was_given_is_read():
    labels = np.array([2, 0, 1, 2, 0, 1])
    dataset = data.from_arrays(IMAGES, labels, data_config=CONFIG, class_names=["a", "b", "c"])
    batch = dataset.read(1, 4)
    np.testing.assert_array_equal(batch.images, IMAGES[1:4])
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.ids == ("1", "2", "3")
    assert (dataset.class_names, len(dataset), dataset.notes) == (("a", "b", "c"), 6, ())
    named = data.from_arrays(IMAGES, labels, data_config=CONFIG, ids=list("uvwxyz"), num_images=2)
    assert named.read(0, 2).ids == ("u", "v")
    assert named.subset.how == "first"
    assert named.num_classes == 3


def test_colours_and_sizes_are_the_models():
    config = DataConfig(input_size=(4, 6), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    dataset = data.from_arrays(IMAGES, np.zeros(6, int), data_config=config, num_outputs=10)
    assert dataset.read(0, 6).images.shape == (6, 4, 6, 3)
    assert dataset.num_classes == 10
    native = data.from_arrays(IMAGES, np.zeros(6, int), data_config=config, native=True)
    assert native.image_size == (8, 8)


def test_sorted_by_class_some_are_of_all_classes():
    labels = np.repeat([0, 1, 2], 6)
    dataset = data.from_arrays(
        np.tile(IMAGES, (3, 1, 1, 1)), labels, data_config=CONFIG, num_images=3
    )
    assert dataset.read(0, 3).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": IMAGES / 255}, "images: expected uint8"),
        ({"images": IMAGES[..., 0]}, "images: expected uint8"),
        ({"images": IMAGES[:0], "labels": np.zeros(0, int)}, "expected at least 1 image"),
        ({"labels": np.zeros(5, int)}, "labels: expected 6 integers"),
        ({"labels": np.zeros(6)}, "labels: expected 6 integers"),
        ({"labels": np.full(6, -1)}, "labels: expected 0 or more"),
        ({"labels": np.full(6, 3), "num_outputs": 3}, "labels: expected numbers from 0 to 2"),
        ({"labels": np.full(6, 3), "class_names": ["a", "b"]}, "labels: expected numbers from 0"),
        ({"class_names": ["a", "a"]}, "class names that differ"),
        ({"ids": ["x"] * 6}, "ids: expected 6 names, each once"),
        ({"ids": ["x"]}, "ids: expected 6 names"),
        ({"num_images": 7}, "num_images: expected at most 6"),
    ],
)
def test_bad_input_is_one_clear_error(change, error):
    given = {"images": IMAGES, "labels": np.zeros(6, int), "data_config": CONFIG, **change}
    with pytest.raises(ValueError, match=error):
        data.from_arrays(given.pop("images"), given.pop("labels"), **given)


def test_sizes_before_the_resize_are_those_of_the_arrays():
    images = np.zeros((3, 5, 7, 1), np.uint8)
    made = data.from_arrays(images, [0, 1, 0], data_config=CONFIG, ids=["a", "b", "c"])
    assert made.original_sizes(["c", "a", "gone"]) == {"a": (5, 7), "c": (5, 7)}
