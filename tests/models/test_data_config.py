"""What a model says of its images, or a function of itself, is checked when it is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from certmask_jax import models
from certmask_jax.models import DataConfig

GREY = {"input_size": (8, 8), "mean": (0.5,), "std": (0.5,), "channels": 1}
OF_IMAGES = [
    ({"input_size": 8}, r"input_size: expected \(height, width\), two whole numbers .* got 8$"),
    ({"input_size": (8, 8, 1)}, r"input_size: expected .* got \(8, 8, 1\)$"),
    ({"input_size": (8.0, 8)}, r"input_size: expected .* got \(8.0, 8\)$"),
    ({"input_size": (8, 0)}, r"input_size: expected .* got \(8, 0\)$"),
    ({"input_size": (True, 8)}, r"input_size: expected .* got \(True, 8\)$"),
    ({"input_size": ("h", "w")}, r"input_size: expected .* got \('h', 'w'\)$"),
    ({"input_size": "88"}, "input_size: expected .* got '88'$"),
    ({"channels": 2}, r"channels: expected 3 \(RGB\) or 1 \(grey\), got 2$"),
    ({"channels": True}, "channels: expected .* got True$"),
    ({"channels": 1.0}, "channels: expected .* got 1.0$"),
    ({"mean": 0.5}, "mean: expected numbers, one for each channel, as a tuple, got 0.5$"),
    ({"mean": "0.5"}, "mean: expected numbers"),
    ({"mean": None}, "mean: expected numbers"),
    ({"mean": ("0.5",)}, "mean: expected numbers"),
    ({"mean": [[0.5], [0.5, 0.5]]}, "mean: expected numbers"),
    ({"mean": ()}, "mean: expected numbers"),
    ({"mean": (np.nan,)}, "mean: expected numbers in"),
    ({"mean": (127.5,)}, "mean: expected numbers in .* divide means of pixels in 0..255 by 255$"),
    ({"mean": (0.5, 0.5)}, r"mean: expected 1 values \(channels\) or 1, got \(0.5, 0.5\)$"),
    ({"std": 0.5}, "std: expected numbers, one for each channel, as a tuple, got 0.5$"),
    ({"std": (0,)}, "std: expected numbers above 0"),
    ({"resize": -1}, "resize: expected a whole number of 1 or more, got -1$"),
    ({"resize": 0}, "resize: expected a whole number of 1 or more, got 0$"),
    ({"resize": True}, "resize: expected a whole number of 1 or more, got True$"),
    ({"resize": 8.0}, "resize: expected a whole number of 1 or more, got 8.0$"),
    ({"resize": 7}, "resize: expected 8 or more, as the crop to 8x8 .* got 7; None resizes"),
    ({"input_size": (6, 8), "resize": 7}, "resize: expected 8 or more"),
]
OF_FUNCTIONS = [
    ({"num_classes": 10.0}, "num_classes: expected a whole number from 2 to 32767, got 10.0$"),
    ({"num_classes": True}, "num_classes: expected a whole number from 2 to 32767, got True$"),
    ({"num_classes": 1}, "num_classes: expected a whole number from 2 to 32767, got 1$"),
    ({"batch": 2.5}, "batch: expected a whole number of 1 or more, got 2.5$"),
    ({"batch": True}, "batch: expected a whole number of 1 or more, got True$"),
    ({"batch": 0}, "batch: expected a whole number of 1 or more, got 0$"),
    ({"batch": "B"}, "batch: expected a whole number of 1 or more, got 'B'$"),
    ({"sha256": b"abc"}, "sha256: expected text, got b'abc'$"),
    ({"sha256": 3}, "sha256: expected text, got 3$"),
    ({"sha256": "  "}, "sha256: expected what tells the weights of the function from others"),
    ({"sha256": None, "files": "weights"}, "files: expected a list of files, got 'weights'; put"),
    ({"sha256": None, "files": Path("weights")}, "files: expected a list of files, got "),
    ({"sha256": None, "files": 3}, "files: expected a list of files, got 3"),
    ({"sha256": None, "files": [3]}, "files: expected paths of files, got 3$"),
    ({"dtype": "int8"}, "dtype: expected 'float32' or 'uint8', got 'int8'$"),
    ({"logits": "logits"}, "logits: expected a function, got a str$"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "said"), [*OF_IMAGES, ({"interpolation": "cubic"}, "interpolation: expected one of")]
)
def test_a_data_config_that_cannot_be(wrong, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        DataConfig(**{**GREY, **wrong})


@pytest.mark.parametrize(("wrong", "said"), [*OF_IMAGES, *OF_FUNCTIONS])
def test_a_function_of_which_that_is_said(wrong, said):
    given = {"logits": lambda images: images[:, 0, :2, 0], "num_classes": 2, "sha256": "1", **GREY}
    models.from_function(**given)
    with pytest.raises(ValueError, match=f"^{said}"):
        models.from_function(**{**given, **wrong})


def test_numbers_of_numpy_and_lists_are_kept_as_json_has_them():
    config = DataConfig([np.int64(8), 8], np.array([0.5]), [0.5], channels=np.int32(1), resize=8)
    assert config == DataConfig((8, 8), (0.5,), (0.5,), channels=1, resize=8)
    assert hash(config) == hash(DataConfig((8, 8), (0.5,), (0.5,), channels=1, resize=8))
    json.dumps(vars(config))
    many = models.from_function(
        np.asarray, num_classes=np.int64(3), batch=np.int8(4), sha256="1", input_size=(8, 8)
    )
    json.dumps([many.num_classes, many.apply_fn.batch])


def test_what_is_published_can_be():
    for name in models.names():
        models.create(name)
