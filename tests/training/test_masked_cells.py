"""Training models in two parts on masked features: by hand, stopped and resumed, and certified."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import oracle_split_vit
import pytest
from small_models import first_params, small_local, small_resnet, small_split_vit

from certmask_jax import Threat, data, mask_sets, models, training, weights
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.programs import certify
from certmask_jax.programs import train as program
from certmask_jax.training import step
from certmask_jax.training.input_pipeline import InMemory
from certmask_jax.training.passes import training_pass
from certmask_jax.training.recipes import Recipe

CUT = {"windows": (4, 1), "depth": 1}  # a column of tokens a cell: 1x4 cells
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1.0, cutout="two_masks")
KEY = np.array([3, 5], np.uint32)


def _vit():
    return models.in_two_parts(small_split_vit(), **CUT)


def _drawn(model, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            random.normal(0, 0.4, leaf.shape) + (path[-1].key in ("scale", "var"))
        ).astype(np.float32),
        model.param_shapes(),
    )


def _masks(model):
    parts = model.apply_fn
    threat = parts.on_cells(Threat.of((8, 8), 1))
    return mask_sets.budgeted_grid(parts.grid, threat.shapes[0], mask_stride=1)


def _digits(count):
    images, labels = data.digits_arrays("train")
    return InMemory(images[:count], labels[:count])


def _pixels(model, images):
    config = model.data_config
    return ((images / 255 - config.mean[0]) / config.std[0]).astype(np.float32)


def _hidden(masks, numbers):
    """``bool[B, H, W]`` of masks ``int[B, order]``."""
    hidden = np.zeros((len(numbers), *masks.image_size), bool)
    for image, some in enumerate(numbers):
        for number in some:
            for top, left, bottom, right in masks.boxes[number]:
                hidden[image, top:bottom, left:right] = True
    return hidden


def _losses(params, pixels, labels, hidden):
    """Cross-entropies ``[B]`` by the oracle, which leaves hidden windows out."""
    logits = np.stack(
        [
            oracle_split_vit.logits(params, image, cells, heads=2, windows=(4, 1), split=1)
            for image, cells in zip(pixels, hidden, strict=True)
        ]
    )
    spread = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return spread - logits[np.arange(len(labels)), labels], logits


def _after_one_step(model, recipe, masks, params):
    mesh = device_mesh(iter(jax.devices()[:1]))
    made = step.trainer(model, recipe, num_images=16, cutout_masks=masks, mesh=mesh)
    state, measures = made.step(
        made.start(params), made.put(_digits(16).gather(np.arange(16)), KEY)
    )
    return jax.device_get(state), float(measures.loss), int(measures.correct)


def _numbers(order, masks):
    """What a step draws: the masks of each image, by their numbers."""
    key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(KEY), 4))[1]
    return np.asarray(jax.random.randint(key, (16, order), 0, masks))


@pytest.mark.parametrize(("cutout", "order"), [("mask_set", 1), ("two_masks", 2)])
def test_a_step_is_that_of_the_windows_that_are_seen(cutout, order):
    model = _vit()
    params, masks, batch = _drawn(model), _masks(model), _digits(16)
    assert len(masks) == 4
    recipe = dataclasses.replace(RECIPE, cutout=cutout)
    state, loss, correct = _after_one_step(model, recipe, [masks], params)
    pixels = _pixels(model, batch.images)
    hidden = _hidden(masks, _numbers(order, 4))
    assert set(hidden.sum(axis=(1, 2))) == {1, order}
    expected, logits = _losses(params["params"], pixels, batch.labels, hidden)
    assert loss == pytest.approx(expected.mean(), rel=1e-4)
    assert correct == (logits.argmax(1) == batch.labels).sum()
    # The step's gradient is the slope of the oracle, along two ways through all parameters.
    slopes = jax.tree.map(lambda p, q: p - q, params["params"], state.variables["params"])
    for seed in (1, 2):
        way = _drawn(model, seed)["params"]
        ahead, behind = (
            _losses(
                jax.tree.map(lambda p, d, e=e: p + e * d.astype(np.float64), params["params"], way),
                pixels, batch.labels, hidden,
            )[0].mean()
            for e in (1e-5, -1e-5)
        )  # fmt: skip
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), slopes, way)))
        assert along == pytest.approx((ahead - behind) / 2e-5, rel=2e-3, abs=1e-4)


def test_greedy_hides_the_worst_mask_and_then_the_worst_beside_it():
    model = _vit()
    params, masks, batch = _drawn(model), _masks(model), _digits(8)
    pixels = _pixels(model, batch.images)
    run = training_pass(model, dataclasses.replace(RECIPE, cutout="greedy"), [masks])
    begun = np.float32(0)  # the share of steps that is done
    greedy_logits, _ = jax.jit(run)(params, pixels, batch.labels, jax.random.key(0), begun)

    def losses(numbers):
        return _losses(params["params"], pixels, batch.labels, _hidden(masks, numbers))[0]

    first = np.array([losses([[i]] * 8) for i in range(4)]).argmax(0)
    second = np.array([losses([[f, i] for f in first]) for i in range(4)]).argmax(0)
    chosen = np.stack([first, second], 1)
    assert len(set(map(tuple, chosen.tolist()))) > 2
    logits = _losses(params["params"], pixels, batch.labels, _hidden(masks, chosen))[1]
    np.testing.assert_allclose(greedy_logits, logits, rtol=1e-3, atol=1e-4)


def test_the_stem_is_run_once_whatever_masks_are_looked_at():
    """Once in training mode, and once in eval mode for the losses of eight masks."""
    model, batch, runs = _vit(), _digits(2), []
    parts = model.apply_fn

    def stem(params, images):
        jax.debug.callback(lambda: runs.append(1))
        return parts.stem(params, images)

    counted = TwoParts(
        stem, parts.head, field=parts.field, stride=parts.stride, image_size=parts.image_size
    )
    run = training_pass(
        dataclasses.replace(model, apply_fn=counted),
        dataclasses.replace(RECIPE, cutout="greedy"),
        [_masks(model)],
    )
    pixels, key = _pixels(model, batch.images), jax.random.key(0)
    logits, _ = jax.jit(run)(_drawn(model), pixels, batch.labels, key, np.float32(0))
    jax.block_until_ready(logits)
    jax.effects_barrier()
    assert len(runs) == 2


def test_a_net_with_local_logits_has_norms_by_the_batch_and_a_mean_of_what_is_seen():
    model = models.in_two_parts(small_local())  # 2x2 cells
    before, batch = first_params(small_local()), _digits(16)
    masks = mask_sets.budgeted_grid((2, 2), 1, mask_stride=1)
    recipe = dataclasses.replace(RECIPE, cutout="mask_set")
    state, loss, _ = _after_one_step(model, recipe, [masks], before)
    local, changed = model.train_module.apply(
        before, _pixels(model, batch.images), method="local_logits", mutable=["batch_stats"]
    )
    seen = ~_hidden(masks, _numbers(1, 4))
    assert (seen.sum(axis=(1, 2)) == 3).all()
    means = np.stack([np.asarray(u)[kept].mean(0) for u, kept in zip(local, seen, strict=True)])
    picked = np.asarray(jax.nn.log_softmax(means))[np.arange(16), batch.labels]
    assert loss == pytest.approx(-picked.mean(), rel=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6),
        state.variables["batch_stats"], changed["batch_stats"],
    )  # fmt: skip


def test_a_run_that_is_stopped_ends_in_the_same_bits_and_certifies_as_it_said(tmp_path, capsys):
    start = tmp_path / "start.npz"
    weights.save(start, _drawn(small_split_vit()))
    of_model = ["--model", "tests.support.small_models:small_split_vit"]
    cut = ["--two-parts", "windows=4x1,depth=1"]
    how = ["--weights", str(start), *of_model, *cut, "--cutout", "two_masks", "--cutout-patch", "1"]
    how += ["--recipe", "from_scratch", "--no-flip", "--crop", "0", "--epochs", "8"]
    how += ["--learning-rate", "0.05", "--batch-size", "64"]

    def trained(name, *more):
        out = tmp_path / f"{name}.npz"
        assert program.main([*how, "--out", str(out), *more]) == 0
        return dict(np.load(out)), capsys.readouterr().out

    whole, said = trained("whole")
    folder = ["--run-folder", str(tmp_path / "run")]
    begun, _ = trained("parts", *folder, "--max-steps", "50")
    resumed, said_again = trained("parts", *folder, "--resume")
    assert said.partition(": ")[2] == said_again.partition(": ")[2]
    assert set(whole) == set(resumed)
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name])
    assert any((begun[name] != array).any() for name, array in whole.items())

    def certified(file):
        out = tmp_path / f"of_{file.stem}"
        args = ["--weights", str(file), *of_model, *cut, "--patch", "1", "--defense", "patchcure"]
        assert certify.main([*args, "--no-page", "--no-decide", "--out", str(out)]) == 0
        capsys.readouterr()
        (result,) = json.loads((out / "results.json").read_bytes())["defenses"]
        return result["clean_accuracy"], result["worst_case_accuracy"]

    clean, robust = certified(tmp_path / "whole.npz")
    assert "on 500 test images, windows of 1x1 on 1x4 cells, patchcure with 4 masks" in said
    assert f"clean {clean:.3f}, certified {robust:.3f}" in said
    before = certified(start)
    assert clean > before[0] + 0.3
    assert robust > before[1] + 0.05


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train": "head"}, "train: for a model in two parts expected all or last_block"),
        ({"compute": "bfloat16"}, "compute: for a model in two parts expected float32"),
        ({"views": "mirror"}, "views: for a model in two parts expected none"),
        ({"feature_window": 2}, "feature_window: for a model in two parts expected 0"),
        ({"cutout": "blocks"}, "cutout: for a model in two parts expected no bands"),
        ({"cutout": "two_masks"}, r"expected masks on the map's \(1, 4\) cells, got them on"),
        ({"cutout": "none"}, "cutout none: expected no mask sets"),
    ],
)
def test_what_a_model_in_two_parts_is_not_trained_with(given, words):
    recipe = dataclasses.replace(RECIPE, **given)
    masks = [mask_sets.budgeted_grid(8, 1, masks_per_axis=2)]
    with pytest.raises(ValueError, match=words):
        training.training_run.check(_vit(), recipe, num_images=16, cutout_masks=masks)


CUT_SO = ("--two-parts", "windows=4x1,depth=1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--two-parts", "windows=3x1,depth=1"],
            "--two-parts windows=3x1,depth=1: windows: expected",
        ),
        (["--two-parts", "windows=4x1"], "--two-parts: expected windows and depth"),
        (["--two-parts", "cells"], "--two-parts cells: expected a model with local logits"),
        (
            [*CUT_SO, "--cutout", "mask_set", "--cutout-patch", "7"],
            "--cutout-patch 7: expected patches that leave some of the 1x4 cells",
        ),
        (
            [*CUT_SO, "--cutout", "mask_set", "--cutout-masks", "mask_strid=1"],
            "--cutout-masks mask_strid=1: unknown key",
        ),
        ([*CUT_SO, "--views", "mirror"], "--views: for a model in two parts expected none"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, words):
    assert program.main([*options, "--out", str(tmp_path / "w.npz")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_model_that_cannot_be_cut_is_not_trained_so():
    with pytest.raises(ValueError, match="expected a ViT, or a model with local logits"):
        models.in_two_parts(small_resnet())
