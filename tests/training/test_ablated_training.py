"""Training on bands and blocks, and on masked features: against mask sets and by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import first_params, small_local, small_vit

from certmask_jax import data, mask_sets, training
from certmask_jax.inference.devices import device_mesh
from certmask_jax.training import cutout, masked_features, step
from certmask_jax.training.input_pipeline import InMemory
from certmask_jax.training.recipes import Recipe

TINY = Recipe(epochs=2, batch_size=64, learning_rate=1e-2)


def _digits(count: int = 64) -> InMemory:
    images, labels = data.digits_arrays("train")
    return InMemory(images[:count], labels[:count])


# --- bands ---


def _seen(masks) -> list[bytes]:
    """What each mask of a set leaves to be seen."""
    seen = []
    for boxes in masks.boxes:
        left = np.ones(masks.image_size, bool)
        for top, start, bottom, end in boxes:
            left[top:bottom, start:end] = False
        seen.append(left.tobytes())
    return seen


@pytest.mark.parametrize("kind", cutout.BANDS)
def test_bands_are_those_of_the_mask_set_round_the_border_and_equally_likely(kind):
    possible = _seen(getattr(mask_sets, kind)((5, 6), 1, band=2))
    images = np.random.default_rng(0).uniform(1, 2, (3000, 5, 6, 2)).astype(np.float32)
    cut = np.asarray(cutout.random_bands(jax.random.key(0), images, kind=kind, band=2))
    kept = (cut != 0).all(-1)
    np.testing.assert_array_equal(cut, np.where(kept[..., None], images, 0))
    counts = np.array([[one.tobytes() for one in kept].count(seen) for seen in possible])
    assert counts.sum() == 3000
    shares = np.full(len(possible), 1 / len(possible))
    if kind == "row_and_column_bands":  # five of rows and six of columns, by the toss of a coin
        shares = np.array([1 / 10] * 5 + [1 / 12] * 6)
    assert (np.abs(counts - 3000 * shares) < 5 * np.sqrt(3000 * shares)).all()


def test_a_step_sees_bands_alone():
    recipe = dataclasses.replace(TINY, cutout="column_bands")
    images_of = training.training_images.TrainingImages.of(small_vit(), recipe, ())
    given = np.asarray(images_of(jax.random.key(0), _digits().images, None))
    shown = (given != 0).any(axis=(1, 3)).sum(axis=1)
    assert set(shown) == {1}  # 4 of 32 columns are one of eight


def test_band_size_is_the_papers_scaled():
    assert [cutout.default_band((side, side + 5)) for side in (32, 224, 8, 2)] == [4, 28, 1, 1]


# --- masked features ---


def test_windows_lie_inside_and_are_equally_likely():
    kept = masked_features.random_windows(jax.random.key(0), 2000, grid=(4, 3), window=2)
    found = [one.tobytes() for one in np.asarray(kept)]
    places = []
    for row, column in np.ndindex(3, 2):
        left = np.ones((4, 3), bool)
        left[row : row + 2, column : column + 2] = False
        places.append(left.tobytes())
    counts = np.array([found.count(place) for place in places])
    assert counts.sum() == 2000
    assert np.abs(counts - 2000 / 6).max() < 5 * np.sqrt(2000 / 6)


def test_kept_mean_by_hand_and_nothing_comes_from_what_is_taken_out():
    local = jnp.array([[[[1.0, 2], [3, 4]], [[5, 6], [jnp.nan, jnp.inf]]]])
    kept = jnp.array([[[True, True], [True, False]]])
    np.testing.assert_array_equal(masked_features.kept_mean(local, kept), [[3, 4]])
    slope = jax.grad(lambda u: masked_features.kept_mean(u, kept)[0, 0])(local)
    np.testing.assert_allclose(slope[0, ..., 0], [[1 / 3, 1 / 3], [1 / 3, 0]], rtol=1e-6)


def _after_one_step(model, recipe, devices=1):
    mesh = device_mesh(iter(jax.devices()[:devices]))
    made = step.trainer(model, recipe, num_images=64, mesh=mesh)
    batch = made.put(_digits().gather(np.arange(64)), np.array([3, 5], np.uint32))
    state, measures = made.step(made.start(first_params(model)), batch)
    return jax.device_get(state), float(measures.loss), int(measures.correct)


def test_a_step_with_masked_features_by_hand():
    model, batch = small_local(), _digits()
    recipe = dataclasses.replace(TINY, cutout="none", feature_window=1)
    state, loss, correct = _after_one_step(model, recipe)
    key = jax.random.fold_in(jax.random.wrap_key_data(np.array([3, 5], np.uint32)), 4)
    kept = np.asarray(masked_features.random_windows(key, 64, grid=(2, 2), window=1))
    assert (kept.sum(axis=(1, 2)) == 3).all()
    config, before = model.data_config, first_params(model)
    pixels = ((batch.images / 255 - config.mean[0]) / config.std[0]).astype(np.float32)

    def by_hand(params):
        local, changed = model.train_module.apply(
            {**before, "params": params}, pixels, method="local_logits", mutable=["batch_stats"]
        )
        means = jnp.stack([local[i][kept[i]].sum(axis=0) / 3 for i in range(64)])
        picked = jax.nn.log_softmax(means)[np.arange(64), batch.labels]
        return -picked.mean(), (means, changed)

    slopes = jax.grad(by_hand, has_aux=True)(before["params"])[0]
    expected_loss, (means, changed) = by_hand(before["params"])
    assert loss == pytest.approx(float(expected_loss), rel=1e-5)
    assert correct == int((np.asarray(means).argmax(1) == batch.labels).sum())
    expected = jax.tree.map(lambda p, s: p - 1e-2 * s, before["params"], slopes)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    jax.tree.map(close, state.variables["params"], expected)
    jax.tree.map(close, state.variables["batch_stats"], changed["batch_stats"])
