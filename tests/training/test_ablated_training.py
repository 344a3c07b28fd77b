"""Training on bands and blocks, and on masked features: against mask sets and by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import first_params, small_local, small_resnet, small_vit

from certmask_jax import data, mask_sets, training
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.two_parts import mean_of_kept
from certmask_jax.programs import opened_training
from certmask_jax.programs import train as program
from certmask_jax.training import cutout, masked_features, step
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.input_pipeline import InMemory
from certmask_jax.training.recipes import Recipe

TINY = Recipe(epochs=2, batch_size=64, learning_rate=1e-2)


def _digits(count: int = 64) -> InMemory:
    images, labels = data.digits_arrays("train")
    return InMemory(images[:count], labels[:count])


def _given(images_of, images):
    return jax.jit(lambda key, pixels: images_of(key, pixels, None))(jax.random.key(0), images)


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
    given = np.asarray(_given(images_of, _digits().images))
    shown = (given != 0).any(axis=(1, 3)).sum(axis=1)
    assert set(shown) == {1}  # 4 of 32 columns are one of eight


def test_band_size_is_the_papers_scaled():
    assert [cutout.default_band((side, side + 5)) for side in (32, 224, 8, 2)] == [4, 28, 1, 1]


# --- masked features ---


def test_windows_lie_inside_and_are_equally_likely():
    kept = masked_features.random_windows(jax.random.key(0), 2000, grid=(4, 3), window=2)
    windows = [one.tobytes() for one in np.asarray(kept)]
    places = []
    for row, column in np.ndindex(3, 2):
        left = np.ones((4, 3), bool)
        left[row : row + 2, column : column + 2] = False
        places.append(left.tobytes())
    counts = np.array([windows.count(place) for place in places])
    assert counts.sum() == 2000
    assert np.abs(counts - 2000 / 6).max() < 5 * np.sqrt(2000 / 6)


def test_the_mean_of_what_is_kept_by_hand_and_nothing_comes_from_what_is_taken_out():
    local = jnp.array([[[[1.0, 2], [3, 4]], [[5, 6], [jnp.nan, jnp.inf]]]])
    kept = jnp.array([[[True, True], [True, False]]])
    np.testing.assert_array_equal(mean_of_kept((), local, ~kept), [[3, 4]])
    slope = jax.grad(lambda u: mean_of_kept((), u, ~kept)[0, 0])(local)
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
    places = np.nonzero(kept.reshape(64, 4))[1].reshape(64, 3)  # three cells of each image
    config, before = model.data_config, first_params(model)
    pixels = ((batch.images / 255 - config.mean[0]) / config.std[0]).astype(np.float32)

    def by_hand(params):
        local, changed = model.train_module.apply(
            {**before, "params": params}, pixels, method="local_logits", mutable=["batch_stats"]
        )
        each = np.arange(64)
        means = local.reshape(64, 4, 10)[each[:, None], places].sum(axis=1) / 3
        picked = jax.nn.log_softmax(means)[each, batch.labels]
        return -picked.mean(), (means, changed)

    differentiated = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(before["params"])
    (expected_loss, (means, changed)), slopes = differentiated
    assert loss == pytest.approx(float(expected_loss), rel=1e-5)
    assert correct == int((np.asarray(means).argmax(1) == batch.labels).sum())
    expected = jax.tree.map(lambda p, s: p - 1e-2 * s, before["params"], slopes)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    jax.tree.map(close, state.variables["params"], expected)
    jax.tree.map(close, state.variables["batch_stats"], changed["batch_stats"])


@pytest.mark.eight_devices
def test_eight_devices_take_the_same_windows_and_bands_as_one():
    recipe = dataclasses.replace(TINY, cutout="blocks", feature_window=1)
    losses = [_after_one_step(small_local(), recipe, devices)[1] for devices in (1, 8)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_stopped_run_with_bands_and_windows_ends_in_the_same_bits(tmp_path):
    recipe = dataclasses.replace(TINY, cutout="row_and_column_bands", feature_window=1)
    start = first_params(small_local())

    def trained(folder, **options):
        saved = Checkpoints(tmp_path / folder, run={}, resume=True)
        try:
            return training.train(
                small_local(), _digits(128), recipe=recipe, params=start, saved=saved, **options
            )
        finally:
            saved.close()

    whole = trained("a")
    begun = trained("b", max_steps=3)
    assert (begun.step, begun.finished, whole.step) == (3, False, 4)
    rest = trained("b")
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (small_resnet, {"feature_window": 1}, "expected a model with local logits .*small_resnet"),
        (small_local, {"feature_window": 2}, "expected fewer cells than 2, since small_local"),
        (small_vit, {"cutout": "blocks", "cutout_band": 8}, "cutout_band: expected at most 7"),
    ],
)
def test_windows_and_bands_that_the_model_does_not_have(model, given, message):
    with pytest.raises(ValueError, match=message):
        step.trainer(model(), dataclasses.replace(TINY, **given), num_images=64)


def test_bad_recipes_of_bands_and_windows():
    with pytest.raises(ValueError, match="cutout_band: expected at least 1"):
        Recipe(cutout="blocks", cutout_band=0)
    with pytest.raises(ValueError, match="feature_window: expected 0 where the head alone"):
        Recipe(train="head", feature_window=2)


# --- encodings ---


@pytest.mark.parametrize(("encoding", "channels"), [("complement", 2), ("mask_channel", 2)])
def test_what_is_hidden_is_nothing_in_every_channel(encoding, channels):
    model = dataclasses.replace(small_resnet(), encoding=encoding)
    recipe = dataclasses.replace(TINY, cutout="row_bands", cutout_band=3)
    images_of = training.training_images.TrainingImages.of(model, recipe, ())
    images = _digits(20).images
    given = np.asarray(_given(images_of, images))
    assert given.shape == (20, 8, 8, channels)
    pixels = images[..., 0] / 255
    if encoding == "complement":
        whole = np.stack([pixels, 1 - pixels], axis=-1)
    else:
        config = model.data_config
        normalised = (pixels - config.mean[0]) / config.std[0]
        whole = np.stack([normalised, np.ones_like(pixels)], axis=-1)
    seen = (given != 0).any(axis=(2, 3))
    assert (seen.sum(axis=1) == 3).all()
    np.testing.assert_allclose(given, np.where(seen[:, :, None, None], whole, 0), atol=1e-6)


def test_a_model_of_more_channels_is_trained_measured_and_evaluated(tmp_path, capsys):
    out = tmp_path / "w.npz"
    options = ["--model", "tests.support.small_models:small_resnet", "--encoding", "complement"]
    options += ["--cutout", "column_bands", "--cutout-band", "3", "--held-out", "20"]
    options += ["--max-steps", "2", "--batch-size", "64", "--test-images", "16", "--epochs", "1"]
    assert program.main([*options, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "on 16 test images, 1 px patch, votes of 8 column bands: clean" in said
    with np.load(out) as arrays:
        assert arrays["conv1.weight"].shape == (4, 2, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cutout-band", "3"], "--cutout-band: has no use with --cutout random"),
        (["--cutout", "blocks", "--cutout-size", "3"], "--cutout-size: has no use with"),
        (["--cutout", "blocks", "--cutout-band", "8"], "--cutout-band: expected at most 7"),
        (["--feature-window", "2"], "--feature-window: expected a model with local logits"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, message):
    assert program.main([*options, "--out", str(tmp_path / "w.npz")]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_before_are_told_apart_as_they_were():
    assert {"cutout_band", "feature_window"}.isdisjoint(opened_training._facts(Recipe()))
    more = opened_training._facts(Recipe(cutout="blocks", cutout_band=2, feature_window=3))
    assert (more["cutout_band"], more["feature_window"]) == (2, 3)
