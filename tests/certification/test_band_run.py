"""Runs on bands: what a tiny model says of each band by hand, chunks, sharing, and resuming."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import data, models
from certmask_jax.certification import evidence_batches
from certmask_jax.certification.evidence_batches import sources_of
from certmask_jax.certification.evidence_run import evaluate_evidence
from certmask_jax.certification.evidence_verdicts import certify_evidence
from certmask_jax.certification.run_hooks import EvidenceHooks
from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.masks.threats import Threat
from certmask_jax.masks.visible_tokens import kept_tokens
from certmask_jax.weights.loaded_model import load_model

THREAT = Threat.of(8, 1)
CLASSES = 3
DEFENSES = [
    DerandomizedSmoothing(THREAT, band=2, threshold=0.35),
    SmoothedViT(THREAT, band=2, stride=3),
    DerandomizedSmoothing(Threat.of(8, 2), band=2, threshold=None),
    MaskDS(THREAT, band=2),
]
HOW = Preprocessing(encoding="complement")
RNG = np.random.default_rng(51)
PARAMS = RNG.normal([0, 0.08, 0], 0.4, size=(8, 8, 2, CLASSES)).astype(np.float32)
IMAGES = RNG.integers(0, 256, (11, 8, 8, 1), np.uint8)


def _model(params, images):
    """Linear in what it sees."""
    return images.reshape(len(images), -1) @ params.reshape(-1, CLASSES)


def _by_hand(columns):
    """Logits of the images of which these columns are seen, ``[11, K]``, in float64."""
    x = IMAGES / 255
    both = np.concatenate([x, 1 - x], axis=3)
    hidden = np.setdiff1d(np.arange(8), columns)
    both[:, :, hidden] = 0
    return np.einsum("bhwc,hwck->bk", both, PARAMS)


def _bands(stride):
    return np.stack([_by_hand([(p + i) % 8 for i in (0, 1)]) for p in range(0, 8, stride)], axis=1)


def _softmax(logits):
    trust = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return trust / trust.sum(axis=-1, keepdims=True)


LABELS = (_softmax(_bands(1)) >= 0.35).sum(axis=1).argmax(axis=1).astype(np.int32)
LABELS[5] = (LABELS[5] + 1) % CLASSES


def _run(folder, *, defenses=DEFENSES, devices=2, chunk=None, params=PARAMS, local=None, **more):
    test_set = data.from_arrays(
        IMAGES, LABELS, data_config=models.create("vit_digits").data_config, num_outputs=CLASSES
    )
    mesh = device_mesh(jax.local_devices()[:devices])
    return evaluate_evidence(
        test_set, local, params, defenses, folder,
        **{"apply_fn": _model, "preprocessing": HOW, "mesh": mesh, "chunk": chunk, **more},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "evidence"
    told = []
    return folder, _run(folder, hooks=EvidenceHooks(passes=lambda *n: told.append(n))), told


def _files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _attacked(votes, met):
    """Robust by every vote of the bands that are met; ``votes bool[T, B, K]``."""
    robust = np.ones(len(votes), bool)
    for group in np.unique(met, axis=0):
        for said in itertools.product([0, 1], repeat=CLASSES * int(group.sum())):
            attacked = votes.copy()
            attacked[:, group] = np.array(said, bool).reshape(-1, CLASSES)
            robust &= attacked.sum(axis=1).argmax(axis=1) == LABELS
    return robust


def _met(stride, patch):
    return np.array(
        [
            [bool({p, (p + 1) % 8} & set(range(at, at + patch))) for p in range(0, 8, stride)]
            for at in range(9 - patch)
        ]
    )


def test_what_is_kept_is_what_bands_by_hand_say(whole):
    saved = whole[1]
    trust = _softmax(_bands(1))
    assert np.abs(trust - 0.35).min() > 1e-4  # so that rounding decides no vote
    every, some = trust >= 0.35, trust == trust.max(axis=2, keepdims=True)
    sparse = _softmax(_bands(3))
    sparse = sparse == sparse.max(axis=2, keepdims=True)
    for place, (votes, stride, patch) in enumerate([(every, 1, 1), (sparse, 3, 1), (some, 1, 2)]):
        np.testing.assert_array_equal(
            saved.rows.answers[:, place], votes.sum(axis=1).argmax(axis=1)
        )
        robust = _attacked(votes, _met(stride, patch))
        np.testing.assert_array_equal(saved.rows.verdicts[:, 2 * place], robust)
    assert all(0 < saved.rows.verdicts[:, 2 * place].sum() < 11 for place in range(3))
    itself = _by_hand(range(8))
    np.testing.assert_array_equal(saved.rows.undefended, itself.argmax(axis=1))
    assert len(set(itself.argmax(axis=1))) > 1
    seen = np.concatenate([_bands(1), itself[:, None], _bands(3)], axis=1)
    ordered = np.sort(seen, axis=2)
    np.testing.assert_allclose(
        saved.rows.margins, (ordered[..., -1] - ordered[..., -2]).min(axis=1), rtol=1e-3
    )


def test_the_same_bands_are_evaluated_once_and_passes_are_counted(whole):
    report = certify_evidence(whole[1], DEFENSES)
    assert report.forward_passes["made"] == 11 * (8 + 1 + 3)
    result = report.defenses[0]
    assert (result.masks, result.masked_images) == (8, 8)
    assert result.mask_set == "8 bands of 2 columns for 1x1 patches on 8x8"
    assert result.worst_case_exact
    assert not report.defenses[3].worst_case_exact or DEFENSES[3].exact
    useful, slots = np.sum(whole[2], axis=0)
    assert useful == 11 * 12
    assert useful <= slots < 2 * useful


@pytest.mark.parametrize(("devices", "chunk"), [(1, 5)])
def test_however_many_bands_at_once_the_same(whole, tmp_path, devices, chunk):
    saved = _run(tmp_path / "evidence", devices=devices, chunk=chunk)
    for name in ("answers", "verdicts", "undefended"):
        np.testing.assert_array_equal(getattr(saved.rows, name), getattr(whole[1].rows, name))
    assert saved.fingerprint["bands_at_once"] == -(-chunk // devices)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(whole, tmp_path):
    folder, blocks = tmp_path / "evidence", []

    def killed(done, total):
        blocks.append(done)
        raise KeyboardInterrupt

    how = {"chunk": 18, "defenses": DEFENSES[:2]}
    expected = _run(tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, hooks=EvidenceHooks(progress=killed), **how)
    (folder / "block-000001.npz.sha256").write_bytes(b"half a bl")
    _run(folder, **how)
    assert _files(folder) == _files(tmp_path / "whole")
    assert len(_files(folder)) > 4
    np.testing.assert_array_equal(expected.rows.answers, whole[1].rows.answers[:, :2])


def test_local_logits_and_bands_in_one_run(tmp_path):
    local = LocalLogits(lambda p, x: x @ p, field=1, stride=1)
    params = RNG.normal(size=(2, CLASSES)).astype(np.float32)

    def model(p, images):
        return local.apply_fn(p, images).mean(axis=(1, 2))

    mixed = [DEFENSES[0], PatchGuard(THREAT, field=1, stride=1), DEFENSES[1]]
    saved = _run(
        tmp_path / "mixed", defenses=mixed, params=params, local=local, apply_fn=model, devices=1
    )
    assert saved.fingerprint["defenses"][1]["name"] == "patchguard"
    for place, one in enumerate(mixed):
        alone = _run(
            tmp_path / f"alone{place}", defenses=[one], params=params, local=local,
            apply_fn=model, devices=1,
        )  # fmt: skip
        np.testing.assert_array_equal(saved.rows.answers[:, place], alone.rows.answers[:, 0])
    assert certify_evidence(saved, mixed).forward_passes["made"] == 11 * (8 + 1 + 3)


def test_a_band_that_is_not_finite_is_never_certified_and_named(whole, tmp_path):
    def nowhere(params, images):
        logits = _model(params, images)
        shown = images.sum(axis=(1, 3)) > 0
        lost = shown[:, 3] & shown[:, 4] & ~shown[:, 0]  # one band of the eight
        return jnp.where(lost[:, None], jnp.nan, logits)

    assert whole[1].rows.verdicts[:, 0].sum() > 3
    saved = _run(tmp_path / "evidence", defenses=DEFENSES[:1], apply_fn=nowhere, keep=True)
    later = certify_evidence(saved, [dataclasses.replace(DEFENSES[0], threshold=0.2)])
    assert later.defenses[0].worst_case_accuracy == 0
    assert not saved.rows.verdicts[:, 0].any()
    assert len(certify_evidence(saved, DEFENSES[:1]).non_finite_images) == 11


def test_bands_are_halved_until_there_is_memory_for_them(monkeypatch):
    asked, said = [], []

    def program(sources, *others, places, margin_guard):
        asked.append(sources[0].at_once)
        assert margin_guard == 0.5

        def run(*arrays):
            if asked[-1] > 100:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")
            return jnp.zeros(())

        return run

    @dataclasses.dataclass
    class Accelerator:
        size = 1

        @property
        def devices(self):
            return np.array([dataclasses.make_dataclass("Device", [("platform", str)])("gpu")])

    monkeypatch.setattr(evidence_batches, "results_program", program)
    how = {"num_images": 99, "image_shape": (8, 8, 1), "preprocessing": HOW, "mesh": Accelerator()}
    work = evidence_batches.planned(
        DEFENSES, None, _model, PARAMS, dropping=None, chunk=None, known=None, **how
    )
    assert not asked
    assert (work.facts(), work.images) == ({"bands_at_once": 512}, 99 // 4)
    work = evidence_batches.fitted(
        work, DEFENSES, PARAMS, margin_guard=0.5, warn=said.append, **how
    )
    assert asked == [512, 256, 128, 64]
    assert work.facts() == {"bands_at_once": 64}
    assert work.images == 64 // 9
    assert "going on with 256" in said[0]


def test_what_cannot_be_is_refused_before_any_work(tmp_path):
    folder = tmp_path / "evidence"
    with pytest.raises(ValueError, match="do the images have the channels"):
        _run(folder, preprocessing=Preprocessing())
    with pytest.raises(ValueError, match="apply_fn: expected a model that sees bands"):
        _run(folder, apply_fn=None)
    with pytest.raises(ValueError, match="local: expected a model with local logits"):
        _run(folder, defenses=[PatchGuard(THREAT, field=1, stride=1)])
    with pytest.raises(ValueError, match="chunk: expected at least 1"):
        _run(folder, chunk=0)
    assert not folder.exists()


def test_another_run_is_refused_and_says_what_differs(whole):
    with pytest.raises(FileExistsError, match="threshold"):
        _run(whole[0], defenses=[dataclasses.replace(DEFENSES[0], threshold=0.3), *DEFENSES[1:]])
    with pytest.raises(ValueError, match="evidence is not kept"):
        certify_evidence(whole[1], [dataclasses.replace(DEFENSES[0], band=3)])


def test_a_vit_is_given_the_tokens_of_a_band_alone(tmp_path):
    """By hand: band by band, from its own tokens without padding."""
    loaded = load_model("vit_digits")
    model, params, how = loaded.model, loaded.params, loaded.preprocessing
    # One column of tokens or two; the image itself has four.
    defense = SmoothedViT(THREAT, band=2, stride=3)
    test_set = data.from_arrays(IMAGES, LABELS, data_config=model.data_config, num_outputs=10)
    saved = evaluate_evidence(
        test_set, None, params, [defense], tmp_path / "run", apply_fn=model.apply_fn,
        dropping=model.dropping, preprocessing=how, mesh=device_mesh(jax.local_devices()[:1]),
        chunk=3,
    )  # fmt: skip
    assert saved.fingerprint["kept_tokens"] == [5, 9, 17]
    report = certify_evidence(saved, [defense])
    assert any("tokens" in notice.text() for notice in report.notices)
    (source,) = sources_of([defense], None, model.apply_fn, dropping=model.dropping)
    evidence = jax.jit(lambda weights, images: source.evidence(weights, images, how))(
        params, jnp.asarray(IMAGES)
    )
    seen_of = jax.jit(
        jax.vmap(lambda image, hidden: model_input(image, hidden, how), in_axes=(0, None))
    )
    apply_fn, logits = jax.jit(model.dropping.apply_fn, static_argnames="padded"), []
    kept = kept_tokens(defense.masks, token=2)
    assert {int((row >= 0).sum()) for row in kept} == {5, 9}
    for boxes, row in zip(defense.masks.boxes, kept, strict=True):
        seen = seen_of(IMAGES, boxes)
        tokens = np.tile(row[row >= 0], (len(IMAGES), 1))
        logits.append(apply_fn(params, seen, tokens, padded=False))
    logits = np.stack(logits, axis=1)
    np.testing.assert_allclose(evidence.parts, logits, rtol=1e-4, atol=1e-5)
    from_logits = jax.jit(defense.results)(jnp.asarray(logits), jnp.asarray(LABELS))
    np.testing.assert_array_equal(saved.rows.answers[:, 0], from_logits.answer)
    np.testing.assert_array_equal(saved.rows.verdicts[:, 0], from_logits.worst_case)
    pixels = (IMAGES / 255 - how.mean) / np.asarray(how.std)
    itself = np.asarray(jax.jit(model.apply_fn)(params, pixels))
    np.testing.assert_array_equal(saved.rows.undefended, itself.argmax(axis=1))
    ordered = np.sort(np.concatenate([logits, itself[:, None]], axis=1), axis=2)
    leads = (ordered[..., -1] - ordered[..., -2]).min(axis=1)
    np.testing.assert_allclose(saved.rows.margins, leads, rtol=1e-3, atol=1e-5)


def test_kept_logits_of_bands_are_of_each_set_of_bands_once(tmp_path, whole):
    folder = tmp_path / "evidence"
    saved = _run(folder, keep=True)
    assert saved.about["kept"]["of"] == [0, 1, 0, 0]
    np.testing.assert_array_equal(saved.rows.verdicts, whole[1].rows.verdicts)
    dense, sparse = (cm.kept_evidence(folder, number) for number in (3, 1))
    np.testing.assert_allclose(dense.evidence, _bands(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sparse.evidence, _bands(3), rtol=1e-4, atol=1e-5)
    votes = smoothing.threshold_votes(dense.evidence, 0.35)
    (met,) = DEFENSES[0].affected
    robust = smoothing.worst_case(votes, dense.labels, met)
    np.testing.assert_array_equal(robust, saved.rows.verdicts[:, 0])
    # A defense of another threshold and another patch, on the same bands.
    other = DerandomizedSmoothing(Threat.of(8, 2), band=2, threshold=0.5)
    verdicts = certify_evidence(saved, [other]).defenses[0].per_image["worst_case"]
    votes = _softmax(_bands(1)) >= 0.5
    np.testing.assert_array_equal(verdicts, _attacked(votes, _met(1, 2)))
    assert 0 < verdicts.sum() < 11
    with pytest.raises(ValueError, match="of other cells or bands"):
        certify_evidence(saved, [DerandomizedSmoothing(THREAT, band=3)])


@pytest.mark.parametrize(("count", "blocks"), [(1, 1), (5, 3), (8, 4), (11, 6)])
def test_few_images_are_shared_out_too(tmp_path, count, blocks):
    """In four blocks at least where two devices have an image each: a job may do each of them."""
    test_set = data.from_arrays(
        IMAGES[:count], LABELS[:count], data_config=models.create("vit_digits").data_config,
        num_outputs=CLASSES,
    )  # fmt: skip
    evaluate_evidence(
        test_set, None, PARAMS, DEFENSES[1:2], tmp_path, apply_fn=_model, preprocessing=HOW,
        mesh=device_mesh(jax.local_devices()[:2]),
    )  # fmt: skip
    assert len(list(tmp_path.glob("block-*"))) == blocks
