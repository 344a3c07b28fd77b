"""A model of bounds: what it is certain of no pixel changes, tried with every grey level."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import defenses, mask_sets
from certmask_jax.data import digits_arrays
from certmask_jax.inference import bounded_model
from certmask_jax.inference.bounded_model import BoundedModel
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables.outputs import CERTAIN

HOW = Preprocessing(mean=(0.3,), std=(0.4,))
PLACES = mask_sets.budgeted_grid(8, 1, mask_stride=1)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


NET = Net()


@pytest.fixture(scope="module")
def images():
    return np.asarray(digits_arrays("test")[0][:12])


@pytest.fixture(scope="module")
def params(images):
    """Weights at random, of which the answers of some images withstand a pixel and some do not."""
    made = NET.init(jax.random.key(2), jnp.zeros((1, 8, 8, 1)))
    made = jax.tree.map(np.array, made)
    made["params"]["Conv_0"]["kernel"] *= 0.5
    made["params"]["Dense_0"]["bias"][:2] = 0.5, 0.45
    return made


def test_what_is_certain_no_grey_level_of_any_pixel_changes(images, params):
    defense = defenses.IntervalBounds(PLACES)
    table = cm.predict(
        BoundedModel(NET.apply), params, images, defense.masked_images, preprocessing=HOW
    )
    answers = defense.rule(table)
    proved = defense.worst_case(table, answers)
    assert 0 < proved.sum() < len(images)
    apply_fn = jax.jit(NET.apply)

    def said(pixels):
        return np.asarray(apply_fn(params, (pixels.astype(np.float32) / 255 - 0.3) / 0.4))

    np.testing.assert_array_equal(said(images).argmax(axis=1), answers)
    changed = np.zeros(len(images), bool)
    for number, image in enumerate(images):
        patched = np.broadcast_to(image, (64, 256, 8, 8, 1)).copy()
        for place in range(64):
            patched[place, :, place // 8, place % 8, 0] = np.arange(256)
        wrong = said(patched.reshape(-1, 8, 8, 1)).argmax(axis=1) != answers[number]
        changed[number] = wrong.any()
        # And place by place: the masked image that hides it.
        certain = _certain(table, number, answers[number])
        columns = _columns(defense)
        assert not (wrong.reshape(64, 256).any(axis=1) & certain[columns]).any()
    assert changed.any()
    assert not (changed & proved).any()


def _certain(table, number, answer):
    return (table.predictions[number] == answer) & (table.confidences[number] == CERTAIN)


def _columns(defense):
    """Which masked image hides each pixel."""
    boxes = defense.masked_images.boxes
    first = boxes.reshape(len(boxes), -1, 4)[:, 0]
    of_pixel = {tuple(box[:2]): column for column, box in enumerate(first) if box[2] > box[0]}
    return np.array([of_pixel[divmod(pixel, 8)] for pixel in range(64)])


def test_a_mutant_that_trusts_the_middle_is_caught(images, params):
    """Labels half way between the bounds are no proof: some of them an attacker changes."""
    defense = defenses.IntervalBounds(PLACES)
    table = cm.predict(
        BoundedModel(NET.apply), params, images, defense.masked_images, preprocessing=HOW
    )
    trusted = dataclasses.replace(
        table,
        margins=np.ones_like(table.margins),
        confidences=np.full_like(table.confidences, CERTAIN),
    )
    answers = defense.rule(table)
    more = defense.worst_case(trusted, answers) & ~defense.worst_case(table, answers)
    assert more.any()
    fooled = 0
    for image, answer in zip(images[more], answers[more], strict=True):
        patched = np.broadcast_to(image, (64, 2, 8, 8, 1)).copy()
        for place in range(64):
            patched[place, :, place // 8, place % 8, 0] = [0, 255]
        logits = NET.apply(
            params, (patched.reshape(-1, 8, 8, 1).astype(np.float32) / 255 - 0.3) / 0.4
        )
        fooled += bool((np.asarray(logits).argmax(axis=1) != answer).any())
    assert fooled > 0


def test_the_image_itself_is_what_the_model_says(images, params):
    unmasked = defenses.IntervalBounds(PLACES).masked_images
    whole = cm.predict(NET.apply, params, images, unmasked, preprocessing=HOW)
    bounded = cm.predict(BoundedModel(NET.apply), params, images, unmasked, preprocessing=HOW)
    nothing = (unmasked.boxes[..., 2] == unmasked.boxes[..., 0]).all(axis=1)
    np.testing.assert_array_equal(bounded.predictions[:, nothing], whole.predictions[:, nothing])
    np.testing.assert_allclose(bounded.margins[:, nothing], whole.margins[:, nothing], atol=5e-3)
    assert (bounded.margins[:, nothing] <= whole.margins[:, nothing]).all()


def test_broken_logits_of_an_image_are_no_label(images, params):
    broken = jax.tree.map(np.array, params)
    broken["params"]["Dense_0"]["bias"][0] = np.nan
    masks = defenses.IntervalBounds(PLACES).masked_images
    with pytest.warns(RuntimeWarning, match="NaN or infinite logits for 2 images"):
        table = cm.predict(BoundedModel(NET.apply), broken, images[:2], masks, preprocessing=HOW)
    nothing = (masks.boxes[..., 2] == masks.boxes[..., 0]).all(axis=1)
    assert (table.predictions[:, nothing] == cm.NO_LABEL).all()
    assert (table.confidences == 0).all()


def test_what_is_no_box_is_refused(images, params):
    masks = defenses.IntervalBounds(PLACES).masked_images
    model = BoundedModel(NET.apply)
    for preprocessing, message in (
        (dataclasses.replace(HOW, precision="bfloat16"), "precision: for interval bounds"),
        (dataclasses.replace(HOW, resize_to=(16, 16)), "resize_to: for interval bounds"),
        (Preprocessing(encoding="mask_channel"), "encoding: for interval bounds"),
    ):
        with pytest.raises(ValueError, match=message):
            cm.predict(model, params, images, masks, preprocessing=preprocessing)


def test_pixels_are_widened_by_what_a_mean_may_cancel():
    """Exact division, a product with 1/255, and what is compiled: all grey levels lie inside."""
    how = Preprocessing(mean=(0.485,), std=(0.229,))
    grey = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    lower, upper = bounded_model.boxes_of(
        jnp.asarray(grey), jnp.arange(256), jnp.zeros((256, 1, 4), jnp.int32), how
    )
    mean, std = np.float32(0.485), np.float32(0.229)
    levels = grey.astype(np.float32)
    exact = ((levels.astype(np.float64) / 255 - np.float64(mean)) / np.float64(std)).astype(float)
    ways = (exact, (levels / np.float32(255) - mean) / std,
            (levels * np.float32(1 / 255) - mean) * np.float32(1 / std))  # fmt: skip
    for one in ways:
        assert (np.asarray(lower, np.float64) <= one).all()
        assert (one <= np.asarray(upper, np.float64)).all()
    assert (np.asarray(upper) - np.asarray(lower)).max() < 2e-5


def test_views_of_bounds_are_refused(images, params):
    masks = defenses.IntervalBounds(PLACES).masked_images
    with pytest.raises(ValueError, match="views: expected none for a model of bounds"):
        cm.predict(
            BoundedModel(NET.apply), params, images, masks, preprocessing=HOW, views="mirror"
        )


def test_it_is_a_kind_of_its_own():
    assert kind_of(BoundedModel(NET.apply)).facts == {"hidden_pixels": "bounded"}
    assert BoundedModel(NET.apply) == BoundedModel(NET.apply)
    assert kind_of(NET.apply).bounded is None
