"""The masked forward pass: right pixels, one compilation, any number of devices, no collective."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from certmask_jax import defenses, mask_sets, predict
from certmask_jax.inference import chunk_program, masked_pass, whole_images
from certmask_jax.inference.defended_model import defended
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import distinct_unions

SIZE = (9, 7)
MASKS = distinct_unions.unions(mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=3), 2)[0]
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(*SIZE, 3, 5)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (11, *SIZE, 3), dtype=np.uint8)
PREPROCESSING = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def linear(params, x):
    """A model that tells every pixel apart."""
    return jnp.einsum("bhwc,hwck->bk", x, params)


def _by_hand(fill=None):
    """Labels and margins image by image, mask by mask, in NumPy."""
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    filled = np.zeros(3) if fill is None else (np.array(fill) / 255 - mean) / std
    labels, margins = [], []
    for image in IMAGES:
        for boxes in MASKS.boxes:
            x = (image / 255 - mean) / std
            x[oracle.paint(boxes, SIZE)] = filled
            logits = np.sort(np.einsum("hwc,hwck->k", x, WEIGHTS))
            labels.append(np.einsum("hwc,hwck->k", x, WEIGHTS).argmax())
            margins.append(logits[-1] - logits[-2])
    shape = (len(IMAGES), len(MASKS))
    return np.reshape(labels, shape), np.reshape(margins, shape)


@pytest.mark.parametrize("fill", [None, (0.0, 0.0, 0.0), (255.0,), (124.0, 116.0, 104.0)])
def test_table_equals_masking_by_hand(fill):
    preprocessing = Preprocessing(PREPROCESSING.mean, PREPROCESSING.std, fill)
    table = predict(linear, WEIGHTS, IMAGES, MASKS, preprocessing=preprocessing)
    labels, margins = _by_hand(fill)
    np.testing.assert_array_equal(table.predictions, labels)
    np.testing.assert_allclose(table.margins, margins, rtol=2e-3, atol=1e-3)


@pytest.mark.eight_devices
def test_eight_devices_and_one_give_identical_tables():
    assert len(jax.devices()) == 8
    tables = [
        predict(
            linear,
            WEIGHTS,
            IMAGES,
            MASKS,
            preprocessing=PREPROCESSING,
            mesh=device_mesh(jax.devices()[:count]),
            chunk=16 * count,
        )
        for count in (1, 2, 8)
    ]
    for other in tables[1:]:
        for name in ("predictions", "margins", "confidences"):
            np.testing.assert_array_equal(getattr(other, name), getattr(tables[0], name))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11])
def test_ragged_ends_do_not_recompile_and_do_not_change_results(count):
    traces = 0

    def counted(params, x):
        nonlocal traces
        traces += 1
        return linear(params, x)

    chunk = 8 * 8  # 11 images x 45 masks is no multiple of it
    whole = predict(counted, WEIGHTS, IMAGES, MASKS, preprocessing=PREPROCESSING, chunk=chunk)
    part = predict(
        counted, WEIGHTS, IMAGES[:count], MASKS, preprocessing=PREPROCESSING, chunk=chunk
    )
    np.testing.assert_array_equal(part.predictions, whole.predictions[:count])
    np.testing.assert_array_equal(part.margins, whole.margins[:count])
    assert traces == 3  # one for the number of classes, one to count operations, one to compile


@pytest.mark.eight_devices
def test_no_collective_in_the_compiled_forward_pass():
    step = chunk_program.chunk_step(linear, PREPROCESSING, device_mesh())
    boxes, image_of = MASKS.boxes[:32], np.zeros(32, np.int32)
    text = step.lower(WEIGHTS, IMAGES, boxes, image_of).compile().as_text()
    assert "num_partitions=8" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "scatter("):
        assert collective not in text


def test_list_of_work_items_in_any_order():
    labels, _ = _by_hand()
    run = whole_images.masked_forward(
        linear, WEIGHTS, IMAGES.shape[1:], preprocessing=PREPROCESSING,
        masked_images=MASKS, chunk=8,
    )  # fmt: skip
    image_of, mask_of = RNG.integers(0, 11, 37), RNG.integers(0, len(MASKS), 37)
    seen = []
    outputs = run.evaluate(IMAGES, image_of, mask_of, lambda *counts: seen.append(counts))
    np.testing.assert_array_equal(outputs.predictions, labels[image_of, mask_of])
    assert np.sum(seen, axis=0).tolist() == [37, 40]  # chunks of eight


def test_chunk_is_chosen_within_the_memory_budget():
    def build(budget):
        return whole_images.masked_forward(
            linear, WEIGHTS, IMAGES.shape[1:], preprocessing=PREPROCESSING,
            boxes_per_mask=2, memory_budget=budget,
        ).for_blocks(None).chunk  # fmt: skip

    roomy, tight = build(1 << 30), build(20_000)
    assert roomy == 64 * 2  # devices
    assert 2 <= tight < roomy


def test_a_chunk_that_does_not_compile_for_want_of_memory_does_not_fit(monkeypatch):
    real, compiled = whole_images.compiled_chunk, []

    def compiled_chunk(*arguments):
        compiled.append(arguments[-1])
        if arguments[-1] > most[0]:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")
        if arguments[-1] == refused[0]:
            raise jax.errors.JaxRuntimeError("INTERNAL: the compiler is broken")
        return real(*arguments)

    def chosen():
        compiled.clear()
        engine = whole_images.masked_forward(
            linear, WEIGHTS, IMAGES.shape[1:], preprocessing=PREPROCESSING, memory_budget=1 << 40
        )
        return engine.for_blocks(None).chunk

    most, refused = [1 << 20], [0]
    monkeypatch.setattr(whole_images, "compiled_chunk", compiled_chunk)
    start = chosen()
    assert compiled == [start]
    most[0] = start // 4
    assert chosen() == start // 4
    assert compiled == [start, start // 2, start // 4]
    refused[0] = start // 4
    with pytest.raises(jax.errors.JaxRuntimeError, match="the compiler is broken"):
        chosen()


def test_bfloat16_casts_parameters_and_inputs_and_keeps_float32_results():
    kinds = []

    def watched(params, x):
        kinds.append((params.dtype, x.dtype))
        return linear(params, x)

    preprocessing = Preprocessing(precision="bfloat16")
    table = predict(watched, WEIGHTS, IMAGES, MASKS, preprocessing=preprocessing)
    assert (jnp.bfloat16, jnp.bfloat16) in kinds
    full = predict(linear, WEIGHTS, IMAGES, MASKS)
    assert (table.predictions == full.predictions).mean() > 0.9


def test_parameters_are_converted_to_bfloat16_once_and_to_the_same_logits():
    """An engine keeps them so; a chunk converts nothing that it is given."""
    preprocessing = Preprocessing(precision="bfloat16")
    engine = whole_images.masked_forward(
        linear, WEIGHTS, IMAGES.shape[1:], preprocessing=preprocessing,
        masked_images=MASKS, chunk=8,
    )  # fmt: skip
    assert engine._params.dtype == jnp.bfloat16
    one = np.zeros(len(MASKS), np.int32)
    columns = np.arange(len(MASKS))
    outputs = engine.evaluate(IMAGES, one, columns)
    logits = masked_pass.masked_logits(
        linear, WEIGHTS, IMAGES, MASKS.boxes, preprocessing=preprocessing, image_of=one
    )
    np.testing.assert_array_equal(outputs.predictions, np.asarray(logits).argmax(axis=1))
    assert engine.flops_an_image(1) is not None  # of a model in bfloat16, image and all
    exact = whole_images.masked_forward(
        linear, WEIGHTS, IMAGES.shape[1:], preprocessing=PREPROCESSING, chunk=8
    )
    assert exact._params.dtype == WEIGHTS.dtype


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_logits_are_named_and_have_no_label(value):
    def broken(params, x):
        logits = linear(params, x)
        bad = x[:, 0, 0, 0] > 0.99  # a white first pixel
        return logits.at[:, 0].set(jnp.where(bad, value, logits[:, 0]))

    images = IMAGES.copy()
    images[:, 0, 0, 0] = 0
    images[[2, 5], 0, 0, 0] = 255
    with pytest.warns(RuntimeWarning, match="2 images: 2, 5; they are never certified"):
        table = predict(broken, WEIGHTS, images, MASKS)
    assert table.non_finite_images().tolist() == [2, 5]
    defense = defenses.double_masking(mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=3))
    labels = defense.rule(table).clip(0)
    assert not defense.worst_case(table, labels)[[2, 5]].any()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:, :8], "expected shape"),
        (IMAGES[0], "expected shape"),
        (IMAGES[:0], "T >= 1"),
        (IMAGES.astype(np.float32) / 255, "expected uint8 pixels in 0..255, got float32"),
        (IMAGES.astype(np.int64), "got int64"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        predict(linear, WEIGHTS, images, MASKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, "highest, high, default or bfloat16"),
        ({"fill": (300.0,)}, r"\[0, 255\]"),
        ({"std": (0.0,)}, "above 0 and at most 1"),
    ],
)
def test_bad_preprocessing(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)


def test_models_that_are_no_classifiers_are_refused():
    with pytest.raises(ValueError, match=r"logits \[B, K\]"):
        predict(lambda p, x: x.sum(), None, IMAGES, MASKS)
    with pytest.raises(ValueError, match="mean: expected 3 values"):
        predict(linear, WEIGHTS, IMAGES, MASKS, preprocessing=Preprocessing(mean=(0.1, 0.2)))
    with pytest.raises(ValueError, match="chunk"):
        predict(linear, WEIGHTS, IMAGES, MASKS, chunk=0)


@pytest.mark.parametrize(
    "build",
    [
        defenses.double_masking,
        lambda m: defenses.double_masking(m, ties="smallest"),
        defenses.challenger_masking,
        lambda m: defenses.minority_reports(m, tau=0.4),
        defenses.certmask_detection,
        defenses.certmask,
    ],
)
@pytest.mark.parametrize("count", [1, 7, 11])
def test_defended_predictor_answers_as_the_full_table(build, count):
    masks = mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=3)
    defense = build(masks)
    table = predict(
        linear,
        WEIGHTS,
        IMAGES[:count],
        defense.masked_images,
        preprocessing=PREPROCESSING,
        chunk=64,
    )
    guarded = defended(linear, WEIGHTS, defense, preprocessing=PREPROCESSING, chunk=64)
    answers = guarded(IMAGES[:count])
    expected = defense.rule(table)
    np.testing.assert_array_equal(np.where(answers.alerts, -2, answers.labels), expected)
    assert (answers.masked_images <= len(defense.masked_images)).all()


def test_second_round_only_where_the_first_disagrees():
    masks = mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=3)
    double, challenger = defenses.double_masking(masks), defenses.challenger_masking(masks)
    table = predict(linear, WEIGHTS, IMAGES, double.masked_images, preprocessing=PREPROCESSING)
    pair = distinct_unions.unions(masks, 2)[1]
    agree = np.array([len(set(row[pair.diagonal()])) == 1 for row in table.predictions])
    assert 0 < agree.sum() < len(agree)
    for defense, most in ((double, len(double.masked_images)), (challenger, 9 + 8)):
        answers = defended(linear, WEIGHTS, defense, preprocessing=PREPROCESSING)(IMAGES)
        assert (answers.masked_images[agree] == 9).all()
        assert (answers.masked_images[~agree] > 9).all()
        assert (answers.masked_images <= most).all()


def test_little_work_goes_through_a_small_chunk(monkeypatch):
    """A single image, and the challenges of several, do not wait for a mostly empty chunk."""
    masks = mask_sets.budgeted_grid(SIZE, (2, 3), masks_per_axis=3)
    double, challenger = defenses.double_masking(masks), defenses.challenger_masking(masks)
    sizes, real = [], whole_images.WholeImages.executable

    def noted(run, items, images):
        step = real(run, items, images)
        return lambda *given: (sizes.append(items), step(*given))[1]

    monkeypatch.setattr(whole_images.WholeImages, "executable", noted)
    few = 10  # nine masks, on two devices
    for defense, images, expected in (
        (double, IMAGES[:1], {few, 64}),
        (challenger, IMAGES[:1], {few}),
        (challenger, IMAGES, {few, 64}),
    ):
        sizes.clear()
        guarded = defended(linear, WEIGHTS, defense, preprocessing=PREPROCESSING, chunk=64)
        assert guarded.engine.chunk_sizes == (few, 64)
        guarded(images)
        assert sizes
        assert set(sizes) <= expected
    # 99 of the first round: a chunk, and the rest in small ones; then challenges, at most eleven.
    assert sizes[0] == 64
    assert set(sizes[1:]) == {few}
    small = defended(linear, WEIGHTS, challenger, preprocessing=PREPROCESSING, chunk=8)
    assert small.engine.chunk_sizes == (8,)


@pytest.mark.parametrize(
    ("shape", "images", "room"),
    [
        ((224, 224, 3), 1, 1),  # one image costs one image
        ((224, 224, 3), 5, 16),
        ((224, 224, 3), 400, 445),  # 64 MiB
        ((32, 32, 3), 1, 64),  # 192 KiB: less would take as long
        ((32, 32, 3), 65, 256),
        ((8, 8, 1), 3, 512),
    ],
)
def test_uploads_have_room_for_few_more_than_there_are(shape, images, room):
    engine = whole_images.masked_forward(
        lambda params, x: x.mean(axis=(1, 2, 3))[:, None] * params[None], np.ones(3), shape,
        preprocessing=Preprocessing(), mesh=device_mesh(jax.devices()[:1]), chunk=1,
    )  # fmt: skip
    some = np.zeros((images, *shape), np.uint8)
    assert len(engine.upload(some).on_devices) == room
    assert len(engine.for_blocks(images).upload(some[:1]).on_devices) == room
    assert engine.for_blocks(images).images_at_once() == images
