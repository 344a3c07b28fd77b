"""Dropped tokens in every engine's place: tables, early exit, guards and programs, and attacks."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import certmask_jax as cm
from certmask_jax import models, weights
from certmask_jax.data import digits_arrays
from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.inference import early_exit
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.dropped_tokens import dropped_forward
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.evidence_sources import BandSource
from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.inference.token_dropping import SeenTokens, TokenDropping, seen_tokens
from certmask_jax.inference.token_groups import TokenGroup, grouped, sizes_of_group
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.visible_tokens import kept_counts, kept_tokens
from certmask_jax.models.vit import VisionTransformer
from certmask_jax.programs import certification_config, certification_options, certify
from certmask_jax.programs.certification_job import opened
from certmask_jax.programs.job_inputs import dropping_of
from certmask_jax.tables.prediction_table import UNKNOWN

RNG = np.random.default_rng(5)
LOADED = cm.load_model("vit_digits", fill=97.0)
TOKEN = LOADED.dropping.token
IMAGES, LABELS = (array[:4] for array in digits_arrays("test"))
# Bands that are no whole tokens, pairs of masks, and the image itself: many numbers of tokens.
BANDS = cm.defenses.plurality(cm.mask_sets.column_bands(8, 1, band=3, stride=1))
DOUBLE = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(8, 2, masks_per_axis=3))
HOW = {"preprocessing": LOADED.preprocessing, "dropping": LOADED.dropping}


@pytest.fixture(scope="module")
def columns():
    parts = [distinct_unions.unmasked((8, 8)), BANDS.masked_images, DOUBLE.masked_images]
    return distinct_unions.merge(parts)[0]


@pytest.fixture(scope="module")
def one_by_one(columns):
    """Logits ``[T, V, K]``: each masked image by itself, made in NumPy, with its own tokens."""
    pre = LOADED.preprocessing
    apply = jax.jit(LOADED.dropping.apply_fn)
    kept = kept_tokens(columns.boxes, (8, 8), token=TOKEN)
    logits = []
    for boxes, tokens in zip(columns.boxes, kept, strict=True):
        hidden = oracle.paint(boxes, (8, 8))[..., None]
        seen = (np.where(hidden, 97.0, IMAGES) / 255 - pre.mean[0]) / pre.std[0]
        lists = np.tile(tokens, (len(IMAGES), 1))
        logits.append(apply(LOADED.params, seen.astype(np.float32), lists))
    return np.stack(logits, axis=1)


def _engine(masks, **options):
    return engine_for(LOADED.apply_fn, LOADED.params, (8, 8, 1), masks, **{**HOW, **options})


def _is_of(outputs, logits):
    """Labels and margins are those of the logits."""
    ordered = np.sort(logits, axis=-1)
    np.testing.assert_array_equal(outputs.predictions, logits.argmax(-1))
    margins = ordered[..., -1] - ordered[..., -2]
    np.testing.assert_allclose(outputs.margins, margins, rtol=2e-3, atol=1e-4)


def test_a_table_is_that_of_each_masked_image_by_itself(columns, one_by_one):
    engine = _engine(columns, chunk=16)
    counts = kept_counts(columns.boxes, (8, 8), token=TOKEN)
    assert len(engine.groups) == 3
    assert (
        [group.most for group in engine.groups][-1]
        == counts.max()
        == LOADED.dropping.tokens((8, 8))
    )
    slots = []
    table = engine.table(IMAGES, lambda done, taken: slots.append((done, taken)))
    _is_of(table, one_by_one)
    assert sum(done for done, _ in slots) == table.predictions.size
    assert all(done <= taken <= 16 for done, taken in slots)

    image_of = RNG.integers(0, len(IMAGES), 60)
    of = RNG.integers(0, len(columns), 60)
    items = engine.evaluate(IMAGES, image_of, of)
    _is_of(items, one_by_one[image_of, of])
    assert engine.tried(IMAGES[:1]).predictions[0] == one_by_one[0, 0].argmax()

    fewer = engine.halved()
    assert fewer.chunk == engine.chunk // 2
    assert fewer.facts() == {**engine.facts(), "chunk": fewer.chunk}
    alone = _engine(MaskedImages(columns.boxes[:1], (8, 8)), mesh=device_mesh(jax.devices()[:1]))
    _is_of(alone.table(IMAGES), one_by_one[:, :1])


NATIVE = (21, 18)  # pixels that are resized to the 8x8 of the model
LARGER = RNG.integers(0, 256, (3, *NATIVE, 1), np.uint8)
RESIZED = dataclasses.replace(LOADED.preprocessing, resize_to=(8, 8))


def _made_of(size, seen):
    """Which pixels have a weight in which token of an axis: ``bool[seen / TOKEN, size]``."""
    weights_of = jax.image.resize(jnp.eye(size), (seen, size), "bicubic")
    return (np.asarray(weights_of) != 0).reshape(seen // TOKEN, TOKEN, size).any(axis=1)


@pytest.fixture(scope="module")
def native_masks():
    bands = cm.mask_sets.column_bands(NATIVE, 1, band=6, stride=5)
    pairs = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(NATIVE, 6, masks_per_axis=2))
    parts = [distinct_unions.unmasked(NATIVE), cm.defenses.plurality(bands).masked_images]
    return distinct_unions.merge([*parts, pairs.masked_images])[0]


def test_before_a_resize_a_token_is_kept_if_a_pixel_that_it_is_made_of_is_seen(native_masks):
    kept = kept_tokens(native_masks.boxes, NATIVE, token=TOKEN, seen_size=(8, 8))
    counts = kept_counts(native_masks.boxes, NATIVE, token=TOKEN, seen_size=(8, 8))
    np.testing.assert_array_equal(counts, (kept >= 0).sum(axis=1))
    rows, columns = (_made_of(size, 8) for size in NATIVE)
    more = 0
    for boxes, tokens in zip(native_masks.boxes, kept, strict=True):
        visible = ~oracle.paint(boxes, NATIVE)
        sees = (rows.astype(int) @ visible @ columns.T.astype(int) > 0).reshape(-1)
        listed = np.zeros(len(sees), bool)
        listed[tokens[tokens > 0] - 1] = True
        assert not (sees & ~listed).any()
        more += (listed & ~sees).sum()
    assert more <= 0.1 * counts.sum()  # pixels that a rounding could have reached
    assert len(np.unique(counts)) > 2
    traced = jax.jit(
        lambda boxes: seen_tokens(boxes, NATIVE, token=TOKEN, most=kept.shape[1], seen_size=(8, 8))
    )(native_masks.boxes)
    np.testing.assert_array_equal(traced, kept)


def test_before_a_resize_a_table_is_that_of_each_masked_image_by_itself(native_masks):
    engine = engine_for(
        LOADED.apply_fn, LOADED.params, (*NATIVE, 1), native_masks, preprocessing=RESIZED,
        dropping=LOADED.dropping, chunk=16,
    )  # fmt: skip
    assert len(engine.groups) > 1
    kept = kept_tokens(native_masks.boxes, NATIVE, token=TOKEN, seen_size=(8, 8))
    seen = jax.jit(jax.vmap(lambda image, boxes: model_input(image, boxes, RESIZED), (0, None)))
    apply = jax.jit(LOADED.dropping.apply_fn)
    logits = [
        apply(LOADED.params, seen(LARGER, boxes), np.tile(tokens, (len(LARGER), 1)))
        for boxes, tokens in zip(native_masks.boxes, kept, strict=True)
    ]
    _is_of(engine.table(LARGER), np.stack(logits, axis=1))
    assert engine.tried(LARGER[:1]).predictions[0] == np.asarray(logits[0])[0].argmax()
    traced = jax.jit(
        lambda images, boxes: cm.masked_logits(
            SeenTokens(LOADED.dropping), LOADED.params, images, boxes, preprocessing=RESIZED
        )
    )(LARGER[:1].repeat(len(kept), axis=0), native_masks.boxes)
    np.testing.assert_allclose(traced, np.stack(logits, axis=1)[0], rtol=1e-3, atol=1e-3)


def test_early_exit_and_guards_answer_as_the_table(columns, one_by_one):
    engine = _engine(columns, chunk=16)
    questions = [
        early_exit.Question(defense, columns.places(defense.masked_images))
        for defense in (BANDS, DOUBLE)
    ]
    some = early_exit.evaluate(engine, IMAGES, questions, LABELS.astype(np.int32), always=[0])
    known = some.predictions != UNKNOWN
    assert known[:, 0].all()
    assert not known.all()
    _is_of(some.map(lambda column: column[known]), one_by_one[known])

    table = cm.predict(
        LOADED.apply_fn, LOADED.params, IMAGES, DOUBLE.masked_images, chunk=16, **HOW
    )
    guard = cm.defended(LOADED.apply_fn, LOADED.params, DOUBLE, channels=1, chunk=16, **HOW)
    np.testing.assert_array_equal(guard(IMAGES).labels, DOUBLE.rule(table))


def test_an_exported_guard_drops_tokens(tmp_path):
    file = tmp_path / "guard.stablehlo"
    manifest = cm.export_guard(
        file, LOADED.apply_fn, LOADED.params, BANDS, channels=1, platforms=["cpu"], **HOW
    )
    assert manifest["hidden_tokens"] == "dropped"
    table = cm.predict(LOADED.apply_fn, LOADED.params, IMAGES, BANDS.masked_images, **HOW)
    np.testing.assert_array_equal(cm.read_guard(file)(IMAGES)[0], BANDS.rule(table))


def test_nothing_of_a_hidden_pixel_gets_through(columns):
    """Attacks write what they like where a mask hides; no bit of its outputs changes."""
    engine = _engine(columns, chunk=16)
    for column in RNG.permutation(len(columns))[:12]:
        hidden = oracle.paint(columns.boxes[column], (8, 8))[..., None]
        noise = RNG.integers(0, 256, IMAGES.shape, dtype=np.uint8)
        attacked = np.where(hidden, noise, IMAGES)
        every, of = np.arange(len(IMAGES)), np.full(len(IMAGES), column)
        for said, now in zip(
            engine.evaluate(IMAGES, every, of), engine.evaluate(attacked, every, of), strict=True
        ):
            np.testing.assert_array_equal(said, now)


def test_logits_are_pure_and_slopes_are_zero_where_hidden():
    # The second mask hides whole tokens, so nothing of its fill is seen; the others do not.
    boxes = np.array(
        [[[0, 0, 8, 3], [0, 6, 8, 8]], [[0, 0, 8, 2], [4, 4, 8, 8]], [[1, 1, 5, 6], [0] * 4]],
        np.int32,
    )
    model = SeenTokens(LOADED.dropping)

    def logits(pixels, fill):
        how = dataclasses.replace(LOADED.preprocessing, fill=(fill,))
        return cm.masked_logits(model, LOADED.params, pixels, boxes, preprocessing=how)

    @jax.jit
    def both_and_slope(pixels):
        one, pull = jax.vjp(lambda x: logits(x, 97.0), pixels)
        return one, logits(pixels, 3.0), pull(jnp.ones_like(one))[0]

    one, other, slope = map(np.asarray, both_and_slope(IMAGES[:3].astype(np.float32)))
    hidden = np.stack([oracle.paint(mask, (8, 8)) for mask in boxes])
    np.testing.assert_array_equal(slope[..., 0][hidden], 0)
    assert (slope[..., 0][~hidden] != 0).mean() > 0.9
    assert (np.abs(one - other).max(axis=1) > 1e-3).tolist() == [True, False, True]
    np.testing.assert_allclose(one[1], other[1], atol=1e-5)  # another compiled function


def test_tokens_seen_in_a_program_are_those_of_the_index_arrays():
    drawn = np.sort(RNG.integers(0, 13, (200, 3, 2, 2)), axis=2)
    boxes = np.moveaxis(drawn, 3, 2).reshape(200, 3, 4)[..., [0, 2, 1, 3]]
    boxes = np.minimum(boxes, [8, 12, 8, 12]).astype(np.int32)
    kept = kept_tokens(boxes, (8, 12), token=2)
    most = kept.shape[1]
    seen = jax.jit(lambda b: seen_tokens(b, (8, 12), token=2, most=most))(boxes)
    np.testing.assert_array_equal(seen, kept)
    assert len(set(kept_counts(boxes, (8, 12), token=2).tolist())) > 8
    np.testing.assert_array_equal((kept >= 0).sum(axis=1), kept_counts(boxes, (8, 12), token=2))
    few = jax.jit(lambda b: seen_tokens(b, (8, 12), token=2, most=4))(boxes)
    np.testing.assert_array_equal(few, kept[:, :4])


def test_groups_pad_the_least():
    for _ in range(40):
        counts = RNG.integers(1, 12, RNG.integers(1, 9)).astype(np.int32)
        groups = grouped(counts)
        assert sorted(np.concatenate([group.masks for group in groups]).tolist()) == list(
            range(len(counts))
        )
        for group in groups:
            assert group.most == counts[group.masks].max()
            assert group.padded == (counts[group.masks] < group.most).any()

        def cost(ends, counts=counts):
            return sum(min(end for end in ends if end >= count) for count in counts)

        distinct = sorted(set(counts.tolist()))
        best = {
            many: min(
                cost((*inner, distinct[-1]))
                for inner in itertools.combinations(distinct[:-1], many - 1)
            )
            for many in range(1, min(3, len(distinct)) + 1)
        }
        taken = cost([group.most for group in groups])
        assert taken == best[len(groups)]
        more = [best[many] for many in best if many > len(groups)]
        assert all(other > 0.9 * taken for other in more)  # at most two steps, of 5% each


def test_chunks_of_a_group_are_as_much_work():
    group = TokenGroup(np.arange(3), 257, False)
    assert sizes_of_group((4, 16, 64), group, fewest=33, devices=4) == (4, 8)
    assert sizes_of_group((2, 10), group, fewest=33, devices=1) == (1,)
    assert sizes_of_group((4, 16, 64), group, fewest=257, devices=4) == (4, 16, 64)


def test_what_cannot_be_is_refused(columns):
    dropping = LOADED.dropping
    masks = columns
    odd_size = dataclasses.replace(LOADED.preprocessing, resize_to=(9, 8))
    with pytest.raises(ValueError, match="dropping: token: expected a side that divides the input"):
        _engine(masks, preprocessing=odd_size)
    for views in ("mirror", [("turned", lambda image: image)]):
        with pytest.raises(ValueError, match="views: expected none for a model that drops hidden"):
            _engine(masks, views=views)
    with pytest.raises(ValueError, match="dropping: expected none beside views"):
        engine_for(cm.with_views(LOADED.apply_fn, "mirror"), LOADED.params, (8, 8, 1), masks, **HOW)
    local = LocalLogits(LOADED.apply_fn, 2, 2)
    with pytest.raises(ValueError, match="dropping: expected none beside local logits"):
        _engine(masks, local=local)
    function = NumpyFunction(lambda images: images, num_classes=3, sha256="0")
    with pytest.raises(ValueError, match="dropping: expected none beside a NumPy function"):
        engine_for(function, (), (8, 8, 1), masks, **HOW)
    odd = MaskedImages(masks.boxes[:1], (9, 8))
    with pytest.raises(ValueError, match="dropping: token: expected a side that divides"):
        dropped_forward(dropping, LOADED.params, (9, 8, 1), odd, preprocessing=LOADED.preprocessing)


def test_the_program_records_what_it_dropped(tmp_path, capsys):
    command = ["--num-images", "6", "--defense", "plurality:bands=2,stride=2"]
    drop = ["--hidden-tokens", "drop"]
    out = str(tmp_path / "run")
    assert certify.main([*command, *drop, "--out", out]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "hidden tokens: left out of the model's sequence and not filled" in printed
    facts = json.loads((tmp_path / "run" / "results.json").read_text())["provenance"]
    assert facts["hidden_tokens"] == "dropped"
    assert facts["kept_tokens"] == [5, 17]  # a column of tokens, and the image itself
    assert certify.main(["--from-tables", out]) == 0
    assert "at most 5, 17 tokens, by the mask" in " ".join(capsys.readouterr().out.split())
    assert certify.main([*command, "--out", out]) == 2  # another run
    assert "hidden_tokens" in capsys.readouterr().err
    for options, message in (
        (["--views", "mirror"], "--hidden-tokens drop: expected no --views beside it"),
        (["--hidden-tokens", "keep"], "--hidden-tokens: "),
    ):
        assert certify.main([*command, *drop, *options]) == 2
        assert message in capsys.readouterr().err


def test_runs_that_fill_are_told_apart_as_they_were():
    parse = certification_options.parser()
    config = certification_config.read_config(parse.parse_args([]))
    filled, dropped = (
        opened(dataclasses.replace(config, hidden_tokens=how), "") for how in ("fill", "drop")
    )
    assert "hidden_tokens" not in filled.identity
    assert dropped.identity == {**filled.identity, "hidden_tokens": "dropped"}
    assert filled.dropping is None
    assert filled.name != dropped.name


def test_a_model_without_tokens_does_not_go_with_it():
    parse = certification_options.parser()
    words = ["--hidden-tokens", "drop", "--model", "cifar_resnet20"]
    config = certification_config.read_config(parse.parse_args(words))
    with pytest.raises(ValueError, match=r"drop: expected a ViT, .* got cifar_resnet20; leave it"):
        dropping_of(config, config.model.create())


TIMM_NAMES = {
    "cls": "cls_token", "pos": "pos_embed", "proj": "patch_embed.proj", "n1": "norm1",
    "qkv": "attn.qkv", "out": "attn.proj", "n2": "norm2", "f1": "mlp.fc1", "f2": "mlp.fc2",
}  # fmt: skip


def test_bands_of_a_vit_are_those_of_smoothed_vits_own_program(shared, tmp_path):
    """Their preprocessor, their dropped tokens and their votes, on the same weights and pixels."""
    golden = np.load(shared / "golden" / "small_fields" / "svit_tokens.npz")
    arrays = {
        ".".join(TIMM_NAMES.get(part, part) for part in name[len("vitw_") :].split(".")): golden[
            name
        ]
        for name in golden
        if name.startswith("vitw_")
    }
    for name, array in arrays.items():  # their MLP is half as wide as a ViT's: zeros are nothing
        if ".mlp.fc" in name and array.shape != (24,):
            of_width = ((0, 48), (0, 0)) if "fc1" in name else ((0, 0), (0, 48))
            arrays[name] = np.pad(array, of_width[: array.ndim])
    np.savez(tmp_path / "w.npz", **arrays)
    module = VisionTransformer(10, patch=4, width=24, depth=2, num_heads=3)
    config = models.DataConfig((32, 32), (0.5,) * 3, (0.25,) * 3)
    small = models.Model("small", 10, module, module, config, module.apply)
    params = weights.load(tmp_path / "w.npz", small)
    pixels = jnp.asarray(golden["vit_images"].transpose(0, 2, 3, 1))
    how = Preprocessing(mean=(0.5,), std=(0.25,), fill=(0.0,))
    dropping = TokenDropping(module.apply, 4)
    row_width, row_stride, width, stride = (
        int(golden[f"vit_{name}"])
        for name in ("row_block", "row_stride", "col_block", "col_stride")
    )
    sources = [
        BandSource(module.apply, MaskedImages(bands.boxes, (32, 32)), whole, 256, dropping)
        for bands, whole in (
            (cm.mask_sets.row_bands(32, 1, band=row_width, stride=row_stride), False),
            (cm.mask_sets.column_bands(32, 1, band=width, stride=stride), True),
        )
    ]
    program = jax.jit(lambda p, x: [source.evidence(p, x, how) for source in sources])
    rows, columns = program(params, pixels)
    np.testing.assert_allclose(columns.parts, golden["vit_column_logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(columns.whole, golden["vit_unmasked_logits"], rtol=1e-5, atol=1e-5)
    logits = np.concatenate([rows.parts, columns.parts], axis=1)
    np.testing.assert_array_equal(logits.argmax(axis=2), golden["vit_band_labels"])
    votes = smoothing.shared_top_votes(logits)
    np.testing.assert_array_equal(smoothing.vote_counts(votes), golden["vit_counts"])
    np.testing.assert_array_equal(smoothing.rule(votes), golden["vit_smoothed"])
