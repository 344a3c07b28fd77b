"""Users' settings of JAX: stricter checks change nothing, and what cannot run is said."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import data, models, training, weights
from certmask_jax.inference.chunk_program import compiled_chunk
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import jax_settings
from certmask_jax.training import input_pipeline
from certmask_jax.training.recipes import RECIPES
from tests.support.small_models import first_params, small_vit

GRID = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2)
DEFENSES = (
    cm.defenses.double_masking, cm.defenses.minority_reports, cm.defenses.minimum_explanation,
    cm.defenses.robust_masking, cm.defenses.mrcert, cm.defenses.certmask,
)  # fmt: skip

# Of those that are not strict in all tests.
SETTINGS = {
    "guard": lambda: jax.transfer_guard("disallow"),
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "leaks": lambda: jax.checking_leaks(),
    "precision": lambda: jax.default_matmul_precision("BF16_BF16_F32"),
}
GENERATORS = {
    "x64": lambda: jax.enable_x64(True),
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "threefry": lambda: jax.threefry_partitionable(False),
}


@pytest.fixture(scope="module")
def digits():
    model = small_vit()
    images, labels = data.digits_arrays("test")
    return model, first_params(model), images[:3], labels[:3]


def _all_of(digits):
    model, params, images, labels = digits
    by_defense = {}
    for make in DEFENSES:
        defense = make(GRID)
        table = cm.predict(model.apply_fn, params, images, defense.masked_images)
        guarded = cm.defended(model.apply_fn, params, defense, channels=1)
        proofs = defense.certificate(table, labels), defense.worst_case(table, labels)
        every = (
            table.predictions, table.margins, table.confidences, defense.rule(table), *proofs,
            *guarded(images),
        )  # fmt: skip
        by_defense[defense.name] = [np.asarray(values).tolist() for values in every]
    return by_defense


def test_the_library_under_strict_settings(digits):
    expected = _all_of(digits)
    for name in ("guard", "nans", "x64"):
        with {**SETTINGS, **GENERATORS}[name]():
            assert _all_of(digits) == expected, name


def test_weights_under_a_guard():
    model, file = models.create("vit_digits"), models.default_weights("vit_digits")
    params = weights.load(file, model)
    with jax.transfer_guard("disallow"):
        again = weights.load(file, model)
    assert weights.digest(again) == weights.digest(params)


def test_logits_that_are_not_finite_are_reported_and_not_raised():
    def broken(params, images):
        return images.reshape(len(images), -1)[:, :4] / 0.0 * params[None]

    images = np.zeros((1, 8, 8, 1), np.uint8)
    masks = cm.defenses.double_masking(GRID).masked_images
    with jax.debug_nans(True), pytest.warns(RuntimeWarning, match="NaN or infinite logits"):
        table = cm.predict(broken, np.ones(4, np.float32), images, masks)
    assert (table.predictions == cm.NO_LABEL).all()


def _trained():
    model = small_vit()
    images, labels = data.digits_arrays("train")
    source = input_pipeline.InMemory(images[:128], labels[:128])
    recipe = dataclasses.replace(
        RECIPES["digits"][1],
        epochs=1,
        batch_size=64,
        flip=True,
        crop=1,
        cutout="two_masks",
        ema=0.9,
    )
    done = training.train(model, source, recipe=recipe, cutout_masks=(GRID,))
    row = done.rows[-1]
    return weights.digest(done.params), row.loss, row.learning_rate


def test_training_is_the_same_under_all_settings():
    expected = _trained()
    every = {**SETTINGS, **GENERATORS}
    with contextlib.ExitStack() as stack:  # all at once: one compilation, and it is no less strict
        for name in ("guard", "nans", "precision", "x64", "rbg", "threefry"):
            stack.enter_context(every[name]())
        assert _trained() == expected


def test_a_generator_is_noticed():
    """The settings above do change what JAX draws: the tests could fail."""
    usual = jax.random.uniform(jax.random.key(0), (3,)).tolist()
    for name, setting in GENERATORS.items():
        with setting():
            assert jax.random.uniform(jax.random.key(0), (3,)).tolist() != usual, name


def test_what_cannot_run_is_named():
    def linear(params, images):
        return images.reshape(len(images), -1) @ params

    with jax.disable_jit(), pytest.raises(ValueError, match=r"JAX_DISABLE_JIT\) is set; unset it"):
        compiled_chunk(
            linear, Preprocessing(), device_mesh(), np.ones((64, 4), np.float32), (1, 8, 8, 1), 1, 8
        )
    before = jax.config.values["jax_disable_jit"]
    try:
        jax.config.update("jax_disable_jit", True)
        with pytest.raises(ValueError, match=r"^JAX_DISABLE_JIT: expected that programs are"):
            jax_settings.check()
    finally:
        jax.config.update("jax_disable_jit", before)


@pytest.mark.parametrize("value", ["0", "-3"])
def test_counts_of_devices(monkeypatch, value):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", value)
    with pytest.raises(ValueError, match=f"^JAX_NUM_CPU_DEVICES={value}: expected at least 1"):
        jax_settings.check()
