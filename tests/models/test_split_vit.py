"""ViTs in two parts against a plain loop over windows, which leaves hidden ones out."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import oracle_split_vit
import pytest

from certmask_jax import models
from certmask_jax.inference.two_parts import TwoParts, check_parts
from certmask_jax.models.parts_choice import in_two_parts
from certmask_jax.models.vit import VisionTransformer
from tests.support.small_models import small_bagnet

HEADS, SIZE = 2, 16  # 4x4 tokens
SHAPES = {
    "plain": {},
    "registers": {"registers": 2, "class_position": False, "layer_scale": 0.5},
    "mean": {"pooling": "mean"},
    "all tokens": {"last_block": "all"},
}


@functools.cache
def _model(shape):
    module = VisionTransformer(
        num_classes=5, patch=4, width=8, depth=3, num_heads=HEADS, **SHAPES[shape]
    )
    base = models.create("vit_digits")
    config = dataclasses.replace(base.data_config, input_size=(SIZE, SIZE), channels=3)
    return dataclasses.replace(
        base, name="tiny", num_classes=5, module=module, apply_fn=module.apply, data_config=config
    )


@functools.cache
def _params(shape):
    random = np.random.default_rng(0)
    shapes = _model(shape).param_shapes()
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            random.normal(0, 0.4, leaf.shape) + (path[-1].key in ("scale", "gamma"))
        ).astype(np.float32),
        shapes,
    )


def _images(count=3):
    return np.random.default_rng(1).normal(size=(count, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "windows", "depth"),
    [
        ("plain", (4, 1), 2),
        ("plain", (2, 2), 3),
        ("registers", (4, 2), 1),
        ("mean", (4, 1), 3),
    ],
)
def test_logits_are_those_of_the_windows_that_are_seen(shape, windows, depth):
    model, params = in_two_parts(_model(shape), windows=windows, depth=depth), _params(shape)
    parts = model.apply_fn
    assert isinstance(parts, TwoParts)
    assert parts.field == parts.stride == (4 * windows[0], 4 * windows[1])
    assert parts.grid == (4 // windows[0], 4 // windows[1])
    images = _images()
    random = np.random.default_rng(2)
    hidden = random.random((len(images), *parts.grid)) < 0.5
    hidden[0] = False
    hidden[:, -1, -1] = False  # at least one is seen
    features = jax.jit(parts.stem)(params, images)
    logits = jax.jit(parts.head)(params, features, hidden)
    expected = [
        oracle_split_vit.logits(
            params["params"], image, cells, heads=HEADS, windows=windows, split=depth,
            pooling=SHAPES[shape].get("pooling", "token"),
        )
        for image, cells in zip(images, hidden, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    assert np.ptp(np.asarray(expected)) > 0.5
    if shape == "registers":
        check_parts(parts, params, 3)


@pytest.mark.parametrize("shape", ["plain", "registers", "mean"])
def test_without_blocks_within_windows_it_is_the_vit_itself(shape):
    model, params = _model(shape), _params(shape)
    parts = in_two_parts(model, windows=(2, 2), depth=0).apply_fn
    whole, split = (jax.jit(function)(params, _images()) for function in (model.apply_fn, parts))
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)


def test_the_class_token_alone_is_kept_after_the_last_block():
    def features(shape):
        parts = in_two_parts(_model(shape), windows=(4, 1), depth=3).apply_fn
        return jax.eval_shape(parts.stem, _params(shape), _images()).shape

    assert features("plain") == (3, 1, 4, 1, 8)
    assert features("all tokens") == features("mean") == (3, 1, 4, 5, 8)


def test_equal_models_have_equal_parts_so_that_jax_compiles_once():
    one, other = (in_two_parts(_model("plain"), windows=(4, 1), depth=2) for _ in range(2))
    assert one.apply_fn == other.apply_fn
    assert hash(one.apply_fn) == hash(other.apply_fn)
    other = in_two_parts(_model("plain"), windows=(4, 1), depth=1)
    assert one.apply_fn != other.apply_fn
    assert one.apply_fn.facts != other.apply_fn.facts
    bagnet = small_bagnet()
    assert in_two_parts(bagnet).apply_fn == in_two_parts(bagnet).apply_fn


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("plain", {"windows": (3, 1), "depth": 1}, "divides the 4 rows of tokens .* got 3x1"),
        ("plain", {"windows": (4, 8), "depth": 1}, "divides the 4 columns, got 4x8"),
        ("plain", {"windows": (4, 1), "depth": 4}, "depth: expected from 0 to 3, .* got 4"),
        ("plain", {"windows": (4, 1), "depth": -1}, "got -1"),
        ("plain", {"windows": (4, 1)}, "expected windows and depth for tiny"),
        ("bagnet", {"windows": (4, 1), "depth": 1}, "whose local logits are the features"),
        ("resnet", {"windows": (4, 1), "depth": 1}, "expected a ViT, or a model with local logits"),
    ],
)
def test_what_cannot_be(model, options, words):
    others = {"bagnet": small_bagnet, "resnet": lambda: models.create("cifar_resnet20")}
    with pytest.raises(ValueError, match=words):
        in_two_parts(others.get(model, lambda: _model("plain"))(), **options)
