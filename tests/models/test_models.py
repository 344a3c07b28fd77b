"""Models and data: published sizes, exact splits and preprocessing, training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from certmask_jax import data, models
from certmask_jax.models import DataConfig, cifar_resnet

CONFIG = DataConfig((8, 8), (0.5,), (0.5,), channels=1)


def _count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("cifar_resnet20", 269_722), ("cifar_resnet32", 464_154), ("cifar_resnet44", 658_586),
     ("cifar_resnet56", 853_018)],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, millions):
    assert _count(models.create(name).param_shapes()["params"]) == millions


def test_vit_tiny_by_hand():
    d, tokens = 192, 65
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d)
    expected = (48 * d + d) + d + tokens * d + 12 * block + 2 * d + (10 * d + 10)
    assert _count(models.create("vit_tiny_patch4_32").param_shapes()["params"]) == expected


def test_equal_models_share_their_apply_function():
    assert models.create("vit_digits").apply_fn is models.create("vit_digits").apply_fn


def test_option_a_shortcut_pads_new_channels_on_both_sides():
    """A block whose convolutions are zero is its shortcut."""
    block = cifar_resnet.BasicBlock(planes=4, stride=2)
    x = np.arange(1, 33, dtype=np.float32).reshape(1, 4, 4, 2)
    variables = block.init(jax.random.key(0), x)
    zeroed = jax.tree.map(np.zeros_like, variables["params"])
    y = block.apply({"params": zeroed, "batch_stats": variables["batch_stats"]}, x)
    assert y.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(y[..., 1:3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., [0, 3]], 0)


def test_unknown_model():
    with pytest.raises(ValueError, match=r"model: expected one of .*did you mean .*cifar_resnet20"):
        models.create("cifar_resnet2O")


def test_digits_splits_are_fixed_disjoint_and_real():
    train, test = (data.digits_arrays(split) for split in ("train", "test"))
    assert (len(train[0]), len(test[0])) == (1297, 500)
    assert np.bincount(test[1]).tolist() == [52, 63, 44, 58, 40, 45, 51, 44, 44, 59]
    assert set(np.unique(test[0]).tolist()) == {round(v * 255 / 16) for v in range(17)}


@pytest.mark.parametrize(
    ("split", "first", "count"),
    [("test", 0, 500), ("test[300:400]", 300, 100), ("test[:10%]", 0, 50), ("test[-5:]", 495, 5)],
)
def test_split_slices(split, first, count):
    part = data.load("digits", data_config=CONFIG, split=split)
    whole = data.load("digits", data_config=CONFIG)
    assert len(part) == count
    a, b = part.read(0, 2), whole.read(first, first + 2)
    np.testing.assert_array_equal(a.images, b.images)
    assert a.ids == b.ids


def _folder(root, classes=("cat", "dog"), count=2):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((10, 20, 3), 50 * number + i, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_image_folder(tmp_path):
    config = DataConfig((8, 8), (0.5,) * 3, (0.5,) * 3, resize=8)
    folder = data.load("image_folder", data_config=config, data_dir=_folder(tmp_path))
    batch = folder.read(0, 4)
    assert folder.class_names == ("cat", "dog")
    assert batch.labels.tolist() == [0, 0, 1, 1]
    assert batch.ids == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 50, 51]
    assert len(data.load("image_folder", data_config=config, data_dir=tmp_path, num_images=3)) == 3
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png: expected an image"):
        folder.read(0, 4)


def test_resize_and_crop_are_pillows(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    config = DataConfig((16, 16), (0.5,) * 3, (0.5,) * 3, resize=20)
    expected = Image.fromarray(pixels).resize((26, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(expected)[2:18, 5:21]
    np.testing.assert_array_equal(data.preprocess(pixels, config), expected)
    whole = pixels[:16, :16]  # of the input size already: published programs resize and crop it too
    expected = np.asarray(Image.fromarray(whole).resize((20, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(data.preprocess(whole, config), expected[2:18, 2:18])
    straight = DataConfig((30, 40), (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(data.preprocess(pixels, straight), pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digit"}, "did you mean digits"),
        ({"name": "digits", "split": "validation"}, "expected one of test, train"),
        ({"name": "digits", "split": "test[3"}, "split: expected"),
        ({"name": "digits", "split": "test[5:5]"}, "at least 1 image"),
        ({"name": "digits", "num_images": 501}, "at most 500"),
        ({"name": "image_folder"}, "^data_dir: expected"),
        ({"name": "image_folder", "data_dir": "nowhere"}, "one subfolder a class"),
        ({"name": "cifar10", "data_dir": "nowhere"}, "Prepare it once"),
        ({"name": "tfds:no_such_set", "data_dir": "nowhere"}, "Prepare it once"),
    ],
)
def test_bad_data_sets(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load(data_config=CONFIG, **options)


def test_empty_image_folder(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="at least 1 image"):
        data.load("image_folder", data_config=CONFIG, data_dir=tmp_path)


def test_shapes_are_traced_once_and_given_as_the_callers_own(monkeypatch):
    traced = []
    init = models.Model.init
    monkeypatch.setattr(models.Model, "init", lambda *of: traced.append(1) or init(*of))
    # That no other test has, in whatever order they run: what is traced is kept in the process.
    options = {"num_classes": 7, "input_size": (12, 18)}
    first = models.create("vit_digits", **options).param_shapes()
    first["params"].clear()
    second = models.create("vit_digits", **options).param_shapes()
    assert len(traced) == 1
    assert second["params"]["head"]["kernel"].shape[1] == 7
    half = models.create("vit_digits", **options, param_dtype="bfloat16").param_shapes()
    other = models.create("vit_digits", num_classes=7, input_size=(8, 18)).param_shapes()
    assert half["params"]["head"]["kernel"].dtype == jnp.bfloat16
    assert other["params"]["pos_embed"].shape != second["params"]["pos_embed"].shape
    assert len(traced) == 3


def test_shapes_of_a_model_that_has_no_hash():
    model = dataclasses.replace(models.create("vit_digits"), name=["of", "mine"])
    assert model.param_shapes() == models.create("vit_digits").param_shapes()
