"""Models with local logits: all masked images from few distinct fields, with the same labels."""

from __future__ import annotations

import functools

import jax
import numpy as np
import oracle
import pytest

from certmask_jax import defenses, mask_sets, models, predict
from certmask_jax.certification import evaluation, report, verdicts
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.data import Batch
from certmask_jax.inference import field_program, field_tables
from certmask_jax.inference.defended_model import defended
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits, local_fields
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import distinct_unions
from certmask_jax.models.bagnet import BagNet
from certmask_jax.programs.measurements import fields as measured_fields
from certmask_jax.programs.measurements import subjects

SIZE = (29, 37)
PREPROCESSING = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), fill=(10.0, 200.0, 60.0))
RNG = np.random.default_rng(0)
# Large squares of one colour each: images that differ more than noise does.
SQUARES = RNG.integers(0, 256, (11, 5, 7, 3), dtype=np.uint8)
IMAGES = SQUARES.repeat(6, axis=1).repeat(6, axis=2)[:, : SIZE[0], : SIZE[1]]
MASKS = mask_sets.budgeted_grid(SIZE, (4, 5), masks_per_axis=3)
PAIRS, INDEX = distinct_unions.unions(MASKS, 2)
CLASSES = 6


def _nothing(*_):
    return np.zeros((2, 3, 3))


