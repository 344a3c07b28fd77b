"""Training the last block, or a head on frozen features of masked copies of images."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_models import first_params, small_resnet, small_vit

from certmask_jax import data, mask_sets, models, training, weights
from certmask_jax.inference.devices import device_mesh
from certmask_jax.models.resnetv2 import ResNetV2
from certmask_jax.programs import train as program
from certmask_jax.training import frozen_features, head_model, training_images
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.frozen_features import compute_features
from certmask_jax.training.input_pipeline import InMemory
from certmask_jax.training.recipes import Recipe
from certmask_jax.training.trained_part import head_of, last_block_of

HEAD = Recipe(
    train="head", epochs=3, batch_size=32, learning_rate=5e-2, copies=3, cutout_size=4, flip=True
)


def _one_device():
    return device_mesh(iter(jax.devices()[:1]))  # compiles faster


def _digits(count: int = 128) -> InMemory:
    images, labels = data.digits_arrays("train")
    return InMemory(images[:count], labels[:count])


def _paths(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree["params"])[0]
    return {jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v) for k, v in leaves}


def _changed(before, after) -> set[str]:
    old, new = _paths(before), _paths(after)
    return {name for name in old if not np.array_equal(old[name], new[name])}


# --- The last block ---


def test_the_last_block_takes_the_steps_that_it_takes_with_all_the_rest():
    recipe = Recipe(epochs=1, batch_size=64, learning_rate=1e-2, cutout="none")
    first = first_params(small_vit())
    whole, part = (
        training.train(
            small_vit(),
            _digits(64),
            recipe=dataclasses.replace(recipe, train=train),
            params=first,
            mesh=_one_device(),
        )
        for train in ("all", "last_block")
    )
    old, new, all_new = _paths(first), _paths(part.params), _paths(whole.params)
    frozen = {n for n in old if not n.startswith(("blocks_0/", "norm/", "head/"))}
    assert frozen == {"cls_token", "pos_embed", "patch_embed_proj/kernel", "patch_embed_proj/bias"}
    assert _changed(first, part.params) == set(old) - frozen
    for name in old:
        np.testing.assert_allclose(
            new[name], (old if name in frozen else all_new)[name], atol=1e-6, err_msg=name
        )


def test_a_deeper_vit_trains_its_last_block_only():
    paths = last_block_of(models.create("vit_digits")).paths
    assert {path[0] for path in paths} == {"blocks_3", "norm", "head"}
    assert {path[0] for path in last_block_of(models.create("resmlp_s12")).paths} == {
        "blocks_11", "norm", "head",
    }  # fmt: skip
    assert head_of(models.create("resnetv2_50x1")).paths == {
        ("head", "fc", "kernel"), ("head", "fc", "bias"),
    }  # fmt: skip


# --- Features ---


def _features(model, recipe, **options):
    options.setdefault("mesh", _one_device())
    return compute_features(
        model, first_params(model), _digits(70), recipe, copies=recipe.copies, **options
    )


def test_features_are_what_the_head_sees_of_the_image_and_of_masked_copies():
    model = small_vit()
    features = _features(model, HEAD)
    assert features.of_copies.shape == (70, 3, 8)
    np.testing.assert_array_equal(features.labels, _digits(70).labels)
    images_of = training_images.TrainingImages.of(model, HEAD, ())
    key = jax.random.key(HEAD.seed + 2)
    params = first_params(model)
    seen = jax.jit(
        lambda x: model.module.apply(
            params, x, capture_intermediates=lambda m, _: m.name == "norm"
        )[1]["intermediates"]["norm"]["__call__"][0]
    )
    pixels = _digits(70).images[66:67]
    plain = images_of.encoded(pixels)
    changed = jax.jit(lambda key: images_of(key, pixels, None))
    for copy in range(3):
        own = jax.random.fold_in(jax.random.fold_in(key, 66), copy)
        image = plain if copy == 0 else changed(own)
        if copy:
            assert (np.asarray(image) == 0).mean() > 0.1  # something is hidden
        np.testing.assert_allclose(features.of_copies[66, copy], seen(image)[0], atol=1e-5)
    assert np.abs(features.of_copies[:, 1] - features.of_copies[:, 2]).max() > 0.1


@pytest.mark.eight_devices
def test_features_do_not_depend_on_the_devices():
    eight = _features(small_vit(), HEAD, mesh=device_mesh())
    np.testing.assert_allclose(eight.of_copies, _features(small_vit(), HEAD).of_copies, atol=1e-5)


def test_blocks_are_kept_for_their_run_alone(tmp_path):
    expected = _features(small_vit(), HEAD, folder=tmp_path, identity="a")
    (last,) = tmp_path.glob("*64.npz")
    first = tmp_path / "00000000.npz"
    kept = dict(np.load(first))
    np.savez(first, **{**kept, "features": kept["features"] + 1})
    last.write_bytes(last.read_bytes()[:100])
    again = _features(small_vit(), HEAD, folder=tmp_path, identity="a")
    np.testing.assert_array_equal(again.of_copies[:64], expected.of_copies[:64] + 1)  # as kept
    np.testing.assert_array_equal(again.of_copies[64:], expected.of_copies[64:])  # damaged: anew
    other = _features(small_vit(), HEAD, folder=tmp_path, identity="b")
    np.testing.assert_array_equal(other.of_copies, expected.of_copies)


def test_one_copy_where_nothing_is_hidden_or_moved():
    plain = dataclasses.replace(HEAD, cutout="none", cutout_size=None, flip=False)
    assert frozen_features.copies_of(plain) == 1
    assert frozen_features.copies_of(dataclasses.replace(plain, crop=1)) == 3
    assert frozen_features.copies_of(HEAD) == 3


# --- The head ---


class _HeadOnMaps(nn.Module):
    """Local logits first, their mean after."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="head")(x).mean(axis=(1, 2))


