"""Models that compile in a second, as models of the package."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from certmask_jax import models
from certmask_jax.models import Model, Params
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
def small_vit() -> Model:
    """One block, for the digits."""
    return _replaced(
        lambda **given: VisionTransformer(
            num_classes=10, patch=4, width=8, depth=1, num_heads=2, **given
        ),
        name="small_vit",
    )


@functools.cache
def first_params(model: Model) -> Params:
    """Random variables; making them takes longer than training these models does."""
    return jax.tree.map(np.asarray, model.init(jax.random.key(0)))


def _replaced(build, name: str) -> Model:
    module = build(is_training=False)
    return dataclasses.replace(
        models.create("vit_digits"),
        name=name,
        module=module,
        train_module=build(is_training=True),
        apply_fn=module.apply,
    )
