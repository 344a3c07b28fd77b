"""Models in two parts: the engine, what lies under masks, and the authors' own results."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_secure_pooling
import oracle_small_fields
import pytest

from certmask_jax import Preprocessing, defended, defenses, mask_sets, models, predict
from certmask_jax.certification import evaluation
from certmask_jax.defenses import patchguard
from certmask_jax.defenses.defense import ALERT
from certmask_jax.inference import early_exit, stem_and_head
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.stem_and_head import StemAndHead, parts_forward
from certmask_jax.inference.two_parts import TwoParts, check_parts, mean_of_kept
from certmask_jax.masks.combined_sets import for_threat
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.models.bagnet import BagNet
from certmask_jax.models.parts_choice import in_two_parts
from certmask_jax.models.vit import VisionTransformer
from certmask_jax.tables.outputs import UNKNOWN
from certmask_jax.tables.prediction_table import from_labels
from tests.support.small_models import small_bagnet

SIZE, CLASSES = 16, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
LABELS = RNG.integers(0, CLASSES, 6).astype(np.int32)
PREPROCESSING = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


@functools.cache
def _vit():
    """4x4 tokens, cut into columns after one of two blocks, and weights that masks matter to."""
    module = VisionTransformer(num_classes=CLASSES, patch=4, width=8, depth=2, num_heads=2)
    base = models.create("vit_digits")
    config = dataclasses.replace(base.data_config, input_size=(SIZE, SIZE), channels=3)
    model = dataclasses.replace(
        base, name="tiny", num_classes=CLASSES, module=module, data_config=config
    )
    shapes = model.param_shapes()
    random = np.random.default_rng(1)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _drawn(random, path[-1].key, leaf.shape), shapes
    )
    parts = in_two_parts(model, windows=(4, 1), depth=1).apply_fn
    # Without the mean of all logits, which is much larger than what an image adds to it.
    of_all = jax.jit(parts)(params, _normal(IMAGES))
    params["params"]["head"]["bias"] = -np.asarray(of_all).mean(axis=0)
    return parts, params


def _normal(images):
    return ((images / 255 - PREPROCESSING.mean) / PREPROCESSING.std).astype(np.float32)


def _drawn(random, name, shape):
    if name in ("scale", "bias"):
        return np.full(shape, name == "scale", np.float32)
    return random.normal(0, 0.8 if name == "kernel" else 0.1, shape).astype(np.float32)


def _masks(parts, patch=4):
    threat = parts.on_cells(Threat.of(SIZE, patch))
    return for_threat(threat, lambda n, p: mask_sets.budgeted_grid(n, p, mask_stride=1))


def _engine(masks, **options):
    parts, params = _vit()
    return engine_for(parts, params, (SIZE, SIZE, 3), masks, preprocessing=PREPROCESSING, **options)


def _same(one, other):
    np.testing.assert_array_equal(one.predictions, other.predictions)
    np.testing.assert_allclose(one.margins, other.margins, rtol=2e-3, atol=1e-3)


def test_the_table_is_the_head_on_features_of_the_stem_one_by_one():
    parts, params = _vit()
    defense = defenses.patchcure(_masks(parts))
    assert len(defense.mask_set) == 3
    engine = _engine(defense.masked_images, chunk=16)
    assert isinstance(engine, StemAndHead)
    table = engine.table(engine.upload(IMAGES))
    features = jax.jit(parts.stem)(params, _normal(IMAGES))
    head = jax.jit(parts.head)
    for column, boxes in enumerate(defense.masked_images.boxes):
        hidden = np.broadcast_to(oracle.paint(boxes, parts.grid), (len(IMAGES), *parts.grid))
        logits = np.asarray(head(params, features, hidden))
        top = np.sort(logits, axis=1)
        np.testing.assert_array_equal(table.predictions[:, column], logits.argmax(axis=1))
        np.testing.assert_allclose(
            table.margins[:, column], top[:, -1] - top[:, -2], rtol=2e-3, atol=1e-3
        )
    assert len(np.unique(table.predictions)) > 2
    assert (table.predictions != table.predictions[:, :1]).any()
    itself = engine.tried(IMAGES[:1])
    whole = np.asarray(jax.jit(parts)(params, _normal(IMAGES[:1])))
    assert itself.predictions[0] == whole.argmax()


@pytest.mark.parametrize(
    ("devices", "chunk"),
    [(1, 3), (2, 4), pytest.param(8, 8, marks=pytest.mark.eight_devices)],
)
def test_devices_chunks_and_lists_of_items_change_no_label(monkeypatch, devices, chunk):
    parts, _ = _vit()
    masks = defenses.patchcure(_masks(parts)).masked_images
    mesh = device_mesh(jax.devices()[:devices])
    engine, expected = _engine(masks, chunk=chunk, mesh=mesh), _engine(masks).table(IMAGES)
    given, real = [], stem_and_head.stem_program

    def noted(*how):
        stem = real(*how)
        return lambda params, images: given.append(len(images)) or stem(params, images)

    with monkeypatch.context() as patched:
        patched.setattr(stem_and_head, "stem_program", noted)
        uploaded = engine.upload(IMAGES)
    slots = sum(given)
    assert slots == engine.stem_slots(len(IMAGES))
    assert slots % devices == 0
    assert len(IMAGES) <= slots < len(IMAGES) + devices * 64
    assert engine.stem_slots(0) == 0
    told = []
    _same(engine.table(uploaded, lambda count, slots: told.append((count, slots))), expected)
    assert sum(count for count, _ in told) == len(IMAGES) * len(masks)
    image_of, columns = RNG.integers(0, len(IMAGES), 13), RNG.integers(0, len(masks), 13)
    outputs = engine.evaluate(uploaded, image_of, columns)
    np.testing.assert_array_equal(outputs.predictions, expected.predictions[image_of, columns])
    if chunk > devices:
        assert engine.halved().chunk < engine.chunk
        _same(engine.halved().table(uploaded), expected)


def test_early_exit_and_a_guard_ask_for_heads_alone():
    parts, params = _vit()
    masks = _masks(parts)
    every = [
        defenses.patchcure(masks), defenses.double_masking(masks),
        defenses.challenger_masking(masks), defenses.minority_reports(masks),
    ]  # fmt: skip
    columns, questions = evaluation.merged(every)
    engine = _engine(columns)
    whole = predict(parts, params, IMAGES, columns, preprocessing=PREPROCESSING)
    some = early_exit.evaluate(engine, engine.upload(IMAGES), questions, LABELS, always=[0])
    known = some.predictions != UNKNOWN
    assert 0 < known.sum() < known.size
    np.testing.assert_array_equal(some.predictions[known], whole.predictions[known])
    for defense in every:
        guard = defended(parts, params, defense, preprocessing=PREPROCESSING)
        assert guard.engine.stem_slots(1) == jax.device_count()  # one on each
        np.testing.assert_array_equal(guard(IMAGES).labels, defense.rule(whole))


def test_pixels_of_a_patch_change_nothing_that_hides_its_window():
    """Bit for bit, whatever is in the patch: every place of it."""
    parts, _ = _vit()
    masks = _masks(parts, patch=3)
    defense = defenses.patchcure(masks)
    engine = _engine(defense.masked_images)
    clean = engine.table(IMAGES[:1])
    changed = 0
    places = [(row, column) for row in (0, 5, 13) for column in range(SIZE - 2)]
    attacked = IMAGES[:1].repeat(len(places), axis=0)
    for image, (row, column) in zip(attacked, places, strict=True):
        image[row : row + 3, column : column + 3] = RNG.integers(0, 256, (3, 3, 3))
    table = engine.table(attacked)
    for number, (_, column) in enumerate(places):
        met = np.zeros(parts.grid, bool)
        met[:, column // 4 : (column + 2) // 4 + 1] = True
        hides = [
            not (met & ~oracle.paint(boxes, parts.grid)).any()
            for boxes in defense.masked_images.boxes
        ]
        assert 0 < sum(hides) < len(hides)
        for ours, theirs in zip(clean, table, strict=True):
            np.testing.assert_array_equal(theirs[number, hides], ours[0, hides])
        changed += (table.margins[number] != clean.margins[0]).any()
    assert changed == len(places)


def test_local_logits_are_summed_where_they_are_seen():
    model = small_bagnet()
    parts = in_two_parts(model).apply_fn
    assert (parts.grid, parts.field) == ((6, 6), (3, 3))
    module = BagNet(num_classes=10, kernels=(1,), blocks=(1,), strides=(1,), width=4)
    local = LocalLogits(functools.partial(_local_logits, module), field=3, stride=1)
    model = dataclasses.replace(model, module=module, apply_fn=module.apply, local=local)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), model.param_shapes())
    parts = in_two_parts(model).apply_fn
    images = RNG.normal(size=(2, 8, 8, 1)).astype(np.float32)
    whole = jax.jit(parts)(params, images)
    np.testing.assert_allclose(whole, jax.jit(model.apply_fn)(params, images), rtol=1e-4, atol=1e-5)
    evidence = RNG.normal(size=(1, 6, 6, 3)).astype(np.float32)
    hidden = RNG.random((1, 6, 6)) < 0.3
    expected = evidence[0].astype(np.float64)[~hidden[0]].mean(axis=0)
    mean = np.asarray(mean_of_kept((), evidence, hidden))
    np.testing.assert_allclose(mean[0], expected, rtol=1e-5)
    for anything in (1e8, -1e30, np.inf, np.nan):  # a total minus a window would forget the rest
        attacked = np.where(hidden[..., None], np.float32(anything), evidence)
        np.testing.assert_array_equal(mean_of_kept((), attacked, hidden), mean)
    assert (np.asarray(mean_of_kept((), evidence, np.ones((1, 6, 6), bool))) == 0).all()


def _local_logits(module, params, images):
    return module.apply(params, images, method="local_logits")


def _means(features, masks):
    """The table of a map of local logits ``[T, H, W, K]``."""
    boxes = masks.boxes
    hidden = np.stack([oracle.paint(one, masks.image_size) for one in boxes])
    labels = np.empty((len(features), len(boxes)), np.int16)
    trust = np.empty(labels.shape, np.float16)

    @jax.jit
    def said(at):
        logits = mean_of_kept((), features, at)
        return logits.argmax(axis=1), jax.nn.softmax(logits, axis=-1).max(axis=1)

    for column, cells in enumerate(hidden):
        labels[:, column], trust[:, column] = said(np.broadcast_to(cells, features.shape[:3]))
    table = from_labels(labels, masks, num_classes=features.shape[-1])
    return dataclasses.replace(table, confidences=trust)


@pytest.mark.parametrize("which", ["p0", "p1", "p2", "p3"])
def test_answers_and_certificates_are_those_of_the_authors_program(shared, which):
    golden = np.load(shared / "golden/small_fields/patchcure.npz")
    features, label = golden[f"{which}_features"], golden[f"{which}_label"]
    mask, stride = golden[f"{which}_mask_size"], golden[f"{which}_mask_stride"]
    grid = features.shape[1:3]
    window = tuple((mask - np.minimum(stride, mask) + 1).tolist())
    masks = mask_sets.budgeted_grid(grid, window, mask_stride=tuple(stride.tolist()))
    if tuple(masks.mask_size) != tuple(mask):  # a mask as long as the map
        pytest.fail(f"{masks} for {mask}")
    defense = defenses.patchcure(masks)
    table = _means(features, defense.masked_images)
    correct = defense.conditions(table, label)["two_mask_correct"]
    np.testing.assert_array_equal(correct, golden[f"{which}_two_mask_correct_full_set"])
    assert 0 < correct.sum() < len(label)
    np.testing.assert_array_equal(correct, golden[f"{which}_peer_certified"])
    steps = np.minimum(stride, mask)
    published = oracle_secure_pooling.answers(features, tuple(mask), tuple(steps))
    np.testing.assert_array_equal(published, golden[f"{which}_peer_pred"])
    if golden[f"{which}_pool_misses_border_mask"]:
        # Its rule never hides the border, so what it certifies is void for that rule.
        assert len(masks) > (1 + (np.array(grid) - mask) // stride).prod()
    else:
        np.testing.assert_array_equal(defense.rule(table), published)


@pytest.mark.parametrize("which", ["p0", "p1", "p2", "p3"])
def test_the_authors_robust_masking_of_a_map_is_patchguards(shared, which):
    """PatchCURE's program has PatchGuard's masking of local logits as another head."""
    golden = np.load(shared / "golden/small_fields/patchcure.npz")
    evidence, label = golden[f"{which}_features"], golden[f"{which}_label"].astype(np.int32)
    window = tuple(golden[f"{which}_mask_size"].tolist())  # whatever the stride of masks
    answers = patchguard.robust_masking_rule(evidence, window=window)
    np.testing.assert_array_equal(answers, golden[f"{which}_patchguard_pred"])
    proved = patchguard.robust_masking_worst_case(evidence, label, window=window)
    np.testing.assert_array_equal(proved, golden[f"{which}_patchguard_certified"])


@pytest.mark.parametrize("which", ["p0", "p1", "p2", "p3"])
def test_the_authors_detector_on_a_map_and_minority_reports(shared, which):
    """Their head answers what its confident masks agree on, ours what the whole map says.

    So ours certifies what theirs does where the map as a whole is right as well.
    """
    golden = np.load(shared / "golden/small_fields/patchcure.npz")
    features, label = golden[f"{which}_features"], golden[f"{which}_label"]
    mask, stride = (tuple(golden[f"{which}_mask_{n}"].tolist()) for n in ("size", "stride"))
    window = tuple(m - min(m, s) + 1 for m, s in zip(mask, stride, strict=True))
    masks = mask_sets.budgeted_grid(features.shape[1:3], window, mask_stride=stride)
    both, alerts = 0, 0
    for number, tau in enumerate(golden[f"{which}_mr_thresholds"].tolist()):
        labels, trust, answers = oracle_small_fields.unanimous_masks(features, mask, stride, tau)
        np.testing.assert_array_equal(answers, golden[f"{which}_mr_output"][number])
        theirs = ((trust > tau) & (labels == label)).all(axis=0)
        np.testing.assert_array_equal(theirs, golden[f"{which}_mr_certified"][number])
        defense = defenses.minority_reports(masks, tau=tau)
        table = _means(features, defense.masked_images)
        whole = features.mean(axis=(1, 2)).argmax(axis=1)
        mine = defense.certificate(table, label)
        np.testing.assert_array_equal(mine, theirs & (whole == label))
        dissent = ((trust > tau) & (labels != whole)).any(axis=0)
        np.testing.assert_array_equal(defense.rule(table), np.where(dissent, ALERT, whole))
        assert not (mine & ~defense.worst_case(table, label)).any()
        both, alerts = both + mine.sum(), alerts + (answers == -1).sum()
    assert both > 20
    assert alerts > 10


@pytest.mark.parametrize("side", [3, 5])
def test_local_logits_of_a_net_on_cifar10_are_answered_as_by_the_authors_program(shared, side):
    file = np.load(shared / "golden/small_fields/cifar_patchguard.npz")
    logits, label, answer, certified = (
        file[name][::3]
        for name in ("local_logits", "label", f"pcure_w{side}_pred", f"pcure_w{side}_certified")
    )
    masks = mask_sets.budgeted_grid((14, 14), side, mask_stride=1)
    defense = defenses.patchcure(masks)
    table = _means(logits, defense.masked_images)
    np.testing.assert_array_equal(defense.rule(table), answer)
    correct = defense.conditions(table, label)["two_mask_correct"]
    np.testing.assert_array_equal(correct, certified)
    assert 0 < correct.mean() < 1


def test_a_head_of_ones_own_answers_as_the_authors_secure_layer(shared):
    golden = np.load(shared / "golden/small_fields/patchcure.npz")
    features = golden["lrf_features"].transpose(0, 2, 3, 1)
    params = {name: golden[f"lrf_{name}"] for name in ("W1", "b1", "W2")}

    def head(params, features, hidden):
        kept = jnp.where(hidden[..., None], 0, features).transpose(0, 3, 1, 2)
        first = kept.reshape(kept.shape[0], -1) @ params["W1"].T + params["b1"][None]
        return jax.nn.relu(first) @ params["W2"].T

    mask, stride = (tuple(golden[f"lrf_{name}"].tolist()) for name in ("mask_size", "mask_stride"))
    window = tuple(m - s + 1 for m, s in zip(mask, stride, strict=True))
    masks = mask_sets.budgeted_grid(features.shape[1:3], window, mask_stride=stride)
    defense = defenses.patchcure(masks)
    hidden = np.stack([oracle.paint(b, masks.image_size) for b in defense.masked_images.boxes])
    labels = np.stack(
        [
            np.asarray(
                head(params, features, jnp.asarray(np.broadcast_to(cells, features.shape[:3])))
            ).argmax(axis=1)
            for cells in hidden
        ],
        axis=1,
    )
    table = from_labels(labels, defense.masked_images, num_classes=5)
    np.testing.assert_array_equal(defense.rule(table), golden["lrf_peer_pred"])
    certified = defense.conditions(table, golden["lrf_label"])["two_mask_correct"]
    np.testing.assert_array_equal(certified, golden["lrf_peer_certified"])


def test_attacks_that_the_authors_program_certifies_against(shared):
    cases = json.loads((shared / "golden/small_fields/counterexamples.json").read_text())
    cases = {case["name"]: case for case in cases}
    border = cases["patchcure_stride_border"]
    features = np.stack([border["features_z"], border["features_y"]], axis=-1)
    features = features.astype(np.float32)[None, None]
    # What they look at first, masks at 0 and 2, hides no patch on the last cell.
    with pytest.raises(CoverageError, match="column 4"):
        MaskSet([[[0, 0, 1, 2]], [[0, 2, 1, 4]]], (1, 5), (1, 1))
    masks = mask_sets.budgeted_grid((1, 5), (1, 1), mask_stride=(1, 2))
    assert masks.boxes[:, 0, 1].tolist() == [0, 2, 3]
    defense = defenses.patchcure(masks)
    clean = _means(features, defense.masked_images)
    assert defense.conditions(clean, [1])["two_mask_correct"].all()  # what is published
    assert defense.worst_case(clean, [1]).all()
    masked_as_published = (1, border["mask"]), (1, border["stride"])
    assert oracle_secure_pooling.answers(features, *masked_as_published).tolist() == [1]
    features[0, 0, 4, 0] = 100
    assert oracle_secure_pooling.answers(features, *masked_as_published).tolist() == [0]
    assert defense.rule(_means(features, defense.masked_images)).tolist() == [1]

    forgets = cases["patchcure_float32_cancellation"]
    mine = np.array(forgets["features_y"], np.float32)
    features = np.stack([mine, 0 * mine + 0.25], axis=-1)[None, None]
    defense = defenses.patchcure(mask_sets.budgeted_grid((1, 5), (1, 1), mask_stride=1))
    assert defense.worst_case(_means(features, defense.masked_images), [0]).all()
    for large, answer in forgets["output_by_M"].items():
        attacked = np.stack([0 * mine + 0.25, mine], axis=-1)[None, None]
        attacked[0, 0, 2] = (float(large), -float(large))
        assert oracle_secure_pooling.answers(attacked, (1, 1), (1, 1)).tolist() == [answer]
    for large in (1e6, 1e8, 1e30):
        features[0, 0, 2] = (-large, large)
        assert defense.rule(_means(features, defense.masked_images)).tolist() == [0]

    noise = cases["patchcure_all_masked_noise"]
    features = np.array(noise["features"], np.float32).T[None, None]
    defense = defenses.patchcure(mask_sets.budgeted_grid((1, 6), (1, 1), mask_stride=(1, 3)))
    assert len(defense.mask_set) == 2  # which hide the whole map together: there is no label then
    attacked = features.copy()
    attacked[0, 0, 5] = noise["attack_feature_5"]
    tables = [_means(each, defense.masked_images) for each in (features, attacked)]
    all_hidden = [oracle.paint(b, (1, 6)).all() for b in defense.masked_images.boxes]
    assert sum(all_hidden) == 1
    assert tables[0].predictions[0, all_hidden] == tables[1].predictions[0, all_hidden] == 0


def _plain(params, x):
    return x.reshape(x.shape[0], 4, 4, 4, 4, 3).sum(axis=(2, 4)) * params


def _leaky(params, x):
    return _plain(params, x + 0.1 * jnp.roll(x, 1, axis=2))


def _multiplies(params, features, hidden):
    del params
    return (features * jnp.where(hidden, 0.0, 1.0)[..., None]).sum(axis=(1, 2))


def _parts(stem=_plain, head=mean_of_kept, **sizes):
    sizes = {"field": 4, "stride": 4, "image_size": SIZE, **sizes}
    return TwoParts(stem, head, **sizes)


def test_parts_that_are_not_what_they_say_are_found_before_any_work():
    params = jnp.ones(())
    check_parts(_parts(), params, 3)
    with pytest.raises(ValueError, match=r"stem: expected the cell .* but it also sees"):
        check_parts(_parts(_leaky), params, 3)
    with pytest.raises(ValueError, match="head: expected that no hidden cell has any influence"):
        check_parts(_parts(head=_multiplies), params, 3)
    with pytest.raises(ValueError, match=r"stem: expected one array \[1, 7, 7, ...\]"):
        check_parts(_parts(stride=2), params, 3)
    with pytest.raises(ValueError, match=r"head: expected logits \[1, K\]"):
        check_parts(_parts(head=lambda p, f, h: f), params, 3)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image_shape": (16, 12, 3)}, r"images: expected \(16, 16\) pixels"),
        (
            {"preprocessing": Preprocessing(resize_to=(32, 32))},
            "resize_to: expected None, as the parts",
        ),
        ({"masks": (16, 16)}, r"expected those of images of \(4, 4\), got \(16, 16\)"),
        ({"chunk": 0}, "chunk: expected at least 1 masked map"),
        ({"views": "mirror"}, "views: expected none for a model in two parts"),
    ],
)
def test_what_does_not_go_with_two_parts(changed, words):
    grid = changed.pop("masks", (4, 4))
    masks = defenses.patchcure(mask_sets.budgeted_grid(grid, 1, masks_per_axis=2)).masked_images
    options = {"preprocessing": Preprocessing(), **changed}
    shape = options.pop("image_shape", (16, 16, 3))
    with pytest.raises(ValueError, match=words):
        engine_for(_parts(), jnp.ones(()), shape, masks, **options)
    with pytest.raises(ValueError, match="threat: expected one on images of"):
        _parts().on_cells(Threat.of(12, 2))


def test_facts_tell_parts_from_others():
    parts = _parts()
    engine = parts_forward(parts, jnp.ones(()), (16, 16, 3), preprocessing=Preprocessing())
    facts = engine.facts()
    assert facts["two_parts"] == {
        "name": "two parts", "field": [4, 4], "stride": [4, 4], "image_size": [16, 16],
        "cells": [4, 4],
    }  # fmt: skip
    assert facts["stem_sizes"]
    json.dumps(facts)
    larger = parts.for_images(24)
    assert larger.facts == {**parts.facts, "image_size": [24, 24], "seen_size": [16, 16]}
    assert larger.for_images(16) == parts  # nothing is resized
    with pytest.raises(ValueError, match=r"resize_to: expected \(16, 16\), as the parts say, got"):
        parts_forward(larger, jnp.ones(()), (24, 24, 3), preprocessing=Preprocessing())
