"""What images and preprocessing may be, what objects say of themselves, and what an alert is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import data, models
from certmask_jax.certification import evaluation, verdicts
from certmask_jax.inference.preprocessing import Preprocessing, check_images, from_unit
from certmask_jax.models import DataConfig

MASKS = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2)
DEFENSE = cm.defenses.double_masking(MASKS)
DETECTOR = cm.defenses.minority_reports(MASKS)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)
WEIGHTS = RNG.normal(size=(192, 4)).astype(np.float32)


def _zeros(model):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.param_shapes())


def linear(params, x):
    return x.reshape(x.shape[0], -1) @ params


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, "mean: .* in .0, 1.*divide means .* by 255"),
        ({"mean": (0.485, 0.456, 1.1)}, "mean: "),
        ({"mean": (-0.1,)}, "mean: "),
        ({"mean": (np.nan,)}, "mean: "),
        ({"std": (58.4, 57.1, 57.4)}, "std: .* at most 1.*by 255"),
        ({"std": (1.5,)}, "std: "),
        ({"std": (0.0,)}, "std: "),
        ({"std": (-0.2,)}, "std: "),
        ({"std": (np.inf,)}, "std: "),
        ({"std": ()}, "std: expected numbers"),
        ({"mean": "0.5"}, "mean: expected numbers"),
        ({"mean": ("0.5",)}, "mean: expected numbers"),
        ({"mean": True}, "mean: expected numbers"),
        ({"std": (1e-300,)}, "std: "),
        ({"resize_to": (0, 3)}, "resize_to"),
        ({"resize_to": (224.0, 3)}, "resize_to"),
        ({"mean": [[0.5]]}, "mean: expected numbers"),
        ({"fill": (np.nan,)}, "fill: "),
        ({"fill": (-1.0,)}, "fill: "),
        ({"fill": (256.0,)}, "fill: "),
    ],
)
def test_preprocessing_that_cannot_be_right_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Preprocessing(**options)


def test_preprocessing_that_people_use_is_taken():
    for mean, std in (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5,), (0.5,)),
        ((0.0,), (1.0,)),
        ((127 / 255,), (128 / 255,)),
        ((0.0,), (1 / 255,)),
        (0.5, 0.25),
        ([0.1, 0.2, 0.3], np.array([0.1, 0.2, 0.3], np.float32)),
    ):
        how = Preprocessing(mean=mean, std=std, fill=np.array(7))
        assert hash(how) == hash(Preprocessing(mean=mean, std=std, fill=7))
        assert all(isinstance(v, float) for v in (*how.mean, *how.std, *how.fill))


def test_every_models_own_preprocessing_is_taken():
    for name in models.names():
        config = models.create(name).data_config
        Preprocessing(mean=config.mean, std=config.std)


def test_floats_in_0_to_1_give_the_answers_of_their_levels():
    told = cm.defended(linear, WEIGHTS, DEFENSE, pixels="unit")
    plain = cm.defended(linear, WEIGHTS, DEFENSE)
    for dtype in (np.float32, np.float64, np.float16):
        unit = (IMAGES / 255).astype(dtype)
        np.testing.assert_array_equal(from_unit(unit), IMAGES)
        np.testing.assert_array_equal(told(unit).labels, plain(IMAGES).labels)
    np.testing.assert_array_equal(told(jnp.asarray(IMAGES / 255)).labels, plain(IMAGES).labels)
    # Between two levels the nearest one counts, pixel by pixel.
    assert from_unit([[[[0.4999 / 255, 0.5001 / 255, 1.0]]]]).tolist() == [[[[0, 1, 255]]]]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (IMAGES, r"expected floating pixels in \[0, 1\] .* got uint8"),
        (IMAGES.astype(np.float32), r"got 2?\d?\d among them"),
        (np.full((1, 8, 8, 3), -0.1), "got -0.1 among them"),
        (np.full((1, 8, 8, 3), np.nan), "got nan among them"),
    ],
)
def test_what_is_not_in_0_to_1(images, says):
    with pytest.raises(ValueError, match=says):
        cm.defended(linear, WEIGHTS, DEFENSE, pixels="unit")(images)
    with pytest.raises(ValueError, match="pixels: expected 'uint8' or 'unit'"):
        cm.defended(linear, WEIGHTS, DEFENSE, pixels="float")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (IMAGES / 255, r"expected uint8 .* got float64 in \[0, 1\]; .*pixels='unit'"),
        (IMAGES.astype(np.float32) - 128, "expected uint8 pixels in 0..255, got float32"),
        (IMAGES[..., :1], "expected 3 channels, .* got 1; repeat a grey channel three times"),
        (IMAGES[..., 0], r"grey images have one channel: images\[\.\.\., None\]"),
        (IMAGES[0, :, :, 0], "one grey image is a batch of one with one channel"),
        (np.repeat(IMAGES, 2, axis=3)[..., :4], "expected 3 channels, .* got 4"),
        (np.moveaxis(IMAGES, -1, 1), "channels come last"),
        (IMAGES[0], r"a batch of one: images\[None\]"),
        (np.moveaxis(IMAGES[0], -1, 0), r"channels last: np\.moveaxis\(images, 0, -1\)\[None\]"),
        (np.zeros((8, 8, 8), np.uint8), r"grey images have one channel"),
        (IMAGES[:0], "T >= 1"),
        (IMAGES[:, :7], "expected shape"),
        (IMAGES.astype(str), "got <U3"),
        (IMAGES > 3, "got bool"),
        ([], "expected shape"),
    ],
)
def test_images_that_the_guard_does_not_take(images, says):
    with pytest.raises(ValueError, match=says):
        cm.defended(linear, WEIGHTS, DEFENSE)(images)


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        (1, r"; grey images have one channel: images\[\.\.\., None\]$"),
        (3, r"; one image is .*: np\.moveaxis\(images, 0, -1\)\[None\]$"),
        (None, r"; one image is .*\[None\]; grey images have .* images\[\.\.\., None\]$"),
    ],
)
def test_three_planes_are_an_image_or_grey_ones_by_the_channels_of_the_model(channels, says):
    with pytest.raises(ValueError, match=says) as raised:
        check_images(np.zeros((3, 8, 8), np.uint8), (8, 8), channels)
    assert ("moveaxis" in str(raised.value)) == (channels != 1)


def test_what_takes_no_floats_says_how_they_become_levels():
    """Of ``pixels='unit'`` only what has it speaks."""
    with pytest.raises(ValueError, match=r"by np\.rint\(images \* 255\)\.astype\(np\.uint8\)\)$"):
        cm.predict(linear, WEIGHTS, IMAGES / 255, DEFENSE.masked_images)


def test_a_table_is_of_masked_images_and_not_of_a_defense():
    for masks, got in ((DEFENSE, "DoubleMasking"), (0, "int"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"masks: expected masked images, .* got {got}$"):
            cm.predict(linear, WEIGHTS, IMAGES, masks)


def test_images_of_other_kinds_that_it_takes():
    guarded = cm.defended(linear, WEIGHTS, DEFENSE)
    expected = guarded(IMAGES).labels
    frozen = IMAGES.copy()
    frozen.setflags(write=False)
    for images in (jnp.asarray(IMAGES), frozen, np.asfortranarray(IMAGES)):
        np.testing.assert_array_equal(guarded(images).labels, expected)


def test_grey_images_into_a_model_of_colours_are_our_error():
    model = models.create("cifar_resnet20")
    params = _zeros(model)
    masks = cm.mask_sets.budgeted_grid(32, 5, masks_per_axis=2)
    grey = np.zeros((1, 32, 32, 1), np.uint8)
    defense = cm.defenses.double_masking(masks)
    with pytest.raises(ValueError, match=r"apply_fn: .* float32\[2, 32, 32, 1\].*channels"):
        cm.predict(model.apply_fn, params, grey, defense.masked_images)
    with pytest.raises(ValueError, match=r"apply_fn: .* float32\[2, 32, 32, 1\].*channels"):
        cm.defended(model.apply_fn, params, defense, channels=1)


def test_an_alert_is_the_same_code_everywhere():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
    table = cm.predict(linear, WEIGHTS, images, DETECTOR.masked_images)
    answers = cm.defended(linear, WEIGHTS, DETECTOR)(images)
    np.testing.assert_array_equal(answers.labels, DETECTOR.rule(table))
    np.testing.assert_array_equal(answers.alerts, answers.labels == cm.ALERT)
    assert answers.alerts.any()
    assert not answers.alerts.all()


def _objects(tmp_path):
    guarded = cm.defended(linear, WEIGHTS, DEFENSE)
    table = cm.predict(linear, WEIGHTS, IMAGES, DEFENSE.masked_images)
    digits = data.load("digits", data_config=DataConfig((8, 8), (0.5,), (0.5,), channels=1))
    saved = evaluation.evaluate(
        data.load(
            "digits", num_images=3, data_config=DataConfig((8, 8), (0.5,) * 3, (0.5,) * 3)
        ),
        lambda p, x: linear(p, x) @ jnp.ones((4, 10), jnp.float32) + x[:, 0, 0, :1],
        WEIGHTS,
        [DEFENSE],
        tmp_path,
        preprocessing=Preprocessing(),
        chunk=8,
    )  # fmt: skip
    report = verdicts.certify(saved, [DEFENSE])
    bagnet = models.create("bagnet9", input_size=(16, 16))
    local = cm.defended(
        bagnet.apply_fn,
        _zeros(bagnet),
        cm.defenses.pair_cover(cm.pair_covers.pair_cover(16, 2, budget=10)),
        local=bagnet.local,
    )
    return [
        DEFENSE, DETECTOR, MASKS, MASKS.threat, DEFENSE.masked_images, table, guarded,
        guarded.engine, digits, saved, report, report.defenses[0], bagnet, bagnet.local, local,
        local.engine, Preprocessing(), bagnet.data_config,
    ]  # fmt: skip


def test_every_object_is_one_line(tmp_path):
    for one in _objects(tmp_path):
        text = repr(one)
        assert "\n" not in text
        assert len(text) <= 240, text
        assert " at 0x" not in text
        assert "array(" not in text
        assert type(one).__name__ in text
    assert repr(DEFENSE) == ("DoubleMasking(4 masks of 4x4 for 1x1 patches on 8x8)")
    assert "images uint8 [B, 8, 8, 3]" in repr(cm.defended(linear, WEIGHTS, DEFENSE))
