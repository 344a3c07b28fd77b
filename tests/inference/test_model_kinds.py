"""What may be asked of a model function beside calling it."""

from __future__ import annotations

import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import models
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.model_kinds import ModelKind, kind_of
from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.inference.token_dropping import SeenTokens, TokenDropping
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.masks.distinct_unions import unmasked


def _plain(params, images):
    return images.reshape(len(images), -1) @ params


PARTS = TwoParts(_plain, _plain, field=4, stride=2, image_size=(8, 10))
FUNCTION = NumpyFunction(lambda images: images, num_classes=3, sha256="its weights")
SEEN = SeenTokens(TokenDropping(_plain, 4), most=3)
VIEWED = cm.with_views(_plain, "mirror")


def test_a_plain_function_has_nothing_to_ask_for():
    for plain in (_plain, lambda params, images: images):
        kind = kind_of(plain)
        assert kind == ModelKind()
        assert kind.is_traced
        assert kind.hides_pixels
        assert kind.dropping is None
        assert not kind.views
        assert kind.image_size((3, 4)) == kind.masked_size((3, 4)) == (3, 4)
        assert kind.facts == {}


def test_the_masks_of_parts_are_those_of_their_map():
    kind = kind_of(PARTS)
    assert kind.parts is PARTS
    assert kind.is_traced
    assert not kind.hides_pixels
    assert kind.masked_size((8, 10)) == (3, 4)  # cells of 4x4 pixels, every 2 of 8x10
    assert kind.image_size((3, 4)) == (8, 10)
    assert kind.facts["two_parts"]["cells"] == [3, 4]


def test_others_are_themselves_and_hide_pixels():
    """The same objects, as these key what is compiled."""
    assert kind_of(FUNCTION).numpy_function is FUNCTION
    assert not kind_of(FUNCTION).is_traced
    assert kind_of(SEEN).seen_tokens is SEEN
    assert kind_of(SEEN).dropping is SEEN.dropping
    assert [view.name for view in kind_of(VIEWED).views] == ["itself", "mirror"]
    for model in (FUNCTION, SEEN, VIEWED):
        kind = kind_of(model)
        assert kind.hides_pixels
        assert kind.parts is None
        assert kind.facts == {}
        assert kind.image_size((3, 4)) == kind.masked_size((3, 4)) == (3, 4)
    assert kind_of(SEEN).is_traced
    assert kind_of(VIEWED).is_traced


@pytest.mark.parametrize(
    ("apply_fn", "given", "said"),
    [
        (PARTS, "local", "local: expected none beside a model in two parts, which has no local"),
        (FUNCTION, "local", "local: expected none beside a NumPy function, which has no local"),
        (SEEN, "local", "dropping: expected none beside local logits; leave it out"),
        (VIEWED, "local", "local: expected none beside views, as a mean over views"),
        (PARTS, "dropping", "dropping: expected none beside a model in two parts; leave it out"),
        (FUNCTION, "dropping", "dropping: expected none beside a NumPy function; leave it out"),
        (VIEWED, "dropping", "dropping: expected none beside views, as a view moves"),
        (PARTS, "views", "views: expected none for a model in two parts, as a view"),
        (FUNCTION, "views", "views: expected none for a NumPy function, which can average"),
        (SEEN, "views", "views: expected none for a model that drops hidden tokens, as a view"),
        (VIEWED, "views", "views: expected a model without views, got one with itself, mirror"),
    ],
)
def test_what_does_not_go_together_is_refused(apply_fn, given, said):
    options = {
        "local": {"local": LocalLogits(_plain, 4, 2)},
        "dropping": {"dropping": SEEN.dropping},
        "views": {"views": "mirror"},
    }[given]
    with pytest.raises(ValueError, match=said):
        engine_for(
            apply_fn,
            (),
            (8, 10, 3),
            unmasked((8, 10)),
            preprocessing=cm.Preprocessing(),
            **options,
        )


def _of_images(images):
    return images.reshape(len(images), -1)


def _of_numbers(params, images):
    return np.asarray(images).reshape(len(images), -1)


def _of_another_framework(params, images):
    raise TypeError(f"expected np.ndarray (got {type(images).__name__})")


def _wrong_of_itself(params, images):
    return images if images.mean() > 0 else params  # which JAX refuses, and says why


MODEL = models.from_function(_of_images, num_classes=64, input_size=(8, 8), channels=1, sha256="1")
NUMPY = r"a function of images in NumPy, .* is given as models\.from_function\(\.\.\.\)\.apply_fn, "


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (_of_images, NUMPY),
        (_of_numbers, NUMPY),
        (_of_another_framework, NUMPY),
        (_wrong_of_itself, "do the images have the channels and the size that the model is for"),
        (MODEL, "^apply_fn: expected a function, got a Model; give its apply_fn$"),
        (models.create("vit_digits"), "^apply_fn: expected .* got a Model; give its apply_fn$"),
        (None, "^apply_fn: expected a function, got a NoneType$"),
    ],
)
def test_what_is_no_model_function_is_answered_with_what_is(given, said):
    defense = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2))
    images = np.zeros((1, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match=said):
        cm.predict(given, (), images, defense.masked_images)
    with pytest.raises(ValueError, match=said):
        cm.defended(given, (), defense, channels=1)(images)
