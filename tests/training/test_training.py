"""Training: Cutout against loops, recipes by hand, the same loss on any number of devices."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import first_params, small_resnet, small_vit

from certmask_jax import data, mask_sets, training
from certmask_jax.inference.devices import device_mesh
from certmask_jax.programs import opened_training, training_options
from certmask_jax.programs import train as program
from certmask_jax.training import augmentation, cutout, input_pipeline, recipes, step
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.input_pipeline import InMemory, Streamed
from certmask_jax.training.recipes import Recipe

TINY = Recipe(epochs=2, batch_size=64, learning_rate=1e-2)


def _digits(count: int = 256) -> InMemory:
    images, labels = data.digits_arrays("train")
    return InMemory(images[:count], labels[:count])


def _painted(boxes, size) -> np.ndarray:
    hidden = np.zeros(size, bool)
    for top, left, bottom, right in np.asarray(boxes).reshape(-1, 4):
        hidden[top:bottom, left:right] = True
    return hidden


# --- Cutout ---


def test_cutout_hides_squares_and_nothing_else():
    images = np.ones((50, 9, 9, 2), np.float32)
    cut = np.asarray(cutout.random_squares(jax.random.key(0), images, size=3, squares=2))
    hidden = (cut == 0).all(-1)
    assert ((cut == 0) == hidden[..., None]).all()
    squares = {
        _painted([max(0, r - 1), max(0, c - 1), r + 2, c + 2], (9, 9)).tobytes()
        for r in range(9)
        for c in range(9)
    }
    pairs = {
        (np.frombuffer(a, bool) | np.frombuffer(b, bool)).tobytes()
        for a, b in itertools.product(squares, repeat=2)
    }
    assert all(one.tobytes() in pairs for one in hidden)
    assert len({one.tobytes() for one in hidden}) > 40  # each image has its own
    again = cutout.random_squares(jax.random.key(0), images, size=3, squares=2)
    np.testing.assert_array_equal(cut, again)


def test_square_centres_are_uniform_over_the_image():
    images = np.ones((4000, 4, 4, 1), np.float32)
    cut = np.asarray(cutout.random_squares(jax.random.key(1), images, size=1, squares=1))
    times_cut = (cut == 0).sum((0, 3))
    assert times_cut.sum() == 4000
    assert np.abs(times_cut - 250).max() < 5 * np.sqrt(250)


@pytest.mark.parametrize(("size", "expected"), [(224, 128), (384, 219), (32, 18), (8, 5), (1, 1)])
def test_square_size_is_the_papers_scaled(size, expected):
    assert cutout.default_size((size, size + 7)) == expected


def test_hide_by_hand():
    images = np.arange(1.0, 10, dtype=np.float32).reshape(1, 3, 3, 1)
    boxes = np.array([[[0, 1, 2, 3], [2, 0, 3, 1], [0, 0, 0, 0]]], np.int32)
    expected = [[1, 0, 0], [4, 0, 0], [0, 8, 9]]
    np.testing.assert_array_equal(np.asarray(cutout.hide(images, boxes))[0, ..., 0], expected)


def _two_sets():
    return [
        mask_sets.budgeted_grid(8, 1, masks_per_axis=3),
        mask_sets.budgeted_grid(8, 3, masks_per_axis=2),
    ]


@pytest.mark.parametrize("order", [1, 2])
def test_random_masks_are_unions_of_one_set(order):
    sets = _two_sets()
    stack = cutout.mask_stack(sets)
    assert stack.boxes.shape[:2] == (2, 9)
    assert stack.counts.tolist() == [9, 4]
    images = np.ones((60, 8, 8, 1), np.float32)
    possible = [
        {
            np.logical_or.reduce([_painted(masks.boxes[i], (8, 8)) for i in chosen]).tobytes()
            for chosen in itertools.product(range(len(masks)), repeat=order)
        }
        for masks in sets
    ]
    seen = [set(), set()]
    for seed in range(20):
        cut = cutout.random_masks(jax.random.key(seed), images, stack, order=order)
        unions = {one.tobytes() for one in np.asarray(cut)[..., 0] == 0}
        (of_set,) = (number for number in range(2) if unions <= possible[number])
        seen[of_set] |= unions
    assert seen == possible  # every union of every set comes up


def test_masks_of_a_short_set_are_equally_likely():
    """Its padding, which repeats the first mask, is never drawn."""
    sets = _two_sets()
    images = np.ones((400, 8, 8, 1), np.float32)
    hidden = [_painted(boxes, (8, 8)).tobytes() for boxes in sets[1].boxes]
    counts = np.zeros(4)
    for seed in range(8):
        key = jax.random.key(seed)
        cut = cutout.random_masks(key, images, cutout.mask_stack(sets), order=1)
        drawn = [one.tobytes() for one in np.asarray(cut)[..., 0] == 0]
        if set(drawn) <= set(hidden):
            counts += [drawn.count(one) for one in hidden]
    share = counts / counts.sum()
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / counts.sum())


def _odd_losses(seed: int):
    """Losses that are no sum over pixels, different for each image."""
    weights = np.random.default_rng(seed).normal(size=(12, 64)).astype(np.float32)

    def losses_of(images):
        flat = images.reshape(len(images), -1)
        projected = flat @ weights.T
        return jnp.abs(projected[:, :6]).max(1) + (projected[:, 6:] ** 2).sum(1)

    return losses_of


def test_greedy_is_the_greedy_pair_of_loops():
    images = np.random.default_rng(1).normal(size=(10, 8, 8, 1)).astype(np.float32)
    differs_from_best = 0
    for seed, masks in itertools.product(range(3), _two_sets()):
        losses_of = _odd_losses(seed)
        masked, pairs = cutout.greedy(
            jax.random.key(0), images, cutout.mask_stack([masks]), losses_of
        )
        hidden = [_painted(boxes, (8, 8)) for boxes in masks.boxes]

        def loss(image, *chosen, hidden=hidden, losses_of=losses_of):
            gone = np.logical_or.reduce([hidden[i] for i in chosen])
            return float(losses_of(np.where(gone[..., None], 0, image)[None])[0])

        for image, after, pair in zip(images, np.asarray(masked), pairs.tolist(), strict=True):
            first = max(range(len(masks)), key=lambda i: loss(image, i))
            second = max(range(len(masks)), key=lambda j: loss(image, first, j))
            assert pair == [first, second]
            gone = hidden[first] | hidden[second]
            np.testing.assert_array_equal(after, np.where(gone[..., None], 0, image))
            best = max(
                itertools.product(range(len(masks)), repeat=2), key=lambda p: loss(image, *p)
            )
            differs_from_best += set(best) != set(pair)
    assert differs_from_best  # greedy, not exhaustive


def test_greedy_of_several_sizes_keeps_to_one_set():
    """The shorter set is padded; the padding never shows."""
    sets = _two_sets()
    stack = cutout.mask_stack(sets)
    images = np.ones((5, 8, 8, 1), np.float32)

    def losses_of(images):  # the more is hidden, the worse
        return -images.sum((1, 2, 3))

    areas = set()
    for seed in range(12):
        masked, _ = cutout.greedy(jax.random.key(seed), images, stack, losses_of)
        areas.add(int((np.asarray(masked) == 0).sum()) // 5)
    most = [
        max(
            int((_painted(a, (8, 8)) | _painted(b, (8, 8))).sum())
            for a, b in itertools.product(masks.boxes, repeat=2)
        )
        for masks in sets
    ]
    assert areas == set(most)  # both sets are drawn


def test_bad_masks():
    with pytest.raises(ValueError, match="at least 1, all of one image size"):
        cutout.mask_stack([])
    with pytest.raises(ValueError, match="one image size"):
        cutout.mask_stack([*_two_sets(), mask_sets.budgeted_grid(9, 1, masks_per_axis=2)])
    other = mask_sets.budgeted_grid(9, 1, masks_per_axis=2)
    for kind, masks, message in [
        ("greedy", [], "at least 1 mask set, got 0"),
        ("random", _two_sets(), "no mask sets, got 2"),
        ("mask_set", [other], "masks on the model's"),
    ]:
        recipe = dataclasses.replace(TINY, cutout=kind)
        with pytest.raises(ValueError, match=message):
            step.trainer(small_vit(), recipe, num_images=64, cutout_masks=masks)


# --- augmentation ---


def test_flips_mirror_about_half():
    images = np.random.default_rng(0).normal(size=(400, 3, 4, 2)).astype(np.float32)
    flipped = np.asarray(augmentation.flipped(jax.random.key(0), images))
    mirrored = [np.array_equal(f, i[:, ::-1]) for f, i in zip(flipped, images, strict=True)]
    same = [np.array_equal(f, i) for f, i in zip(flipped, images, strict=True)]
    assert sum(mirrored) + sum(same) == 400
    assert 150 < sum(mirrored) < 250


def test_crops_are_windows_of_the_padded_image():
    images = np.random.default_rng(0).normal(size=(200, 4, 5, 2)).astype(np.float32)
    cropped = np.asarray(augmentation.cropped(jax.random.key(0), images, pad=1))
    corners = []
    for after, before in zip(cropped, images, strict=True):
        padded = np.pad(before, ((1, 1), (1, 1), (0, 0)))
        corners += [
            (r, c)
            for r, c in itertools.product(range(3), repeat=2)
            if np.array_equal(after, padded[r : r + 4, c : c + 5])
        ]
    assert len(corners) == 200
    assert set(corners) == set(itertools.product(range(3), repeat=2))


# --- recipes ---


def test_the_default_is_patchcleansers():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.momentum) == (
        10, 64, "sgd", 0.9,
    )  # fmt: skip
    assert (recipe.cutout, recipe.cutout_size, recipe.cutout_squares) == ("random", None, 2)
    rates = [recipes.learning_rate(recipe, n) for n in ("vit_b16", "cifar_resnet20", "resnetv2")]
    assert rates == [1e-3, 1e-2, 1e-2]
    assert recipes.learning_rate(dataclasses.replace(recipe, learning_rate=0.5), "vit") == 0.5


def test_learning_rates_by_hand():
    stepped = recipes.schedule(Recipe(epochs=12), 1.0, steps_per_epoch=2)
    expected = [1.0] * 10 + [0.1] * 10 + [0.01] * 4
    np.testing.assert_allclose([float(stepped(i)) for i in range(24)], expected, rtol=1e-6)
    grown = recipes.schedule(Recipe(epochs=4, warmup=0.5), 1.0, steps_per_epoch=2)
    np.testing.assert_allclose([float(grown(i)) for i in range(5)], [0, 0.25, 0.5, 0.75, 1])
    cosine = recipes.schedule(Recipe(epochs=4, schedule="cosine"), 2.0, steps_per_epoch=1)
    expected = [1 + np.cos(np.pi * i / 4) for i in range(5)]
    np.testing.assert_allclose([float(cosine(i)) for i in range(5)], expected, atol=1e-6)


def test_sgd_by_hand():
    """Momentum 0.9: the second update adds 0.9 of the first."""
    recipe = Recipe(weight_decay=0.5)
    optimizer = recipes.optimizer(recipe, lambda step: 0.1)
    params = jnp.array(2.0)
    state = optimizer.init(params)
    update, state = optimizer.update(jnp.array(1.0), state, params)
    assert float(update) == pytest.approx(-0.1 * (1 + 0.5 * 2))
    params = params + update  # 1.8
    update, _ = optimizer.update(jnp.array(3.0), state, params)
    assert float(update) == pytest.approx(-0.1 * (0.9 * 2 + 3 + 0.5 * 1.8))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "adam", "optimizer: expected one of sgd, adamw, got 'adam'"),
        ("epochs", 0, "epochs: expected at least 1"),
        ("cutout_size", 0, "cutout none"),
        ("ema", 1.0, "0 <= ema < 1"),
    ],
)
def test_bad_recipes(field, value, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{field: value})


# --- input ---


def test_an_epoch_is_a_shuffle_of_seed_and_number():
    plan = input_pipeline.epoch_plan(3, 1, images=103, batch_size=10)
    assert plan.numbers.shape == (10, 10)
    assert len(set(plan.numbers.ravel().tolist())) == 100
    again = input_pipeline.epoch_plan(3, 1, images=103, batch_size=10)
    np.testing.assert_array_equal(plan.numbers, again.numbers)
    for seed, epoch in [(3, 2), (4, 1)]:
        other = input_pipeline.epoch_plan(seed, epoch, images=103, batch_size=10)
        assert (other.numbers != plan.numbers).any()


def test_prefetching_keeps_order_and_stays_within_its_bound():
    asked, taken = [], 0

    def prepare(item):
        asked.append(item)
        assert item - taken <= 4
        return item * 10

    for number, prepared in enumerate(input_pipeline.prefetched(range(30), prepare, ahead=3)):
        assert prepared == number * 10
        taken = number + 1
    assert asked == list(range(30))


def test_an_error_comes_where_its_item_would_have():
    def prepare(item):
        if item == 5:
            raise ValueError("five")
        return item

    batches = input_pipeline.prefetched(range(9), prepare)
    assert [next(batches) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(batches)


def _folder(root, counts=(5, 5)):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count in zip(("cat", "dog"), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def _streamed(root, **options):
    config = small_vit().data_config
    dataset = data.load("image_folder", data_config=config, split="train", data_dir=root)
    return Streamed(dataset, **options)


def test_streamed_images_are_those_in_memory(tmp_path):
    streamed = _streamed(_folder(tmp_path))
    whole = input_pipeline.in_memory(streamed, at_once=3)
    assert whole.images.shape == (10, 8, 8, 1)
    assert whole.labels.tolist() == [0] * 5 + [1] * 5
    numbers = np.array([7, 0, 7, 9])
    for a, b in zip(streamed.gather(numbers), whole.gather(numbers), strict=True):
        np.testing.assert_array_equal(a, b)


def test_unreadable_images_stop_or_are_replaced_named_and_counted(tmp_path):
    root = _folder(tmp_path)
    good = input_pipeline.in_memory(_streamed(root))
    for name in ("cat/4.png", "dog/4.png"):
        (root / "train" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image 4 .*cat/4\.png.*on_unreadable='skip'"):
        input_pipeline.in_memory(_streamed(root))
    skipping = _streamed(root, on_unreadable="skip")
    loaded = input_pipeline.in_memory(skipping)
    expected = [0, 1, 2, 3, 5, 5, 6, 7, 8, 0]  # the next one that can be read; the set is a ring
    np.testing.assert_array_equal(loaded.images, good.images[expected])
    np.testing.assert_array_equal(loaded.labels, good.labels[expected])
    assert sorted(skipping.unreadable) == [4, 9]
    assert "dog/4.png" in skipping.unreadable[9]


def test_held_out_images_are_not_trained_on():
    source = InMemory(np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1), np.arange(20))
    rest, held = input_pipeline.split_off(source, 5, seed=1)
    parts = [part.gather(np.arange(len(part))).labels.tolist() for part in (rest, held)]
    assert [len(part) for part in parts] == [15, 5]
    assert sorted(parts[0] + parts[1]) == list(range(20))
    with pytest.raises(ValueError, match="fewer than the 20"):
        input_pipeline.split_off(source, 20, seed=1)


# --- steps ---


@pytest.mark.parametrize("make", [small_vit, small_resnet])
def test_training_is_deterministic_and_learns(make):
    recipe = dataclasses.replace(TINY, epochs=4, learning_rate=5e-2)
    first, second = (
        training.train(make(), _digits(), recipe=recipe, params=first_params(make()))
        for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.rows[-1].loss < first.rows[0].loss
    assert [row.step for row in first.rows] == [4, 8, 12, 16]
    assert first.finished


@pytest.mark.eight_devices
@pytest.mark.parametrize("make", [small_vit, small_resnet])
def test_eight_devices_find_the_losses_of_one(make):
    recipe = Recipe(epochs=1, learning_rate=1e-3, flip=True, crop=1, shift=1, rotate=5, ema=0.5)
    losses, params = [], []
    for count in (1, 8):
        mesh = device_mesh(iter(jax.devices()[:count]))
        trained = training.train(
            make(), _digits(), recipe=recipe, params=first_params(make()), mesh=mesh
        )
        losses.append(trained.rows[0].loss)  # the mean of four steps
        params.append(trained.params)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *params)


@pytest.mark.eight_devices
def test_batch_is_shared_by_the_devices():
    made = step.trainer(small_vit(), TINY, num_images=256)
    batch = made.put(_digits().gather(np.arange(64)), np.zeros(2, np.uint32))
    assert {shard.data.shape[0] for shard in batch.images.addressable_shards} == {8}
    with pytest.raises(ValueError, match=r"multiple of the 8 devices, got 60; 64 would do"):
        training.train(small_vit(), _digits(), recipe=Recipe(batch_size=60))


def _after_one_step(recipe, masks=()):
    made = step.trainer(small_vit(), recipe, num_images=64, cutout_masks=masks)
    params = first_params(small_vit())
    state, measures = made.step(
        made.start(params), made.put(_digits(64).gather(np.arange(64)), np.zeros(2, np.uint32))
    )
    return params, jax.device_get(state), float(measures.loss)


def test_average_by_hand():
    before, state, _ = _after_one_step(dataclasses.replace(TINY, ema=0.75))
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before, state.variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), state.average, expected)


def test_loss_of_a_step_is_the_smoothed_cross_entropy():
    recipe = dataclasses.replace(TINY, cutout="none", label_smoothing=0.2)
    before, _, loss = _after_one_step(recipe)
    model, batch = small_vit(), _digits(64)
    config = model.data_config
    pixels = (batch.images / 255 - config.mean[0]) / config.std[0]
    logits = np.asarray(model.apply_fn(before, pixels.astype(np.float32)), np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = 0.8 * np.eye(10)[batch.labels] + 0.02
    assert loss == pytest.approx(-(target * logs).sum(1).mean(), rel=1e-5)


def test_greedy_training_sees_higher_losses():
    masks = [mask_sets.budgeted_grid(8, 1, masks_per_axis=3)]
    losses = {
        kind: _after_one_step(dataclasses.replace(TINY, cutout=kind), masks)[2]
        for kind in ("mask_set", "two_masks", "greedy")
    }
    assert losses["greedy"] > max(losses["mask_set"], losses["two_masks"])


def test_bfloat16_computes_nearly_the_same_and_keeps_float32():
    runs = [
        _after_one_step(dataclasses.replace(TINY, compute=compute))
        for compute in ("float32", "bfloat16")
    ]
    assert runs[0][2] != runs[1][2]
    assert runs[0][2] == pytest.approx(runs[1][2], rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(runs[1][1].variables)} == {np.dtype("float32")}


def test_bad_training():
    with pytest.raises(ValueError, match="batch_size: expected at most the 10 images"):
        training.train(small_vit(), _digits(10), recipe=TINY)
    start = first_params(small_vit())
    wrong = InMemory(_digits().images, _digits().labels + 5)
    with pytest.raises(ValueError, match=r"labels: .*in 0\.\.9"):
        training.train(small_vit(), wrong, recipe=TINY, params=start)
    recipe = dataclasses.replace(TINY, learning_rate=float("nan"))
    with pytest.raises(FloatingPointError, match=r"nan at step 2; try a smaller learning_rate$"):
        training.train(small_vit(), _digits(640), recipe=recipe, params=start)


# --- the program ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "expected a --run-folder"),
        (["--run-folder", "/dev/null/x"], "a place that can be written"),
        (["--ema", "2"], "ema: expected"),
        (["--cutout-patch", "1"], "has no use with --cutout random"),
        (["--held-out", "1297"], "held_out: expected fewer"),
        (["--weights", "no.npz"], "expected a weights file"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, options, message):
    if "--run-folder" not in options:
        options = [*options, "--out", str(tmp_path / "w.npz")]
    assert program.main(options) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured


def test_classes_that_differ_between_the_splits_are_one_error(tmp_path, capsys):
    root = _folder(tmp_path / "data")
    (root / "test" / "dog").rename(root / "test" / "fox")
    options = ["--dataset", "image_folder", "--data-dir", str(root)]
    assert program.main([*options, "--out", str(tmp_path / "w.npz")]) == 2
    captured = capsys.readouterr().err
    assert "former has ['dog'] and only the latter has ['fox']" in captured


def test_training_takes_the_masks_of_any_defense(tmp_path, capsys):
    def job(*options):
        wanted = ["--cutout", "mask_set", "--cutout-patch", "1", "--out", str(tmp_path / "w.npz")]
        parsed = training_options.parser().parse_args([*wanted, *options])
        return opened_training.opened(parsed, opened_training.options_of_model(parsed))

    pairs = job("--cutout-masks", "partition=2/3")
    assert len(pairs.masks[0]) == 10
    turned = job("--cutout-masks", "partition=2/3,transposed=true")
    assert turned.identity != pairs.identity
    assert len(job().masks[0]) == 16
    for keys, message in (
        ("tau=1", "--cutout-masks tau=1: unknown key 'tau'"),
        ("masks_per_axis", "--cutout-masks: expected key=value"),
        ("partition=1x2", "--cutout-masks partition=1x2: partition: expected the number of blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            job("--cutout-masks", keys)


def test_a_run_of_so_many_steps_is_the_beginning_of_the_whole_run(tmp_path):
    """Three steps of six, and the other three later, end in the same bits as six at once."""
    source, start = _digits(160), first_params(small_vit())
    recipe = dataclasses.replace(TINY, epochs=2, batch_size=48)

    def trained(folder, **options):
        saved = Checkpoints(tmp_path / folder, run={}, resume=True)
        try:
            return training.train(
                small_vit(), source, recipe=recipe, params=start, saved=saved, **options
            )
        finally:
            saved.close()

    whole = trained("a")
    assert (whole.step, whole.finished, len(whole.rows)) == (6, True, 2)
    begun = trained("b", max_steps=4)
    assert (begun.step, begun.finished, len(begun.rows)) == (4, False, 1)
    again = trained("b", max_steps=4)  # nothing is left to do
    assert again.step == 4
    jax.tree.map(np.testing.assert_array_equal, again.params, begun.params)
    rest = trained("b", max_steps=100)
    assert (rest.step, rest.finished) == (6, True)
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)
    with pytest.raises(ValueError, match="max_steps: expected at least 1 step, got 0"):
        trained("c", max_steps=0)


def test_a_try_of_a_few_steps_writes_and_says_so(tmp_path, capsys):
    out = tmp_path / "w.npz"
    linear = ["--dataset", "digits", "--model", "tests.support.small_models:linear_digits"]
    options = [*linear, "--max-steps", "2", "--test-images", "8", "--out", str(out)]
    assert program.main([*options, "--run-folder", str(tmp_path / "r")]) == 0
    captured = capsys.readouterr()
    assert "stopped after step 2 (--max-steps); --resume goes on from there" in captured.err
    assert "on 8 test images" in captured.out
    assert out.is_file()