class _Scaled(nn.Module):
    """Something follows the head."""

    @nn.compact
    def __call__(self, x):
        return 2 * nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


def _run(model, folder=None, *, stop_after=None, resume=False, **options):
    """A run; ``stop_after`` so many questions whether to stop."""
    asked = []

    def should_stop():
        asked.append(None)
        return stop_after is not None and len(asked) >= stop_after

    saved = None if folder is None else Checkpoints(folder, run={"a": 1}, resume=resume)
    trained = training.train(
        model,
        _digits(),
        recipe=HEAD,
        params=first_params(model),
        saved=saved,
        should_stop=should_stop,
        mesh=_one_device(),
        **options,
    )
    if saved is not None:
        saved.close()
    return trained


@pytest.mark.parametrize("make", [small_vit, small_resnet])
def test_the_head_learns_and_nothing_else_changes(make):
    trained = _run(make(), held_out=_digits(40))
    head = {"small_vit": "head", "small_resnet": "linear"}[make().name]
    assert _changed(first_params(make()), trained.params) == {f"{head}/kernel", f"{head}/bias"}
    rest = {name: tree for name, tree in trained.params.items() if name != "params"}
    assert set(rest) == set(first_params(make())) - {"params"}  # running averages too
    for name, tree in rest.items():
        jax.tree.map(np.testing.assert_array_equal, tree, first_params(make())[name])
    assert trained.rows[-1].loss < trained.rows[0].loss
    model, pixels = make(), _digits(40)
    plain = training_images.TrainingImages.of(model, HEAD, ()).encoded(pixels.images)
    logits = jax.jit(model.module.apply)(trained.params, plain)
    accuracy = np.mean(np.asarray(logits).argmax(1) == pixels.labels)
    assert trained.rows[-1].held_out_accuracy == pytest.approx(accuracy)


def test_a_stopped_run_ends_in_the_same_bits(tmp_path):
    expected = _run(small_vit())
    stopped = _run(small_vit(), tmp_path, stop_after=1)  # after the first block of features
    assert (stopped.step, stopped.finished) == (0, False)
    assert len(list((tmp_path / "features" / "train").iterdir())) == 1
    stopped = _run(small_vit(), tmp_path, stop_after=3, resume=True)  # and in the second step
    assert 0 < stopped.step < 12
    resumed = _run(small_vit(), tmp_path, resume=True)
    assert (resumed.step, resumed.finished) == (12, True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, expected.params)
    assert [row.loss for row in resumed.rows] == [row.loss for row in expected.rows]


def test_heads_and_parts_that_cannot_be_trained():
    config = models.DataConfig((32, 32), (0.5,) * 3, (0.5,) * 3)
    module = ResNetV2(5, blocks=(1,))  # its head is a convolution
    model = models.Model("small", 5, module, module, config, module.apply)
    assert head_model.head_alone(model).module.path == ("head", "fc")
    module = _HeadOnMaps()
    model = models.Model("maps", 5, module, module, config, module.apply)
    with pytest.raises(ValueError, match=r"one vector of each image, got maps, .* 32x32x3"):
        head_model.head_alone(model)
    module = _Scaled()
    model = models.Model("scaled", 10, module, module, small_vit().data_config, module.apply)
    with pytest.raises(ValueError, match="logits are what its head gives, but something follows"):
        _features(model, HEAD)
    with pytest.raises(ValueError, match=r"a model of blocks in a row .* small_resnet"):
        last_block_of(small_resnet())
    with pytest.raises(ValueError, match="params: expected variables to start from"):
        training.train(small_vit(), _digits(), recipe=HEAD)
    with pytest.raises(ValueError, match="cutout: expected none, random, mask_set or two_masks"):
        dataclasses.replace(HEAD, cutout="greedy")
    masks = [mask_sets.budgeted_grid(9, 1, masks_per_axis=2)]
    with pytest.raises(ValueError, match="masks on the model's"):
        training.train(
            small_vit(),
            _digits(),
            recipe=dataclasses.replace(HEAD, cutout="two_masks"),
            params=first_params(small_vit()),
            cutout_masks=masks,
        )


def test_the_program_trains_a_head_and_goes_on(tmp_path, capsys):
    shipped = tmp_path / "small.npz"
    weights.save(shipped, first_params(small_vit()))
    out, folder = tmp_path / "w.npz", tmp_path / "r"
    words = ["--dataset", "digits", "--model", "tests.support.small_models:small_vit"]
    words += ["--train", "head", "--weights", str(shipped), "--new-head", "--copies=2"]
    words += ["--epochs", "1", "--test-images", "8", "--run-folder", str(folder), "--resume"]
    words += ["--out", str(out)]
    assert program.main([*words, "--max-steps", "2"]) == 0
    assert "stopped after step 2 (--max-steps)" in capsys.readouterr().err
    assert program.main(words) == 0
    assert "on 8 test images" in capsys.readouterr().out
    before = dict(np.load(shipped))
    after = dict(np.load(out))
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {
        "head.weight", "head.bias",
    }  # fmt: skip
    assert program.main([word.replace("s=2", "s=3") for word in words]) == 2
    assert "recipe.copies is 2 there, 3 here" in capsys.readouterr().err
