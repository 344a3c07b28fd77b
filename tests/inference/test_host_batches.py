"""A model that is one NumPy function: the same table as of JAX, and what it may not do."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from exact_model import DEFENSE, IMAGES, SIZE, WEIGHTS, exact

import certmask_jax as cm
from certmask_jax.certification import evaluation
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.data import from_arrays
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.numpy_function import NumpyFunction, sha256_of
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.models import DataConfig
from certmask_jax.tables.prediction_table import NO_LABEL

SHAPE = (*SIZE, 1)


def _floats(images):
    assert images.dtype == np.float32
    return np.einsum("bhwc,hwck->bk", np.round(images * 255), WEIGHTS)


def _levels(images):
    assert images.dtype == np.uint8
    return np.einsum("bhwc,hwck->bk", images.astype(np.float64), WEIGHTS)


def _function(logits=_floats, **options):
    return NumpyFunction(logits, 4, "its weights", **options)


def _same(one, other):
    for name in ("predictions", "margins", "confidences"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("fill", [None, (200.0,)])
@pytest.mark.parametrize(("logits", "dtype"), [(_floats, "float32"), (_levels, "uint8")])
def test_table_is_that_of_the_same_model_in_jax(logits, dtype, fill):
    how = {"preprocessing": Preprocessing(fill=fill), "chunk": 16}
    images = IMAGES[:3]
    wanted = cm.predict(exact, WEIGHTS, images, DEFENSE.masked_images, **how)
    table = cm.predict(_function(logits, dtype=dtype), (), images, DEFENSE.masked_images, **how)
    _same(table, wanted)


def test_the_guard_gives_the_same_answers():
    guards = [
        cm.defended(*model, DEFENSE, channels=1) for model in ((exact, WEIGHTS), (_function(), ()))
    ]
    answers = [guard(IMAGES[:5]) for guard in guards]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_batches_have_the_size_that_the_function_asks_for():
    sizes = []

    def noted(images):
        sizes.append(len(images))
        return _floats(images)

    engine = engine_for(
        _function(noted, batch=7), (), SHAPE, DEFENSE.masked_images, preprocessing=Preprocessing()
    )
    engine.evaluate(IMAGES, np.zeros(9, int), np.arange(9))
    assert sizes == [7] * 5  # three tries and two batches
    with pytest.raises(ValueError, match=r"chunk: expected 7, the function's batch, got 8"):
        cm.predict(_function(batch=7), (), IMAGES, DEFENSE.masked_images, chunk=8)


def test_logits_that_are_not_finite_are_no_label():
    def broken(images):
        logits = _floats(images).astype(np.float64)
        logits[np.round(images[:, 0, 0, 0] * 255) == IMAGES[0, 0, 0, 0], 2] = np.nan
        return logits

    with pytest.warns(RuntimeWarning, match="never certified"):
        table = cm.predict(_function(broken), (), IMAGES[:2], DEFENSE.masked_images)
    hidden = (DEFENSE.masked_images.boxes[..., :2] == 0).all(-1)
    hidden &= (DEFENSE.masked_images.boxes[..., 2:] > 0).all(-1)
    seen = ~hidden.any(axis=1)
    np.testing.assert_array_equal(table.predictions[0] == NO_LABEL, seen)
    assert not DEFENSE.worst_case(table, np.array([0, 0], np.int32))[0]


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (lambda images: 1 / 0, r"logits: the function failed .*ZeroDivisionError: division by"),
        (lambda images: np.zeros((len(images), 3)), r"expected floating numbers \[32, 4\] .*32, 3"),
        (lambda images: np.zeros((len(images), 4), int), r"expected floating .* got int64\[32, 4"),
        (lambda images: sys.exit(3), r"logits: the function failed .*\(SystemExit: 3\)"),
        (lambda images: None, r"expected floating numbers .* got object\[\]"),
    ],
)
def test_a_function_that_fails_or_gives_no_logits(logits, said):
    with pytest.raises(ValueError, match=said):
        cm.predict(_function(logits), (), IMAGES[:1], DEFENSE.masked_images)


def test_a_function_that_says_this_and_that_is_warned_of():
    random = np.random.default_rng(0)
    with pytest.warns(RuntimeWarning, match="gave two answers for one batch"):
        cm.predict(
            _function(lambda images: random.normal(size=(len(images), 4))),
            (), IMAGES[:1], DEFENSE.masked_images,
        )  # fmt: skip


def _batch_norm(images):
    logits = _floats(images)
    return (logits - logits.mean(axis=0)) / (logits.std(axis=0) + 1e-3)


def _by_place(images):
    logits = _floats(images)
    return logits + np.ptp(logits) / 10 * np.eye(4)[np.arange(len(logits)) % 4]


def _beside_the_brightest(images):
    return _floats(images) / images.mean(axis=(1, 2, 3)).max()


def _of_last_bits_and_batch(images):
    """Rounded to one level of 200, and beside each other to the next one."""
    logits = _floats(images)
    return logits + np.ptp(logits, axis=1).min() / 200 * np.sin(1e3 * images.sum())


DEPENDS = [_batch_norm, _by_place, _beside_the_brightest]


@pytest.mark.parametrize("batch", [2, 3, 32])
@pytest.mark.parametrize("logits", DEPENDS)
def test_a_function_that_looks_at_the_batch_of_an_image_is_refused(logits, batch):
    """What it says of an image in one batch, which is proved of, is not what it says in another."""
    with pytest.raises(ValueError, match=r"does not depend on the others .* differ by [0-9.e+]+; "):
        cm.predict(_function(logits, batch=batch), (), IMAGES[:1], DEFENSE.masked_images)
    with pytest.raises(ValueError, match="does not depend on the others of its batch"):
        cm.defended(_function(logits, batch=batch), (), DEFENSE, channels=1)(IMAGES[:1])


@pytest.mark.parametrize(
    ("logits", "batch"),
    [(_of_last_bits_and_batch, 32), *((one, 1) for one in DEPENDS)],  # alone it sees no others
)
def test_roundings_are_none_of_that_and_batches_of_one_image_cannot_show_it(logits, batch):
    cm.predict(_function(logits, batch=batch), (), IMAGES[:1], DEFENSE.masked_images)


def test_last_bits_that_are_never_the_same_hide_no_batch_normalisation():
    random = np.random.default_rng(0)

    def unsteady(images):
        return _batch_norm(images) + 1e-3 * random.normal(size=(len(images), 4))

    with pytest.raises(ValueError, match="does not depend on the others of its batch"):
        cm.predict(_function(unsteady), (), IMAGES[:1], DEFENSE.masked_images)


def test_a_number_of_an_image_that_is_none_beside_others():
    def broken(images):
        logits = _floats(images).astype(np.float64)
        logits[:, 0] = np.where((images == 0).all(axis=(1, 2, 3)).any(), np.nan, logits[:, 0])
        return logits

    with pytest.raises(ValueError, match="that differ by inf"):
        cm.predict(_function(broken), (), IMAGES[:1], DEFENSE.masked_images)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preprocessing": Preprocessing(precision="bfloat16")}, "precision: expected highest"),
        ({"local": object()}, "local: expected none beside a NumPy function"),
    ],
)
def test_what_does_not_apply(options, said):
    with pytest.raises(ValueError, match=said):
        cm.predict(_function(), (), IMAGES[:1], DEFENSE.masked_images, **options)


def test_weights_have_to_be_told_from_others(tmp_path):
    with pytest.raises(ValueError, match="sha256: expected what tells the weights"):
        sha256_of(None, [])
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    assert sha256_of(None, [first]) != sha256_of(None, [second])


def test_a_run_that_failed_goes_on_and_other_weights_are_another_run(tmp_path):
    labels = np.arange(len(IMAGES), dtype=np.int32) % 4
    test_set = from_arrays(IMAGES, labels, data_config=DataConfig(SIZE, (0.0,), (1.0,), channels=1))
    calls = []

    def fails(images):
        calls.append(1)
        if len(calls) == 12:
            raise RuntimeError("pulled the plug")
        return _floats(images)

    def run(function):
        return evaluation.evaluate(
            test_set, function, (), [DEFENSE], tmp_path / "tables",
            preprocessing=Preprocessing(),
            block_sizes=BlockSizes(least_blocks=12, chunks_together=0),
        )  # fmt: skip

    with pytest.raises(ValueError, match="pulled the plug"):
        run(_function(fails))
    whole = run(_function())
    wanted = cm.predict(exact, WEIGHTS, IMAGES, whole.table.masked_images)
    _same(whole.table, wanted)
    with pytest.raises(FileExistsError, match=r"numpy_function\.sha256 is 'its weights' there"):
        run(NumpyFunction(_floats, 4, "others"))


def test_blocks_of_one_image_share_batches(tmp_path):
    """Each by itself would fill most of a batch with what nobody asks for."""
    calls = []

    def noted(images):
        calls.append(len(images))
        return _floats(images)

    labels = np.zeros(len(IMAGES), np.int32)
    test_set = from_arrays(IMAGES, labels, data_config=DataConfig(SIZE, (0.0,), (1.0,), channels=1))
    whole = evaluation.evaluate(
        test_set, _function(noted), (), [DEFENSE], tmp_path / "t", preprocessing=Preprocessing()
    )
    items = len(IMAGES) * len(whole.table.masked_images)
    assert calls == [32] * (4 + -(-items // 32))  # four tries


def test_a_function_of_unknown_speed_is_tried_before_long_work(tmp_path):
    calls = []

    def silent(images):
        calls.append(len(images))
        return _floats(images) * np.nan

    test_set = from_arrays(
        IMAGES, np.zeros(len(IMAGES), np.int32),
        data_config=DataConfig(SIZE, (0.0,), (1.0,), channels=1),
    )  # fmt: skip
    with pytest.raises(ValueError, match="expected finite logits"):
        evaluation.evaluate(
            test_set, _function(silent), (), [DEFENSE], tmp_path / "t",
            preprocessing=Preprocessing(),
        )  # fmt: skip
    assert calls == [32] * 4
    assert not (tmp_path / "t").exists()
