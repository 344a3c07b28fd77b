"""What PatchCleanser's own program computed on CIFAR-10, and the reference figures."""

from __future__ import annotations

import os

import numpy as np
import pytest

from certmask_jax import data, defenses, mask_sets, models, predict, weights
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import distinct_unions


@pytest.fixture(scope="module")
def model(shared):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra: data")
    resnet = models.create("cifar_resnet20")
    params = weights.load(shared / "weights" / "cifar10_resnet20_cutout.npz", resnet)
    preprocessing = Preprocessing(resnet.data_config.mean, resnet.data_config.std)
    return resnet, params, preprocessing


def _images(shared, model, count):
    test_set = data.load(
        "cifar10", data_config=model.data_config, data_dir=shared / "data" / "tfds",
        num_images=count,
    )  # fmt: skip
    return test_set.read(0, count)


@pytest.mark.parametrize(("patch", "count"), [(5, 200), (2, 100)])
def test_labels_and_verdicts_equal_patchcleansers_own_program(shared, model, patch, count):
    """Of the first 4 and 2 images, at two seconds of a core each; CERTMASK_JAX_GOLDEN=all: all."""
    resnet, params, preprocessing = model
    count = count if os.environ.get("CERTMASK_JAX_GOLDEN") == "all" else count // 50
    golden = dict(np.load(shared / "golden" / f"patchcleanser_patch{patch}_6x6.npz"))
    batch = _images(shared, resnet, count)
    np.testing.assert_array_equal(batch.labels, golden["label"][:count])
    masks = mask_sets.budgeted_grid(32, patch, masks_per_axis=6)
    np.testing.assert_array_equal(masks.boxes[:, 0], golden["mask_boxes"])
    _, pair = distinct_unions.unions(masks, 2)
    double, challenger = defenses.double_masking(masks), defenses.challenger_masking(masks)
    table = predict(
        resnet.apply_fn, params, batch.images, double.masked_images, preprocessing=preprocessing
    )
    clear = table.margins[:, pair] > 1e-3
    expected = golden["two_mask_labels"][:count]
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(table.predictions[:, pair][clear], expected[clear])
    sure = clear.all(axis=(1, 2))
    assert sure.mean() > 0.5
    for ours, name in (
        (double.rule(table), "double_masking"),
        (challenger.rule(table), "challenger_masking"),
        (double.conditions(table, batch.labels)["two_mask_correct"], "two_mask_correct"),
        (double.worst_case(table, batch.labels), "two_mask_correct"),
        (challenger.worst_case(table, batch.labels), "two_mask_correct"),
    ):
        np.testing.assert_array_equal(ours[sure], golden[name][:count][sure])


def test_undefended_accuracy_of_the_real_weights_on_the_first_thousand(shared, model):
    resnet, params, preprocessing = model
    batch = _images(shared, resnet, 1000)
    table = predict(
        resnet.apply_fn, params, batch.images, distinct_unions.unmasked((32, 32)),
        preprocessing=preprocessing,
    )  # fmt: skip
    assert abs(np.mean(table.predictions[:, 0] == batch.labels) - 0.862) <= 0.002
