"""Views: a model that averages over an image and its mirror image is a model like any other."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_runs
from small_models import first_params, small_vit

import certmask_jax as cm
from certmask_jax.certification import evaluation, planning, verdicts
from certmask_jax.inference import views
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.models.output_choice import viewed
from certmask_jax.programs import certify
from certmask_jax.tables.prediction_table import UNKNOWN
from certmask_jax.training import step
from certmask_jax.training.input_pipeline import Pixels
from certmask_jax.training.recipes import Recipe

RNG = np.random.default_rng(3)
SIZE = (6, 9)  # neither square nor even, so that the other axis and a shift by one differ
IMAGES = RNG.integers(0, 256, (5, *SIZE, 3), dtype=np.uint8)
MASKS = cm.mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=2)
DEFENSE = cm.defenses.double_masking(MASKS)
COLUMNS = DEFENSE.masked_images
HOW = cm.Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), fill=(10.0, 200.0, 60.0))
WEIGHTS = RNG.normal(size=(SIZE[0] * SIZE[1] * 3, 4)).astype(np.float32)


def model(params, images):
    return jnp.tanh(images.reshape(images.shape[0], -1)) @ params


def convolved(params, images):
    kernel, head = params
    dims = ("NHWC", "HWIO", "NHWC")
    seen = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dims)
    return jnp.tanh(seen).reshape(images.shape[0], -1) @ head


# What views do, in plain NumPy, on one normalised image.
def _moved(image, down, right):
    moved = np.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            if 0 <= i - down < image.shape[0] and 0 <= j - right < image.shape[1]:
                moved[i, j] = image[i - down, j - right]
    return moved


def _mirrored(image):
    return np.stack([image[:, image.shape[1] - 1 - j] for j in range(image.shape[1])], axis=1)


SHIFTS = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
ORACLES = {
    "none": lambda image: [image],
    "mirror": lambda image: [image, _mirrored(image)],
    "shift": lambda image: [_moved(image, *by) for by in SHIFTS],
    "diagonal": lambda image: [image, _moved(image, 1, 1)],
    "mirror+shift": lambda image: [
        _moved(one, *by) for one in (image, _mirrored(image)) for by in SHIFTS
    ],
}


def _oracle_logits(name):
    """Mean logits ``[T, V, K]``: normalised, then masked, then seen in each view."""
    mean, std, fill = (np.array(v) for v in (HOW.mean, HOW.std, HOW.fill))
    logits = np.zeros((len(IMAGES), len(COLUMNS), 4))
    for t, image in enumerate(IMAGES):
        for v, boxes in enumerate(COLUMNS.boxes):
            masked = (image / 255 - mean) / std
            for top, left, bottom, right in boxes:
                masked[top:bottom, left:right] = (fill / 255 - mean) / std
            seen = np.stack(ORACLES[name](masked))
            logits[t, v] = (np.tanh(seen.reshape(len(seen), -1)) @ WEIGHTS).mean(axis=0)
    return logits


def _all_logits(apply_fn, params, images, boxes, how):
    count, width = len(images), len(boxes)
    every = np.tile(boxes, (count, 1, 1)), np.repeat(np.arange(count), width)

    @jax.jit
    def logits(params, images):
        return cm.masked_logits(
            apply_fn, params, images, every[0], preprocessing=how, image_of=every[1]
        )

    return np.asarray(logits(params, images)).reshape(count, width, -1)


@pytest.mark.parametrize("name", ORACLES)
def test_logits_are_those_of_plain_numpy(name):
    expected = _oracle_logits(name)
    logits = _all_logits(cm.with_views(model, name), WEIGHTS, IMAGES, COLUMNS.boxes, HOW)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert len(views.read(name)) == len(ORACLES[name](IMAGES[0]))


@pytest.mark.parametrize(("precision", "near"), [("highest", 1e-5), ("bfloat16", 0.02)])
def test_the_mirror_view_is_the_mean_of_two_runs(precision, near):
    """The other run has images and masks that were mirrored before: no view in it."""
    kernel, head = RNG.normal(size=(3, 3, 1, 4)), RNG.normal(size=(256, 5))
    params = kernel.astype(np.float32), head.astype(np.float32) / 16
    images = RNG.integers(0, 256, (4, 8, 8, 1), np.uint8)
    boxes = cm.mask_sets.budgeted_grid(8, 2, masks_per_axis=3).boxes
    mirrored = np.stack(
        [boxes[..., 0], 8 - boxes[..., 3], boxes[..., 2], 8 - boxes[..., 1]], axis=-1
    )
    how = cm.Preprocessing(mean=(0.3,), std=(0.5,), fill=(99.0,), precision=precision)
    alone = _all_logits(convolved, params, images, boxes, how)
    other = _all_logits(convolved, params, images[:, :, ::-1], mirrored, how)
    both = _all_logits(cm.with_views(convolved, "mirror"), params, images, boxes, how)
    assert both.dtype == np.float32
    np.testing.assert_allclose(both, (alone + other) / 2, atol=near)
    assert np.abs(alone - other).max() > 10 * near


@pytest.mark.eight_devices
def test_a_chunk_holds_all_views_of_its_items_and_all_devices_agree():
    batches = []

    def counted(params, images):
        batches.append(images.shape[0])
        return model(params, images)

    logits = _oracle_logits("mirror")
    for devices in (jax.devices()[:1], jax.devices()):
        batches.clear()
        table = cm.predict(
            counted,
            WEIGHTS,
            IMAGES,
            COLUMNS,
            preprocessing=HOW,
            views="mirror",
            chunk=16,
            mesh=device_mesh(devices),
        )
        assert batches[-1] == 2 * 16 // len(devices)
        top, second = np.sort(logits, axis=2)[..., -1], np.sort(logits, axis=2)[..., -2]
        np.testing.assert_array_equal(table.predictions, logits.argmax(axis=2))
        np.testing.assert_allclose(table.margins, top - second, rtol=1e-3, atol=1e-3)


def test_a_guard_answers_as_the_table_and_says_its_passes():
    table = cm.predict(model, WEIGHTS, IMAGES, COLUMNS, preprocessing=HOW, views="mirror")
    guard = cm.defended(model, WEIGHTS, DEFENSE, preprocessing=HOW, views="mirror")
    np.testing.assert_array_equal(guard(IMAGES).labels, DEFENSE.rule(table))
    assert guard.passes_each == 2
    assert cm.defended(model, WEIGHTS, DEFENSE, preprocessing=HOW).passes_each == 1
    assert "itself, mirror" in repr(guard)


def test_views_of_ones_own_see_one_whole_image_each():
    def turned(image):
        assert image.shape == (*SIZE, 3)
        return image[::-1, ::-1]

    own = (("itself", lambda image: image), cm.View("turned", turned))
    logits = _all_logits(cm.with_views(model, own), WEIGHTS, IMAGES, COLUMNS.boxes, HOW)
    alone = _all_logits(model, WEIGHTS, IMAGES, COLUMNS.boxes, HOW)
    weights = WEIGHTS.reshape(*SIZE, 3, 4)[::-1, ::-1].reshape(WEIGHTS.shape)
    other = _all_logits(model, weights, IMAGES, COLUMNS.boxes, HOW)
    np.testing.assert_allclose(logits, (alone + other) / 2, atol=1e-4)


def test_a_loaded_model_has_its_views():
    loaded = cm.load_model("vit_digits", views="mirror")
    plain = cm.load_model("vit_digits")
    assert loaded.apply_fn == cm.with_views(plain.apply_fn, "mirror")  # and so compiles once
    assert hash(loaded.apply_fn) == hash(cm.with_views(plain.apply_fn, "mirror"))
    assert cm.load_model("vit_digits", views="none").apply_fn is plain.apply_fn


def test_a_model_with_local_logits_is_evaluated_whole():
    local = LocalLogits(model, 3, 1)
    network = dataclasses.replace(small_vit(), local=local)
    assert viewed(network, "mirror").local is None
    assert viewed(network, "none") is network
    with pytest.raises(ValueError, match="local: expected none beside views"):
        cm.predict(model, WEIGHTS, IMAGES, COLUMNS, local=local, views="mirror")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("mirrored", "views: expected none, mirror, .*, got 'mirrored'"),
        ("mirror+mirror", "each name once, got 'mirror' twice"),
        ((), "at least 1 view"),
        (("mirror",), r"a tuple of \(name, function of an image\), got 'mirror'"),
        ((("half", lambda image: image[:3]),), r"'half' to keep the shape \[6, 9, 3\] .* \[3, 9"),
        ((("two", lambda image: (image, image)),), "'two' to keep the shape .* got tuple"),
        ((("wide", lambda image: image @ np.ones((5, 3))),), "'wide' to take one image"),
    ],
)
def test_views_that_cannot_be(wrong, says):
    with pytest.raises(ValueError, match=says):
        cm.predict(model, WEIGHTS, IMAGES, COLUMNS, views=wrong)


def test_views_are_given_once():
    with pytest.raises(ValueError, match="expected a model without views, got one with itself"):
        cm.with_views(cm.with_views(model, "mirror"), "shift")


def test_a_run_counts_what_the_model_does_and_keeps_its_views(tmp_path):
    linear, test_set = small_runs.linear, small_runs.SmallTestSet()

    def evaluate(name, apply_fn, decide=False):
        return evaluation.evaluate(
            test_set,
            apply_fn,
            small_runs.PARAMS,
            [small_runs.DEFENSE],
            tmp_path / name,
            preprocessing=cm.Preprocessing(),
            chunk=8,
            decide=decide,
        )

    plain = evaluate("plain", linear)
    both = evaluate("both", cm.with_views(linear, "mirror"))
    columns = plain.table.predictions.shape[1]
    passes = [verdicts.certify(one, [small_runs.DEFENSE]).forward_passes for one in (plain, both)]
    assert passes[0] == {"made": 10 * columns, "full_table": 10 * columns}
    assert passes[1] == {"made": 20 * columns, "full_table": 20 * columns, "a_masked_image": 2}
    assert "views" not in plain.about["provenance"]
    assert both.about["provenance"]["views"] == ["itself", "mirror"]
    with pytest.raises(FileExistsError, match="views"):
        evaluate("plain", cm.with_views(linear, "mirror"))
    assert evaluate("plain", cm.with_views(linear, "none")) is not None  # the same run

    early = evaluate("early", cm.with_views(linear, "mirror"), decide=True)
    known = int((np.asarray(early.table.predictions) != UNKNOWN).sum())
    assert verdicts.certify(early, [small_runs.DEFENSE]).forward_passes["made"] == 2 * known


def test_a_plan_counts_passes():
    plans = [
        planning.plan(
            small_runs.SmallTestSet(),
            cm.with_views(small_runs.linear, name),
            small_runs.PARAMS,
            [small_runs.DEFENSE],
            preprocessing=cm.Preprocessing(),
            chunk=8,
        )
        for name in ("none", "mirror")
    ]
    assert plans[1].masked_images == plans[0].masked_images
    assert plans[1].passes_most == 2 * plans[0].passes_most
    assert plans[1].passes_expected == 2 * plans[0].passes_expected
    assert plans[1].flops_a_pass == pytest.approx(plans[0].flops_a_pass, rel=0.05)


def test_facts_without_views_are_what_they_were():
    engine = engine_for(model, WEIGHTS, IMAGES.shape[1:], COLUMNS, preprocessing=HOW, chunk=8)
    assert set(engine.facts()) == {"chunk", "preprocessing"}


def test_the_program_records_views_and_prints_their_passes(tmp_path, capsys):
    command = ["--num-images", "6", "--defense", "pair_cover:partition=2/3", "--no-decide"]
    assert certify.main([*command, "--views", "mirror", "--out", str(tmp_path / "run")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "means over 2 views of each masked image, which is 2 forward passes" in printed
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["provenance"]["views"] == ["itself", "mirror"]
    masked = 1 + results["defenses"][0]["masked_images"]  # and the image itself
    assert results["forward_passes"]["full_table"] == 2 * 6 * masked
    assert certify.main(["--from-tables", str(tmp_path / "run")]) == 0
    assert "which is 2 forward passes" in " ".join(capsys.readouterr().out.split())
    assert certify.main([*command, "--views", "mirrored"]) == 2
    assert "--views: expected none, mirror" in capsys.readouterr().err


def test_training_with_views_takes_the_mean_loss_of_all_views():
    network = small_vit()
    recipe = Recipe(epochs=1, batch_size=8, cutout="none", views="mirror")
    made = step.trainer(network, recipe, num_images=8, mesh=device_mesh(jax.devices()[:1]))
    params = first_params(network)
    images = RNG.integers(0, 256, (8, 8, 8, 1), np.uint8)
    labels = RNG.integers(0, 10, 8).astype(np.int32)
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    _, measures = made.step(made.start(params), made.put(Pixels(images, labels), key))
    config = network.data_config
    seen = ((images / 255 - np.array(config.mean)) / np.array(config.std)).astype(np.float32)
    logits = [jax.jit(network.apply_fn)(params, one) for one in (seen, seen[:, :, ::-1])]
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.stack(logits), labels[None])
    np.testing.assert_allclose(measures.loss, losses.mean(), rtol=1e-5)
    assert int(measures.correct) == int(((logits[0] + logits[1]).argmax(axis=1) == labels).sum())
