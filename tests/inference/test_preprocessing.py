"""From pixels to what the model sees: published resizing, and masking before a resize."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from PIL import Image
from timm_oracle import load_timm

from certmask_jax import data, models, predict, weights
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.models import DataConfig
from certmask_jax.programs import certify
from tests.support.small_models import drawn_params

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(7)
NOTHING = np.zeros((1, 4), np.int32)


def _grey_levels(seen):
    return (np.asarray(seen) * np.array(STD) + np.array(MEAN)) * 255


@pytest.mark.parametrize("size", [(224, 224), (40, 96)])
def test_resize_on_the_device_is_pillows_bicubic_but_for_its_rounding(size):
    """Noise is the worst case: the kernel overshoots everywhere, so cutting the range matters."""
    image = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    seen = model_input(jnp.asarray(image), NOTHING, Preprocessing(MEAN, STD, resize_to=size))
    assert seen.shape == (*size, 3)
    levels = _grey_levels(seen)
    # Pillow rounds after each axis; the second pass can magnify the first's rounding.
    assert np.abs(levels - np.asarray(expected)).max() < 1.5
    assert levels.min() > -1e-3
    assert levels.max() < 255 + 1e-3


def test_nothing_of_a_hidden_patch_survives_the_resize():
    boxes = np.array([[3, 4, 11, 12]], np.int32)
    clean = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    patched = clean.copy()
    patched[3:11, 4:12] = RNG.integers(0, 256, (8, 8, 3))
    preprocessing = Preprocessing(MEAN, STD, resize_to=(224, 224))
    a, b = (model_input(jnp.asarray(image), boxes, preprocessing) for image in (clean, patched))
    np.testing.assert_array_equal(a, b)
    # Resized first, the patch spreads beyond the pixels that a scaled-up mask hides.
    resized = [
        np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
        for image in (clean, patched)
    ]
    differs = (resized[0] != resized[1]).any(-1)
    assert differs[21:77, 28:84].sum() < differs.sum()


def test_table_of_masks_before_the_resize_equals_the_loop_by_hand():
    masks = MaskedImages(
        np.array([[[0, 0, 0, 0]], [[1, 2, 5, 6]], [[0, 3, 8, 5]]], np.int32), (8, 8)
    )
    images = RNG.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    preprocessing = Preprocessing((0.5,), (0.5,), fill=(10.0,), resize_to=(12, 12))
    kernel = RNG.normal(size=(12, 12, 1, 4)).astype(np.float32)

    def linear(params, x):
        return jnp.einsum("bhwc,hwck->bk", x, params)

    table = predict(linear, kernel, images, masks, preprocessing=preprocessing)
    for i, image in enumerate(images):
        for v, boxes in enumerate(masks.boxes):
            pixels = image.astype(np.float32)
            pixels[oracle.paint(boxes, (8, 8))] = 10
            wide = jax.image.resize(pixels, (8, 12, 1), "bicubic").clip(0, 255)
            resized = jax.image.resize(wide, (12, 12, 1), "bicubic").clip(0, 255)
            logits = np.einsum("hwc,hwck->k", np.asarray(resized) / 255 / 0.5 - 1, kernel)
            assert table.predictions[i, v] == logits.argmax()
            top = np.sort(logits)
            np.testing.assert_allclose(table.margins[i, v], top[-1] - top[-2], rtol=5e-3)


def test_bad_resize():
    with pytest.raises(ValueError, match="resize_to: expected a positive int"):
        Preprocessing(resize_to=(0, 8))


def test_certify_in_the_data_sets_own_pixels(tmp_path, capsys):
    """The same patch of 1 px on 8x8 digits, before they are resized to 16x16, and named so."""
    model = models.create("cifar_resnet20", input_size=(16, 16))
    weights.save(tmp_path / "w.npz", drawn_params(model))
    results = {}
    for lives in ("input", "native"):
        options = [
            "--num-images", "4", "--model", "cifar_resnet20", "--weights", tmp_path / "w.npz",
            "--input-size", "16", "--patch", "2", "--patch-lives", lives,
            "--defense", "double_masking:masks_per_axis=2", "--out", tmp_path / lives,
        ]  # fmt: skip
        assert certify.main([str(option) for option in options]) == 0
        results[lives] = json.loads((tmp_path / lives / "results.json").read_text())
    assert "on 16x16" in results["input"]["defenses"][0]["mask_set"]
    assert "on 8x8" in results["native"]["defenses"][0]["mask_set"]
    assert "after any resize" in results["input"]["provenance"]["patch_lives"]
    assert "own pixels" in results["native"]["provenance"]["patch_lives"]
    assert [one["provenance"]["native_patches"] for one in results.values()] == [False, True]
    assert results["native"]["provenance"]["preprocessing"]["resize_to"] == [16, 16]
    capsys.readouterr()


def test_native_resolution_needs_images_of_one_size(tmp_path):
    (tmp_path / "cat").mkdir()
    for number, size in enumerate([(20, 10), (20, 10), (10, 20)]):
        Image.new("RGB", size).save(tmp_path / "cat" / f"{number}.png")
    config = DataConfig((8, 8), MEAN, STD)
    test_set = data.load("image_folder", data_config=config, data_dir=tmp_path, native=True)
    assert test_set.image_size == (10, 20)
    assert test_set.read(0, 2).images.shape == (2, 10, 20, 3)
    with pytest.raises(ValueError, match=r"2\.png: expected \(10, 20\) .* got \(20, 10\)"):
        test_set.read(0, 3)


@pytest.mark.parametrize(("size", "crop", "how"), [
    (224, 0.9, "bicubic"), (224, 0.875, "bicubic"), (224, 0.875, "bilinear"), (384, 1.0, "bicubic"),
])  # fmt: skip
def test_preprocessing_of_photographs_is_timms_to_the_grey_level(shared, size, crop, how):
    load_timm()
    from timm.data import create_transform

    transform = create_transform(
        size, interpolation=how, crop_pct=crop, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    config = DataConfig((size, size), MEAN, STD, resize=int(size / crop), interpolation=how)
    paths = sorted((shared / "data" / "imagenet_sample" / "val").rglob("*.JPEG"))[::6]
    assert len(paths) > 10
    for path in paths:
        with Image.open(path) as image:
            image = image.convert("RGB")
            expected = np.round(transform(image).numpy().transpose(1, 2, 0) * 255)
            np.testing.assert_array_equal(data.preprocess(image, config), expected)
