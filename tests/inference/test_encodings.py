"""How a model is told what is hidden: channels by hand, gradients, and programs of 2c channels."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import certmask_jax as cm
from certmask_jax import models, weights
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.masks.bands import column_bands
from certmask_jax.programs import certify
from tests.support.small_models import small_resnet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
RNG = np.random.default_rng(5)
IMAGE = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
IMAGE[0, 0] = 0  # black, which is not what hidden is
BOXES = np.array([[1, 2, 4, 7], [4, 0, 6, 3]], np.int32)
HIDDEN = oracle.paint(BOXES, (6, 7))
COMPLEMENT = Preprocessing(encoding="complement")
MASK_CHANNEL = Preprocessing(MEAN, STD, encoding="mask_channel")


def test_complement_by_hand():
    seen = np.asarray(model_input(jnp.asarray(IMAGE), BOXES, COMPLEMENT))
    x = IMAGE.astype(np.float32) / np.float32(255)
    expected = np.concatenate([x, 1 - x], axis=2)
    expected[HIDDEN] = 0
    np.testing.assert_allclose(seen, expected, atol=1e-7)
    assert seen[0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert not seen[HIDDEN].any()
    np.testing.assert_allclose(seen[~HIDDEN].sum(axis=1), 3, rtol=1e-6)


def test_mask_channel_by_hand():
    seen = np.asarray(model_input(jnp.asarray(IMAGE), BOXES, MASK_CHANNEL))
    expected = np.concatenate([(IMAGE / 255 - MEAN) / STD, np.ones((6, 7, 1))], axis=2)
    expected[HIDDEN] = 0
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", [COMPLEMENT, MASK_CHANNEL], ids=lambda how: how.encoding)
def test_nothing_of_a_hidden_pixel_is_left_not_even_by_its_gradient(how):
    channels = how.model_shape(IMAGE.shape)[2]
    assert how.model_shape(IMAGE.shape) == (
        6,
        7,
        {"complement": 6, "mask_channel": 4}[how.encoding],
    )
    params = RNG.normal(size=(6, 7, channels, 2)).astype(np.float32)

    def first(image):
        return cm.masked_logits(
            lambda w, x: jnp.einsum("bhwc,hwck->bk", x, w), params, image[None], BOXES[None],
            preprocessing=how,
        )[0, 0]  # fmt: skip

    gradient = np.asarray(jax.grad(first)(jnp.asarray(IMAGE, jnp.float32)))
    assert not gradient[HIDDEN].any()
    assert gradient[~HIDDEN].all()
    other = np.where(HIDDEN[..., None], RNG.integers(0, 256, IMAGE.shape), IMAGE)
    np.testing.assert_array_equal(
        model_input(jnp.asarray(other.astype(np.uint8)), BOXES, how),
        model_input(jnp.asarray(IMAGE), BOXES, how),
    )


def test_resized_channels_stay_in_their_range():
    for how in (COMPLEMENT, MASK_CHANNEL):
        large = Preprocessing(how.mean, how.std, encoding=how.encoding, resize_to=(24, 21))
        seen = np.asarray(model_input(jnp.asarray(IMAGE), BOXES, large))
        assert seen.shape == large.model_shape(IMAGE.shape)
        last = seen[..., -1]
        assert last.min() == 0
        assert last.max() <= 1
        plain = Preprocessing(how.mean, how.std, fill=None, resize_to=(24, 21))
        nothing = np.zeros((1, 4), np.int32)
        whole = np.asarray(model_input(jnp.asarray(IMAGE), nothing, large))
        np.testing.assert_allclose(
            whole[..., :3], model_input(jnp.asarray(IMAGE), nothing, plain), atol=1e-6
        )


def test_records_of_the_usual_encoding_stay_what_they_were():
    assert list(Preprocessing(MEAN, STD).facts()) == [
        "mean", "std", "fill", "precision", "resize_to",
    ]  # fmt: skip
    assert COMPLEMENT.facts()["encoding"] == "complement"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"encoding": "six"},
            "encoding: expected one of fill, complement, mask_channel, got 'six'",
        ),
        ({"encoding": "complement", "fill": (0,)}, "fill: expected none beside the encoding comp"),
        ({"encoding": "mask_channel", "fill": (0,)}, "fill: expected none beside the encoding mas"),
        ({"encoding": "complement", "mean": (0.5,)}, "mean: expected 0, and std 1"),
        ({"encoding": "complement", "std": (0.5,)}, "mean: expected 0, and std 1"),
    ],
)
def test_what_an_encoding_has_no_use_for_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Preprocessing(**given)


def test_a_table_of_bands_shows_a_network_of_six_channels_what_the_loop_by_hand_shows_it():
    images = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    masks = column_bands(8, 2, band=2, stride=3)
    params = RNG.normal(size=(8, 8, 6, 4)).astype(np.float32)
    defense = cm.defenses.plurality(masks)
    table = cm.predict(
        lambda w, x: jnp.einsum("bhwc,hwck->bk", x, w), params, images, defense.masked_images,
        preprocessing=COMPLEMENT,
    )  # fmt: skip
    for image, row in zip(images, table.predictions, strict=True):
        for boxes, label in zip(defense.masked_images.boxes, row, strict=True):
            x = image / 255
            both = np.concatenate([x, 1 - x], axis=2)
            both[oracle.paint(boxes, (8, 8))] = 0
            assert label == np.einsum("hwc,hwck->k", both, params).argmax()


def _of_zeros(model, file):
    shapes = model.param_shapes()
    weights.save(file, jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), shapes))
    return str(file)


def test_certify_with_an_encoding(tmp_path, capsys):
    """A digit is one channel, so the network has two."""
    model = dataclasses.replace(small_resnet(), encoding="complement")
    file = _of_zeros(model, tmp_path / "two.npz")
    options = [
        "--num-images", "4", "--model", "tests.support.small_models:small_resnet",
        "--weights", file, "--patch", "2", "--defense", "plurality:bands=2", "--encoding",
        "complement",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert certify.main([*options, "--fill", "gray"]) == 2
    assert "--fill: expected none beside the encoding complement" in capsys.readouterr().err
    assert certify.main(options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["provenance"]["encoding"] == "complement"
    assert results["provenance"]["preprocessing"]["encoding"] == "complement"


def test_weights_of_another_number_of_channels_are_told_the_encoding(tmp_path):
    three = models.create("cifar_resnet20", input_size=(8, 8))
    six = models.create("cifar_resnet20", input_size=(8, 8), encoding="complement")
    assert jax.tree.leaves(six.param_shapes()["params"]["conv1"])[0].shape[2] == 6
    file = _of_zeros(three, tmp_path / "three.npz")
    with pytest.raises(ValueError, match=r"3 input channels instead of 6\): encoding='fill'"):
        cm.load_model("cifar_resnet20", file, input_size=8, encoding="complement")
    file = _of_zeros(six, tmp_path / "six.npz")
    with pytest.raises(ValueError, match="encoding='complement' is for as many"):
        cm.load_model("cifar_resnet20", file, input_size=8)
    loaded = cm.load_model("cifar_resnet20", file, input_size=8, encoding="complement")
    assert loaded.preprocessing == COMPLEMENT
    for encoding in ("complement", "mask_channel"):  # either has two channels of grey images
        with pytest.raises(ValueError, match=r"1 input channels instead of 2\): encoding='fill'"):
            cm.load_model("vit_digits", encoding=encoding)
