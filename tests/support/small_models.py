"""Models that compile in a second, as models of the package."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from numpy.typing import NDArray

from certmask_jax import mask_sets, models, weights
from certmask_jax.data import digits_arrays
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.models import Model, Params
from certmask_jax.models.bagnet import BagNet
from certmask_jax.models.cifar_bagnet import CifarBagNet, Layer
from certmask_jax.models.cifar_resnet import CifarResNet
from certmask_jax.models.vit import VisionTransformer


@functools.cache
def small_resnet() -> Model:
    """Three blocks with batch norm, for the digits."""
    return _replaced(
        lambda **given: CifarResNet(num_classes=10, blocks_per_stage=1, widths=(4, 8, 8), **given),
        name="small_resnet",
    )


@functools.cache
def small_vit(**options) -> Model:
    """One block, for the digits."""
    del options
    return _replaced(
        lambda **given: VisionTransformer(
            num_classes=10, patch=4, width=8, depth=1, num_heads=2, **given
        ),
        name="small_vit",
    )


class _Linear(nn.Module):
    is_training: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, name="fc")(x.reshape(len(x), -1))


@functools.cache
def linear_digits(**options) -> Model:
    """A linear model: right about most digits, masked ones too, and attacked in no time."""
    del options
    return _replaced(_Linear, name="linear_digits")


@functools.cache
def _linear_weights() -> NDArray[np.float32]:
    """``float32[65, 10]``, by least squares: of the digits, and under grey 2x2 and 3x3 masks."""
    config = linear_digits().data_config
    images, labels = digits_arrays("train")
    seen = ((images / 255 - config.mean) / config.std)[..., 0]
    copies = [seen]
    for masks_per_axis in (2, 3):
        for [[top, left, bottom, right]] in mask_sets.budgeted_grid(
            8, 1, masks_per_axis=masks_per_axis
        ).boxes:
            copies.append(seen.copy())
            copies[-1][:, top:bottom, left:right] = (0.5 - config.mean[0]) / config.std[0]
    known = np.concatenate(copies).reshape(-1, 64)
    known = np.concatenate([known, np.ones((len(known), 1))], axis=1)
    wanted = 8.0 * np.eye(10)[np.tile(labels, len(copies))]
    return np.linalg.solve(known.T @ known + 1e-3 * np.eye(65), known.T @ wanted).astype(np.float32)


def write_linear_digits(file: Path) -> list[str]:
    """Writes weights of ``linear_digits``; how a command line names the model and these."""
    solved = _linear_weights()
    weights.save(file, {"params": {"fc": {"kernel": solved[:-1], "bias": solved[-1]}}})
    return ["--model", "tests.support.small_models:linear_digits", "--weights", str(file)]


def _with_lead(lead, name: str) -> Model:
    """``small_vit`` on other pixels: ``lead(x)`` comes before it."""
    model = small_vit()
    apply_fn = model.apply_fn
    return dataclasses.replace(
        model, name=name, apply_fn=lambda params, x: apply_fn(params, lead(x))
    )


@functools.cache
def rounded_vit(**options) -> Model:
    """Has a slope of 0 everywhere."""
    del options
    return _with_lead(lambda x: jax.numpy.round(x * 4) / 4, "rounded_vit")


@functools.cache
def looping_vit(**options) -> Model:
    """JAX cannot differentiate it."""
    del options

    def same(x):
        return jax.lax.while_loop(lambda now: now[0].sum() < -1e9, lambda now: now, (x,))[0]

    return _with_lead(same, "looping_vit")


@functools.cache
def small_split_vit(**options) -> Model:
    """Two blocks and 4x4 tokens on a digit, to be cut."""
    del options
    return _replaced(
        lambda **given: VisionTransformer(
            num_classes=10, patch=2, width=8, depth=2, num_heads=2, **given
        ),
        name="small_split_vit",
    )


def _local_logits(params, images):
    return _bagnet().apply(params, images, method="local_logits")


@functools.cache
def _bagnet():
    return BagNet(num_classes=10, kernels=(1, 1, 1, 1), blocks=(1, 1, 1, 1),
                  strides=(1, 1, 1, 1), width=4)  # fmt: skip


@functools.cache
def small_bagnet(**options) -> Model:
    """Fields of 3 pixels, 6x6 of them on a digit."""
    del options
    module = _bagnet()
    return dataclasses.replace(
        models.create("vit_digits"),
        name="small_bagnet",
        module=module,
        train_module=BagNet(num_classes=10, kernels=(1, 1, 1, 1), is_training=True),
        apply_fn=module.apply,
        local=LocalLogits(_local_logits, field=module.receptive_field, stride=module.stride),
    )


def bagnet_of_wrong_field(**options) -> Model:
    """The same, which says that its fields have 2 pixels."""
    model = small_bagnet()
    local = LocalLogits(lambda p, x: _local_logits(p, _padded(x)), field=2, stride=1)
    return dataclasses.replace(model, name="wrong", local=local)


@functools.cache
def in_own_parts(**options) -> Model:
    """Cut as a user's function may give it: stripes of two tokens, 1x4 cells."""
    del options
    cut = models.in_two_parts(small_split_vit(), windows=(4, 1), depth=1)
    return dataclasses.replace(cut, name="in_own_parts")


def parts_of_wrong_field(**options) -> Model:
    """The same, of which each cell is said twice, and to see half of what it sees."""
    cut = in_own_parts(**options)
    parts = cut.apply_fn
    claims = TwoParts(
        lambda params, images: jax.numpy.repeat(parts.stem(params, images), 2, axis=2),
        lambda params, features, hidden: parts.head(params, features[:, :, ::2], hidden[:, :, ::2]),
        field=(8, 1), stride=(8, 1), image_size=8,
    )  # fmt: skip
    return dataclasses.replace(cut, apply_fn=claims)


def _padded(images):
    return jax.numpy.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))


@functools.cache
def small_local() -> Model:
    """Fields of 5 pixels every 2, and 2x2 of them on a digit; for training."""
    module = _local_net(is_training=False)

    def local_logits(params, images):
        return module.apply(params, images, method="local_logits")

    return dataclasses.replace(
        _replaced(_local_net, name="small_local"),
        local=LocalLogits(local_logits, field=module.receptive_field, stride=module.stride),
    )


def _local_net(**given) -> CifarBagNet:
    layers = (Layer(4, 3), Layer(6, 3, 2), Layer(5))
    return CifarBagNet(num_classes=10, layers=layers, **given)


@functools.cache
def drawn_params(model: Model) -> Params:
    """Random variables by NumPy, of shapes alone: for deep models, which take long to compile."""
    random = np.random.default_rng(0)

    def drawn(path, leaf):
        ones = path[-1].key in ("var", "scale")
        return np.ones(leaf.shape, np.float32) if ones else _normal(random, leaf.shape)

    return jax.tree_util.tree_map_with_path(drawn, model.param_shapes())


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return random.normal(scale=0.05, size=shape).astype(np.float32)


def first_params(model: Model) -> Params:
    """Random variables; making them takes longer than training these models does."""
    return jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))


def _replaced(build, name: str) -> Model:
    module = build(is_training=False)
    return dataclasses.replace(
        models.create("vit_digits"),
        name=name,
        module=module,
        train_module=build(is_training=True),
        apply_fn=module.apply,
    )