@functools.cache
def _bagnet():
    """A small BagNet, its local logits, and weights under which masks change labels."""
    module = BagNet(CLASSES, (3, 1), blocks=(2, 1), strides=(2, 2), width=8)
    local = LocalLogits(
        functools.partial(_local_logits, module), module.receptive_field, module.stride
    )
    params = jax.jit(module.init)(jax.random.key(1), np.zeros((1, *SIZE, 3), np.float32))
    params = jax.tree.map(np.asarray, params)
    # Without the mean of the local features, which is much larger than what an image adds to it.
    head = params["params"]["fc"]
    head["kernel"] = RNG.normal(size=head["kernel"].shape).astype(np.float32)
    normal = (IMAGES / 255 - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    head["bias"] = -np.asarray(jax.jit(module.apply)(params, normal.astype(np.float32))).mean(
        axis=0
    )
    return module.apply, local, params


def _local_logits(module, params, images):
    return module.apply(params, images, method="local_logits")


def _tables(masks, *, images=IMAGES, preprocessing=PREPROCESSING, **options):
    apply_fn, local, params = _bagnet()
    options = {"preprocessing": preprocessing, **options}
    return (
        predict(apply_fn, params, images, masks, **options),
        predict(apply_fn, params, images, masks, local=local, **options),
    )


def test_distinct_fields_are_those_that_show_other_pixels():
    local = LocalLogits(_nothing, 5, 4)
    assert local.grid(SIZE) == (7, 9)
    fields = local_fields(PAIRS, local)
    shown = {}
    for mask, boxes in enumerate(PAIRS.boxes):
        hidden = oracle.paint(boxes, SIZE)
        for place, (row, col) in enumerate(np.ndindex(7, 9)):
            part = hidden[4 * row : 4 * row + 5, 4 * col : 4 * col + 5]
            number = fields.index[mask, place]
            own = oracle.paint(fields.boxes[number], (5, 5))
            np.testing.assert_array_equal(own, part)
            if not part.all():  # nothing is seen: the same wherever it is
                np.testing.assert_array_equal(fields.origins[number], (4 * row, 4 * col))
            where = None if part.all() else (row, col)
            assert shown.setdefault((where, part.tobytes()), number) == number
    assert sorted(shown.values()) == list(range(len(fields)))
    assert fields.whole_images == len(fields) / 63
    assert len(fields) < 63 * len(PAIRS) / 8


@pytest.mark.parametrize("model", ["bagnet9", "bagnet17", "bagnet33"])
def test_fields_of_the_published_models(model):
    created = models.create(model)
    assert created.local is models.create(model).local  # so that JAX compiles once
    assert created.local.field == int(model[6:])
    shape = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    logits = jax.eval_shape(created.local.apply_fn, created.param_shapes(), shape)
    assert logits.shape[1:3] == created.local.grid((224, 224))
    assert models.create("cifar_resnet20").local is None


def test_a_third_of_the_masks_of_patchcleanser_are_a_hundredth_of_the_work():
    masks = distinct_unions.unions(mask_sets.budgeted_grid(224, 23, masks_per_axis=6), 2)[0]
    fields = local_fields(masks, models.create("bagnet17").local)
    assert len(masks) == 666
    # 675 fields of the image itself (masks hide the last one or not), the rest near masks.
    assert len(fields) == 3051
    assert fields.whole_images < 4.52


@pytest.mark.parametrize("order", [1, 2])
def test_labels_are_those_of_whole_masked_images(order):
    masks = distinct_unions.unions(MASKS, order)[0]
    whole, ours = _tables(masks)
    np.testing.assert_array_equal(ours.predictions, whole.predictions)
    np.testing.assert_allclose(ours.margins, whole.margins, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(ours.confidences, whole.confidences, rtol=2e-3, atol=1e-4)
    changed = (whole.predictions != whole.predictions[:, :1]).any(axis=1)
    assert changed.sum() >= 3
    assert len(np.unique(whole.predictions)) >= 3


def test_what_lies_under_a_mask_changes_nothing():
    """Bit for bit, whatever the attacker paints there."""
    chosen = distinct_unions.unions(MASKS, 2)[0]
    patched = IMAGES.copy()
    top, left, bottom, right = MASKS.boxes[4, 0]
    patched[:, top:bottom, left:right] = RNG.integers(0, 256, (bottom - top, right - left, 3))
    _, clean = _tables(chosen)
    _, attacked = _tables(chosen, images=patched)
    hiding = INDEX[4]
    for name in ("predictions", "margins", "confidences"):
        ours, theirs = getattr(clean, name), getattr(attacked, name)
        np.testing.assert_array_equal(ours[:, hiding], theirs[:, hiding])
        assert (ours != theirs).any()


@pytest.mark.parametrize("count", [1, 8, 11])
@pytest.mark.parametrize(
    ("chunk", "devices"), [(3, 1), (40, 2), pytest.param(8, 8, marks=pytest.mark.eight_devices)]
)
def test_chunks_and_devices_change_no_label(chunk, devices, count):
    images = IMAGES[:count]
    _, expected = _tables(PAIRS, images=images)
    told, mesh = [], device_mesh(jax.devices()[:devices])
    _, table = _tables(PAIRS, images=images, chunk=chunk, mesh=mesh, progress=told.append)
    np.testing.assert_array_equal(table.predictions, expected.predictions)
    np.testing.assert_allclose(table.margins, expected.margins, rtol=2e-3, atol=1e-4)
    assert sum(told) == 2 * count * len(PAIRS)  # whole images, and ours


def test_items_are_those_of_the_whole_table_and_facts_say_how_it_came_about():
    _, local, params = _bagnet()
    given = {"preprocessing": PREPROCESSING, "chunk": 16}
    run = field_tables.local_forward(local, params, IMAGES.shape[1:], PAIRS, **given)
    assert not run.by_items
    table = run.table(IMAGES)
    image_of, columns = RNG.integers(0, len(IMAGES), 40), RNG.integers(0, len(PAIRS), 40)
    for part, whole in zip(run.evaluate(IMAGES, image_of, columns), table, strict=True):
        np.testing.assert_array_equal(part, whole[image_of, columns])
    facts = run.facts()
    assert list(facts) == [
        "chunk", "preprocessing", "local_logits", "fields", "fields_as_whole_images"
    ]  # fmt: skip
    assert facts["chunk"] == 16
    assert facts["local_logits"] == {"field": local.field, "stride": local.stride}
    assert facts["fields"] == len(local_fields(PAIRS, local))


def test_no_device_waits_for_another():
    _, local, params = _bagnet()
    shape = IMAGES.shape[1:]
    run = field_tables.local_forward(local, params, shape, PAIRS, preprocessing=PREPROCESSING)
    work = field_program.in_chunks(run.fields, run.chunk // 8)
    table = field_program.table_program(local, PREPROCESSING, run.mesh)
    text = table.lower(params, IMAGES[:8], work).compile().as_text()
    assert "while" in text
    for name in ("all-gather", "all-reduce", "collective", "all-to-all"):
        assert name not in text


def test_bfloat16_is_counted_like_that_of_whole_images():
    low = Preprocessing(PREPROCESSING.mean, PREPROCESSING.std, precision="bfloat16")
    whole, ours = _tables(PAIRS, preprocessing=low)
    exact, _ = _tables(PAIRS, preprocessing=Preprocessing(low.mean, low.std))
    flips = [(table.predictions != exact.predictions).mean() for table in (whole, ours)]
    assert max(flips) < 0.05
    assert (ours.margins != exact.margins).any()


def test_logits_that_are_not_finite_are_no_label():
    apply_fn, local, params = _bagnet()
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        table = predict(apply_fn, broken, IMAGES[:2], PAIRS, local=local)
    assert (table.predictions == -1).all()


class _Photographs:
    """The images as a test set that can stop a run."""

    stop_before: int | None = None

    def __init__(self):
        apply_fn, _, params = _bagnet()
        self.labels = predict(apply_fn, params, IMAGES, PAIRS, preprocessing=PREPROCESSING)
        self.labels = self.labels.predictions[:, 0].astype(np.int32)
        self.read_blocks = 0

    def __len__(self):
        return len(IMAGES)

    def read(self, start, stop):
        self.read_blocks += stop - start > 1
        if self.read_blocks == self.stop_before:
            raise KeyboardInterrupt
        ids = tuple(map(str, range(start, stop)))
        return Batch(IMAGES[start:stop], self.labels[start:stop], ids)


@pytest.mark.parametrize("decide", [True, False])
def test_a_run_has_the_verdicts_of_whole_images_and_may_be_stopped(tmp_path, decide):
    apply_fn, local, params = _bagnet()
    defense = defenses.double_masking(MASKS)

    def run(name, **options):
        return evaluation.evaluate(
            options.pop("test_set", _Photographs()),
            apply_fn,
            params,
            [defense],
            tmp_path / name,
            preprocessing=PREPROCESSING,
            decide=decide,
            block_sizes=BlockSizes(least_blocks=4, moment=0, stretch=0),
            **options,
        )

    whole, ours = run("whole"), run("fields", local=local)
    assert ours.table.known.all()
    fields = len(local_fields(ours.table.masked_images, local))
    assert ours.about["provenance"]["fields"] == fields
    text = report.as_text(verdicts.certify(ours, [defense]))
    assert f"all masked images of an image from {fields} distinct fields" in text
    assert "distinct fields" not in report.as_text(verdicts.certify(whole, [defense]))
    stopped = _Photographs()
    stopped.stop_before = 3
    with pytest.raises(KeyboardInterrupt):
        run("resumed", local=local, test_set=stopped)
    resumed = run("resumed", local=local)
    for name in ("predictions", "margins", "confidences"):
        ours_, theirs = (np.asarray(getattr(s.table, name)[:]) for s in (ours, resumed))
        np.testing.assert_array_equal(ours_, theirs)
    reports = [verdicts.certify(saved, [defense]).defenses[0] for saved in (whole, ours)]
    for verdict in ("answer", "worst_case", "two_mask_correct"):
        expected, by_fields = (r.per_image[verdict] for r in reports)
        np.testing.assert_array_equal(by_fields, expected)
    assert 0 < reports[1].per_image["worst_case"].sum() < len(IMAGES)


def test_a_defended_classifier_answers_as_the_rule():
    apply_fn, local, params = _bagnet()
    defense = defenses.challenger_masking(MASKS)
    _, table = _tables(defense.masked_images)
    guarded = defended(apply_fn, params, defense, preprocessing=PREPROCESSING, local=local)
    for images in (IMAGES, IMAGES[:1]):
        answers = guarded(images)
        np.testing.assert_array_equal(answers.labels, defense.rule(table)[: len(images)])
        assert (answers.masked_images == len(defense.masked_images)).all()


@pytest.mark.parametrize(
    ("fields", "platform", "expected"),
    [
        (2549, "tpu", 2549),  # one chunk, and not 4,096 with 61% more to do
        (4096, "gpu", 4096),
        (4097, "gpu", 2049),  # two, of which the last lacks one
        (9000, "tpu", 3000),
        (130, "cpu", 44),  # three, of 44, 44 and 42
        (1, "cpu", 1),
    ],
)
def test_chunks_of_fields_are_nearly_full(fields, platform, expected):
    assert field_tables.fields_at_once(fields, platform) == expected
    assert -fields % expected < -(-fields // expected)  # less than a field a chunk


def test_devices_without_memory_get_half_the_fields(tmp_path, monkeypatch):
    apply_fn, local, params = _bagnet()
    real, tried = field_tables.in_chunks, []

    def in_chunks(fields, chunk):
        tried.append(chunk)
        if chunk > 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return real(fields, chunk)

    monkeypatch.setattr(field_tables, "in_chunks", in_chunks)
    warned = []
    evaluation.evaluate(
        _Photographs(),
        apply_fn,
        params,
        [defenses.double_masking(MASKS)],
        tmp_path / "t",
        preprocessing=PREPROCESSING,
        local=local,
        chunk=40,
        block_sizes=BlockSizes(least_blocks=4, moment=0, stretch=0),  # each block by itself
        hooks=Hooks(warn=warned.append),
    )
    assert tried[:3] == [20, 10, 5]
    assert set(tried[3:]) == {5}
    assert len(warned) == 2


def test_what_cannot_be_done_by_fields_is_a_clear_error():
    _, local, params = _bagnet()
    given = {"preprocessing": PREPROCESSING}
    shape = IMAGES.shape[1:]

    def build(local=local, shape=shape, **options):
        return field_tables.local_forward(local, params, shape, PAIRS, **{**given, **options})

    with pytest.raises(ValueError, match="masked images that are resized; evaluate them whole"):
        build(preprocessing=Preprocessing(resize_to=(64, 64)))
    with pytest.raises(ValueError, match="at least 40x40 pixels, which a local logit sees"):
        build(LocalLogits(local.apply_fn, 40, local.stride))
    for field, stride in ((local.field + local.stride, local.stride), (local.field, 3)):
        with pytest.raises(ValueError, match=rf"as fields of {field} pixels every {stride} make"):
            build(LocalLogits(local.apply_fn, field, stride))
    with pytest.raises(ValueError, match="at least 1 field, got 0"):
        build(chunk=0)
    with pytest.raises(ValueError, match="local logits give whole tables alone"):
        build().flight(IMAGES)
    with pytest.raises(ValueError, match="memory for one field on each device"):
        build(chunk=2).halved()


def test_the_benchmark_compares_what_both_evaluate():
    apply_fn, local, params = _bagnet()
    subject = subjects.Subject(
        "a small BagNet",
        apply_fn,
        params,
        PREPROCESSING,
        _Photographs(),
        IMAGES.shape[1:],
        CLASSES,
        [defenses.double_masking(MASKS)],
        local,
    )
    measured = measured_fields.measure(subject, 1)
    assert measured["masked_images"] == len(PAIRS)
    assert measured["label_flips"] == 0
    assert measured["largest_margin_difference"] < 0.01
    assert measured["compared"] == 16 * 2
