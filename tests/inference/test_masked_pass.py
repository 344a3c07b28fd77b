"""The masked forward pass as mathematics: on plain arrays, under jit, vmap and grad."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import certmask_jax as cm
from certmask_jax.inference.masked_pass import outputs_of

SIZE, CLASSES = (9, 7), 5
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)
# Two boxes that overlap, one alone beside a spare one, all of the image, nothing.
BOXES = np.array(
    [
        [[1, 2, 4, 5], [3, 3, 9, 7]],
        [[0, 0, 2, 7], [0, 0, 0, 0]],
        [[0, 0, 9, 7], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    np.int32,
)
HIDDEN = np.stack([oracle.paint(boxes, SIZE) for boxes in BOXES])
WEIGHTS = RNG.normal(size=(*SIZE, 3, CLASSES)).astype(np.float32)
PREPROCESSING = cm.Preprocessing(
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), fill=(10.0, 200.0, 60.0)
)


def linear(params, x):
    """A model that tells every pixel apart."""
    return jnp.einsum("bhwc,hwck->bk", x, params)


def _by_hand(images, boxes):
    """Logits in NumPy, in float64."""
    logits = []
    for image, union in zip(images, boxes, strict=True):
        pixels = image.astype(np.float64)
        pixels[oracle.paint(union, SIZE)] = PREPROCESSING.fill
        x = (pixels / 255 - PREPROCESSING.mean) / PREPROCESSING.std
        logits.append(np.einsum("hwc,hwck->k", x, WEIGHTS))
    return np.stack(logits)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32])
@pytest.mark.parametrize("fill", [7, (1, 2, 3)])
def test_hidden_pixels_become_the_fill_and_others_stay(dtype, fill):
    images = IMAGES.astype(dtype)
    for boxes, hidden in zip(BOXES, HIDDEN, strict=True):
        expected = images.copy()
        expected[:, hidden] = fill
        for given, wanted in (
            (images, expected), (images[0], expected[0]), (images[None], expected[None]),
        ):  # fmt: skip
            masked = cm.masked_images(given, boxes, fill)
            assert masked.dtype == dtype
            np.testing.assert_array_equal(masked, wanted)


def test_many_masks_are_a_vmap_and_jit_changes_nothing():
    one = cm.masked_images
    many = jax.jit(jax.vmap(one, (None, 0, None)))(IMAGES, BOXES, 9)
    assert many.shape == (len(BOXES), *IMAGES.shape)
    for boxes, masked in zip(BOXES, many, strict=True):
        np.testing.assert_array_equal(masked, one(IMAGES, boxes, 9))


def test_nothing_of_a_hidden_pixel_is_left():
    images = IMAGES.astype(np.float32)
    images[:, HIDDEN[0]] = np.array([np.nan, np.inf, -np.inf])
    masked = cm.masked_images(images, BOXES[0], 0.5)
    assert (np.asarray(masked)[:, HIDDEN[0]] == 0.5).all()
    assert np.isfinite(masked).all()


def test_the_derivative_is_one_where_a_pixel_is_seen_and_zero_where_it_is_hidden():
    images = IMAGES.astype(np.float32)
    images[:, HIDDEN[0]] = np.nan  # whatever is there
    slopes = jax.grad(lambda x: cm.masked_images(x, BOXES[0], 0.5).sum())(images)
    expected = np.broadcast_to(~HIDDEN[0][..., None], images.shape).astype(np.float32)
    np.testing.assert_array_equal(slopes, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_logits_are_those_by_hand(dtype):
    expected = _by_hand(IMAGES, BOXES)
    given = (WEIGHTS, IMAGES.astype(dtype), BOXES)
    for run in (cm.masked_logits, jax.jit(cm.masked_logits, static_argnums=0)):
        logits = jax.tree_util.Partial(run, linear)(*given)
        assert logits.dtype == np.float32
    run = jax.jit(lambda *a: cm.masked_logits(linear, *a, preprocessing=PREPROCESSING))
    np.testing.assert_allclose(run(*given), expected, rtol=1e-4, atol=1e-3)
    # Each mask on each image: a vmap over images and a list of which is which are the same.
    image_of, mask_of = (axis.ravel() for axis in np.indices((4, 4)))
    listed = cm.masked_logits(
        linear, WEIGHTS, IMAGES, BOXES[mask_of], preprocessing=PREPROCESSING, image_of=image_of
    )
    np.testing.assert_allclose(
        listed, _by_hand(IMAGES[image_of], BOXES[mask_of]), rtol=1e-4, atol=1e-3
    )

    def all_masks(image):
        return run(WEIGHTS, jnp.broadcast_to(image, (4, *image.shape)), BOXES)

    mapped = jax.vmap(all_masks)(IMAGES.astype(dtype)).reshape(16, CLASSES)
    np.testing.assert_allclose(mapped, listed, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("resize_to", [None, (12, 10)])
def test_slopes_are_the_models_where_seen_and_exactly_zero_where_hidden(resize_to):
    preprocessing = cm.Preprocessing(PREPROCESSING.mean, PREPROCESSING.std, resize_to=resize_to)
    weights = WEIGHTS if resize_to is None else RNG.normal(size=(12, 10, 3, CLASSES)).astype("f")
    images = IMAGES.astype(np.float32)

    def score(image, boxes):
        logits = cm.masked_logits(
            linear, weights, image[None], boxes[None], preprocessing=preprocessing
        )
        return logits[0, 2]

    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(score)))(images, BOXES))
    assert (slopes[HIDDEN] == 0).all()
    assert np.isfinite(slopes).all()
    if resize_to is None:
        model = WEIGHTS[..., 2] / (255 * np.array(PREPROCESSING.std, np.float32))
        seen = np.broadcast_to(model, slopes.shape)[~HIDDEN]
        np.testing.assert_allclose(slopes[~HIDDEN], seen, rtol=1e-5)
    else:
        assert (slopes[~HIDDEN] != 0).mean() > 0.9


def test_slopes_of_the_parameters():
    def score(params):
        return cm.masked_logits(linear, params, IMAGES, BOXES).sum()

    slopes = jax.grad(score)(WEIGHTS)
    expected = np.where(HIDDEN[..., None], 0, IMAGES / 255).sum(axis=0)[..., None]
    np.testing.assert_allclose(slopes, np.broadcast_to(expected, slopes.shape), rtol=1e-4)


def test_the_table_says_what_the_logits_say():
    masks = cm.MaskedImages(BOXES, SIZE)
    table = cm.predict(linear, WEIGHTS, IMAGES, masks, preprocessing=PREPROCESSING)
    image_of, mask_of = (axis.ravel() for axis in np.indices((4, 4)))
    logits = _by_hand(IMAGES[image_of], BOXES[mask_of])
    np.testing.assert_array_equal(table.predictions.ravel(), logits.argmax(axis=1))
    top = np.sort(logits, axis=1)
    np.testing.assert_allclose(table.margins.ravel(), top[:, -1] - top[:, -2], rtol=2e-3)


def test_margins_end_where_float16_does():
    """A larger margin is the largest number, not infinity, which says that nobody evaluated it."""
    outputs = outputs_of(jnp.array([[0.0, 65504.0], [0.0, 1e6], [3.0, 1.0]]))
    assert outputs.predictions.tolist() == [1, 1, 0]
    assert outputs.margins.tolist() == [65504, 65504, 2]
    assert outputs.confidences.tolist()[:2] == [1, 1]


@pytest.mark.parametrize(
    ("images", "boxes", "options", "message"),
    [
        (IMAGES[0], BOXES, {}, r"images: expected shape \[B, h, w, c\], got \[9, 7, 3\]"),
        (IMAGES, BOXES[0], {}, r"boxes: expected shape \[W, R, 4\], got \[2, 4\]"),
        (IMAGES[:3], BOXES, {}, "images: expected 4, one for each mask, got 3"),
        (IMAGES, BOXES, {"image_of": np.zeros(2, int)}, r"image_of: expected 4, .* got 2"),
    ],
)
def test_logits_of_other_shapes(images, boxes, options, message):
    with pytest.raises(ValueError, match=message):
        cm.masked_logits(linear, WEIGHTS, images, boxes, **options)


@pytest.mark.parametrize(
    ("images", "boxes", "fill", "message"),
    [
        (IMAGES[0, 0], BOXES[0], 0, r"images: expected shape \[\.\.\., h, w, c\], got \[7, 3\]"),
        (IMAGES, BOXES, 0, r"boxes: expected one mask of shape \[R, 4\], got \[4, 2, 4\]; .*vmap"),
        (IMAGES, BOXES[0], (1, 2), r"fill: expected 1 value or 3 \(channels\), got 2"),
    ],
)
def test_masks_of_other_shapes(images, boxes, fill, message):
    with pytest.raises(ValueError, match=message):
        cm.masked_images(images, boxes, fill)
