"""Runs on evidence: what is kept, after whatever happens to the process or the files."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import data, models
from certmask_jax.certification import evidence_planning
from certmask_jax.certification.evidence_run import evaluate_evidence
from certmask_jax.certification.evidence_verdicts import certify_evidence
from certmask_jax.certification.report.notes import notices_of
from certmask_jax.certification.report.notices import MarginGuard
from certmask_jax.certification.run_hooks import EvidenceHooks
from certmask_jax.defenses import clipped_bagnet, patchguard
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.files import disk_room
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.threats import Threat
from certmask_jax.tables import evidence_store
from certmask_jax.tables.evidence_store import EvidenceStore

THREAT = Threat.of(8, 1)
HOW = {"field": 3, "stride": 1}
DEFENSES = [
    PatchGuard(THREAT, **HOW),
    PatchGuardDetection(THREAT, **HOW, tau=0.4),
    ClippedBagNet(THREAT, **HOW, clip=3),
]
CLASSES = 3


def _local_logits(params, images):
    """Linear in each field of 3 pixels."""
    fields = [images[:, i : i + 6, j : j + 6, 0] for i in range(3) for j in range(3)]
    return jnp.stack(fields, axis=-1) @ params["weights"] + params["bias"][None, None, None]


LOCAL = LocalLogits(_local_logits, field=3, stride=1)
_RNG = np.random.default_rng(3)
PARAMS = {
    "weights": _RNG.normal(size=(9, CLASSES)).astype(np.float32),
    "bias": np.array([1, 0, 0], np.float32),
}
IMAGES = _RNG.integers(0, 256, (13, 8, 8, 1), np.uint8)


def _evidence():
    return np.asarray(_local_logits(PARAMS, jnp.asarray(IMAGES / 255, jnp.float32)))


LABELS = np.array(patchguard.robust_masking_rule(_evidence(), window=3))
LABELS[5] = (LABELS[5] + 1) % CLASSES


def _run(folder, *, params=PARAMS, defenses=DEFENSES, spoilt=None, local=LOCAL, **more):
    test_set = data.from_arrays(
        IMAGES, LABELS, data_config=models.create("vit_digits").data_config, num_outputs=CLASSES
    )
    test_set = test_set if spoilt is None else spoilt(test_set)
    mesh = device_mesh(jax.local_devices()[:2])
    how = {"preprocessing": Preprocessing(), "mesh": mesh, "chunk": 3, **more}
    return evaluate_evidence(test_set, local, params, defenses, folder, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "evidence"
    return folder, _run(folder)


def _files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("count", "seconds", "measured_on"),
    # Of blocks of 4, 4, 4 and 1 images the first compiles; one that is alone is evaluated again.
    [(13, 3 / 9, 9), (4, 1 / 4, 4)],
)
def test_what_an_image_takes_is_measured_behind_the_first_block(count, seconds, measured_on):
    test_set = data.from_arrays(
        IMAGES[:count], LABELS[:count], data_config=models.create("vit_digits").data_config,
        num_outputs=CLASSES,
    )  # fmt: skip
    estimate = evidence_planning.seconds_an_image(
        test_set, LOCAL, PARAMS, DEFENSES, preprocessing=Preprocessing(), chunk=3,
        mesh=device_mesh(jax.local_devices()[:2]), clock=itertools.count().__next__,
    )  # fmt: skip
    assert estimate == (pytest.approx(seconds), measured_on)


def test_what_is_kept_is_what_the_pure_functions_say(whole):
    saved = whole[1]
    evidence = _evidence()
    np.testing.assert_array_equal(saved.rows.labels, LABELS)
    np.testing.assert_array_equal(
        saved.rows.answers[:, 0], patchguard.robust_masking_rule(evidence, window=3)
    )
    np.testing.assert_array_equal(
        saved.rows.answers[:, 1], patchguard.detection_rule(evidence, window=3, tau=0.4)
    )
    proved = patchguard.robust_masking_worst_case(evidence, LABELS, window=3)
    assert 0 < proved.sum() < 13
    np.testing.assert_array_equal(saved.rows.verdicts[:, 0], proved)
    np.testing.assert_array_equal(
        saved.rows.verdicts[:, 2], patchguard.detection_worst_case(evidence, LABELS, window=3,
                                                                   tau=0.4)
    )  # fmt: skip
    means = np.sort(evidence.mean(axis=(1, 2)), axis=1)
    np.testing.assert_allclose(saved.rows.margins, means[:, -1] - means[:, -2], rtol=1e-4)
    report = certify_evidence(saved, DEFENSES[:1])
    assert report.defenses[0].worst_case_accuracy == proved.mean()
    assert report.defenses[0].clean_accuracy == 12 / 13
    assert report.defenses[0].mask_set == "windows of 3x3 of 6x6 cells for 1x1 patches on 8x8"
    assert report.forward_passes["made"] == 13


def test_the_result_says_what_evidence_is_rounded_to(whole):
    roundings = [
        one.options["quantised_evidence"] for one in certify_evidence(whole[1], DEFENSES).defenses
    ]
    assert roundings == [defense.quantisation for defense in DEFENSES]
    words = re.compile(r"whole numbers of 2\^-\d+ from -?[\d,]+ to [\d,]+")
    assert all(map(words.fullmatch, roundings))
    # Those are no facts: a run that was begun before it said so goes on.
    assert all("quantised_evidence" not in defense.facts for defense in DEFENSES)


def test_verdicts_at_places_are_kept_small(whole):
    """Eight in a byte, and two bytes a lead where there is one."""
    saved = whole[1]
    evidence = _evidence()
    assert saved.about["places"] == [[16, 16], [16, 0], [16, 16]]
    assert (saved.rows.holds.shape, saved.rows.leads.shape) == ((13, 6), (13, 32))
    for number, defense in enumerate(DEFENSES):
        at = defense.at_places(evidence, LABELS)
        holds, leads = saved.at_places(number)
        np.testing.assert_array_equal(holds, at.holds)
        np.testing.assert_array_equal(holds.all(axis=1), saved.rows.verdicts[:, 2 * number])
        assert (leads is None) == (at.leads is None)
        if leads is not None:
            np.testing.assert_allclose(leads, at.leads, rtol=1e-3, atol=1e-5)
            np.testing.assert_array_equal(leads > 0, holds)


def test_a_run_of_before_places_were_kept_is_read_and_goes_on(whole, tmp_path):
    """Its record names none and its blocks have none; what is added then has none either."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    record = json.loads((whole[0] / evidence_store.RECORD).read_text())
    del record["about"]["places"]
    (folder / evidence_store.RECORD).write_text(json.dumps(record))
    for file in sorted(whole[0].glob("block-*"))[1:]:
        with np.load(io.BytesIO(file.read_bytes().partition(b"\n")[2])) as there:
            held = io.BytesIO()
            np.savez(held, **{n: there[n] for n in there.files if n not in ("holds", "leads")})
        digest = hashlib.sha256(held.getvalue()).hexdigest().encode() + b"\n"
        (folder / file.name).write_bytes(digest + held.getvalue())
    told = []
    saved = _run(folder, hooks=EvidenceHooks(progress=lambda *done: told.append(done)))
    assert len(told) == 1
    assert saved.at_places(0) is None
    assert saved.rows.holds.shape == (13, 0)
    np.testing.assert_array_equal(saved.rows.verdicts, whole[1].rows.verdicts)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(whole, tmp_path, after):
    folder, blocks = tmp_path / "evidence", []

    def killed(done, total):
        blocks.append(done)
        if len(blocks) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(folder, hooks=EvidenceHooks(progress=killed))
    (folder / "block-000002.npz.sha256.unfinished").write_bytes(b"half a bl")
    before = _files(folder)
    assert _run(folder, hooks=EvidenceHooks(stop=lambda: True)) is None
    assert _files(folder) == before
    told = []
    saved = _run(folder, hooks=EvidenceHooks(progress=lambda done, total: told.append(done)))
    assert len(told) == 4 - (after + 1)
    rubbish = folder / "block-000002.npz.sha256.unfinished"
    rubbish.unlink(missing_ok=True)
    np.testing.assert_equal(saved.rows._asdict(), whole[1].rows._asdict())
    there, here = _files(whole[0]), _files(folder)
    assert {n: c for n, c in here.items() if n.startswith("block")} == {
        n: c for n, c in there.items() if n.startswith("block")
    }


def test_one_process_writes_at_a_time(whole, tmp_path):
    folder, refused = tmp_path / "evidence", []

    def another(done, total):
        with pytest.raises(FileExistsError, match="another process is writing this evidence; wait"):
            _run(folder)
        refused.append(done)

    saved = _run(folder, hooks=EvidenceHooks(progress=another))
    assert refused == [4, 8, 12, 13]
    np.testing.assert_equal(saved.rows._asdict(), whole[1].rows._asdict())
    assert _run(folder) is not None


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_a_damaged_block_is_computed_again_and_said_so(whole, tmp_path, how):
    folder = tmp_path / "evidence"
    _run(folder)
    block = folder / "block-000001.npz.sha256"
    good = block.read_bytes()
    at = len(good) // 2
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    block.write_bytes({"flipped": flipped, "cut": good[:at], "empty": b""}[how])
    with pytest.raises(ValueError, match=r"1 of 4 blocks .*damaged"):
        evidence_store.load_evidence(folder)
    said, told = [], []
    _run(folder, hooks=EvidenceHooks(warn=said.append, progress=lambda *done: told.append(done)))
    assert "damaged" in said[0]
    assert len(told) == 1
    assert block.read_bytes() == good


def test_evidence_that_is_not_finite_is_never_certified_and_named(tmp_path):
    params = {**PARAMS, "bias": np.array([np.inf, 0, 0], np.float32)}
    saved = _run(tmp_path / "evidence", params=params, defenses=DEFENSES[:1], keep=True)
    later = certify_evidence(saved, [dataclasses.replace(DEFENSES[0], clip=3)]).defenses[0]
    assert later.worst_case_accuracy == 0
    assert later.clean_accuracy > 0  # the clip makes something of infinity, which proves nothing
    holds, leads = saved.at_places(0)
    assert not holds.any()
    assert np.isnan(leads).all()
    assert not saved.rows.verdicts.any()  # nor as published
    assert not any(later.conditions.values())
    report = certify_evidence(saved, DEFENSES[:1])
    assert len(report.non_finite_images) == 13
    assert report.undefended_accuracy == 0


def test_another_run_is_refused_and_says_what_differs(whole):
    with pytest.raises(FileExistsError, match="weights_sha256"):
        _run(whole[0], params={**PARAMS, "bias": np.zeros(CLASSES, np.float32)})
    other = dataclasses.replace(DEFENSES[1], tau=0.3)
    with pytest.raises(FileExistsError, match="tau"):
        _run(whole[0], defenses=[DEFENSES[0], other, DEFENSES[2]])
    with pytest.raises(ValueError, match="evidence is not kept"):
        certify_evidence(whole[1], [other])


def test_cells_that_see_other_pixels_than_they_say_are_found_before_any_work(tmp_path):
    test_set = data.from_arrays(
        IMAGES, LABELS, data_config=models.create("vit_digits").data_config, num_outputs=CLASSES
    )
    how = {"preprocessing": Preprocessing()}
    folder = tmp_path / "evidence"
    with pytest.raises(ValueError, match=r"cell \(0, 0\) .*but it also sees \(7, 7\)"):
        evaluate_evidence(test_set, LocalLogits(_sees_more, 3, 1), PARAMS, DEFENSES, folder, **how)
    with pytest.raises(ValueError, match="expected the field 2 and stride 1"):
        evaluate_evidence(test_set, LocalLogits(_sees_more, 2, 1), PARAMS, DEFENSES, folder, **how)
    with pytest.raises(ValueError, match="expected seen_size"):
        evaluate_evidence(
            test_set, LOCAL, PARAMS, DEFENSES, folder, preprocessing=Preprocessing(resize_to=16)
        )
    assert not folder.exists()


class _Listed:
    """A test set whose labels are known before its images are read; the last is no class."""

    def __init__(self, test_set):
        self.test_set = test_set
        ids = tuple(map(str, range(len(test_set))))
        labels = np.array([*LABELS[:-1], CLASSES])
        self.listing = types.SimpleNamespace(ids=ids, labels=labels, sizes=np.zeros(13, np.int64))

    def __len__(self):
        return len(self.test_set)

    def read(self, start, stop):
        return self.test_set.read(start, stop)


def _sees_more(params, images):
    return _local_logits(params, images) + images[:, 7:, 7:, :1]  # a pixel for all cells


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"share": (0, 5)}, "at most 4 shares, as the evidence has 4 blocks of images, got 5"),
        ({"share": (0, 999)}, r"got 999; \d+ images cannot have more than \d+ shares$"),
        ({"share": (2, 2)}, r"expected \(i, n\) with 0 <= i < n"),
        ({"chunk": 0}, "chunk: expected at least 1"),
        ({"spoilt": _Listed}, r"labels: expected values in 0..2 .*got 3 \(image 12\)"),
        ({"margin_guard": -1.0}, "margin guard: expected"),
        ({"keep": True}, "expected .* free"),
        ({"folder": "file/evidence"}, "of .*file: it is a file"),
        ({"folder": "whole", "defenses": DEFENSES[:1]}, "this same run, but .*defenses"),
        ({}, r"it also sees \(7, 7\)"),  # the first that is evaluated
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_evaluated(
    whole, tmp_path, monkeypatch, how, says
):
    """Of a model that is refused by the first thing that is."""
    if "keep" in how:
        monkeypatch.setattr(disk_room, "SPARE_BYTES", 1 << 60)
    (tmp_path / "file").write_text("a file")
    how = dict(how)
    given = how.pop("folder", "evidence")
    folder = whole[0] if given == "whole" else tmp_path / given
    before = _files(whole[0])
    with pytest.raises((ValueError, OSError), match=says):
        _run(folder, local=LocalLogits(_sees_more, 3, 1), **how)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert _files(whole[0]) == before


OTHERS = [
    PatchGuard(Threat.of(8, 3), **HOW, clip=1, threshold=0.3),
    ClippedBagNet(Threat.of(8, 2), **HOW, clip=2),
]


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keeping") / "evidence"
    return folder, _run(folder, keep=True)


def test_kept_evidence_is_what_the_model_says_and_gives_the_verdicts_of_the_run(keeping, whole):
    folder, saved = keeping
    kept = cm.kept_evidence(folder.parent)  # the folder of the run
    assert (kept.evidence.shape, kept.evidence.dtype) == ((13, 6, 6, CLASSES), np.float32)
    np.testing.assert_allclose(kept.evidence, _evidence(), rtol=1e-5, atol=1e-6)
    assert kept.ids == saved.rows.rows.ids
    np.testing.assert_array_equal(kept.labels, LABELS)
    answers = patchguard.robust_masking_rule(kept.evidence, window=3)
    np.testing.assert_array_equal(answers, saved.rows.answers[:, 0])
    proved = patchguard.robust_masking_worst_case(kept.evidence, kept.labels, window=3)
    np.testing.assert_array_equal(proved, saved.rows.verdicts[:, 0])
    proved = clipped_bagnet.worst_case(kept.evidence, kept.labels, window=3, clip=3)
    np.testing.assert_array_equal(proved, saved.rows.verdicts[:, 4])
    # What is kept beside them changes nothing of answers and verdicts.
    np.testing.assert_array_equal(saved.rows.verdicts, whole[1].rows.verdicts)
    np.testing.assert_array_equal(saved.rows.answers, whole[1].rows.answers)
    assert cm.kept_evidence(folder, 2).evidence.tobytes() == kept.evidence.tobytes()
    assert len(list(folder.glob("kept-*"))) == 4  # of one source, however many defenses
    with pytest.raises(ValueError, match="number: expected one of the 3 defenses"):
        cm.kept_evidence(folder, 3)
    with pytest.raises(ValueError, match="the run was not asked to keep any"):
        cm.kept_evidence(whole[0])


def test_other_defenses_on_kept_evidence_are_those_of_a_run_with_them(keeping, tmp_path):
    again = certify_evidence(_run(tmp_path / "evidence", defenses=OTHERS), OTHERS)
    from_kept = certify_evidence(keeping[1], [*OTHERS, DEFENSES[0]])
    for one, other in zip(from_kept.defenses, again.defenses, strict=False):
        assert one.conditions == other.conditions
        for name in ("answer", "worst_case", *one.conditions):
            np.testing.assert_array_equal(one.per_image[name], other.per_image[name])
    assert [round(13 * one.worst_case_accuracy) for one in from_kept.defenses] == [2, 10, 12]
    with pytest.raises(ValueError, match="evidence is of other cells or bands"):
        certify_evidence(keeping[1], [PatchGuard(THREAT, field=2, stride=2)])


def test_a_margin_guard_is_of_its_run_or_of_evidence_that_was_kept(keeping, whole, tmp_path):
    folder, guard = tmp_path / "evidence", 3.0
    saved = _run(folder, margin_guard=guard)
    kept = cm.kept_evidence(keeping[0])
    within = [
        np.asarray(one.guarded(jnp.asarray(kept.evidence), jnp.asarray(LABELS), margin_guard=guard))
        for one in DEFENSES
    ]
    plain = certify_evidence(whole[1], DEFENSES)
    assert sum(map(np.sum, within)) < sum(d.per_image["worst_case"].sum() for d in plain.defenses)
    for of in (saved, keeping[1]):
        guarded = certify_evidence(of, DEFENSES, margin_guard=guard)
        assert guarded.margin_guard == guard
        for one, other, held in zip(guarded.defenses, plain.defenses, within, strict=True):
            np.testing.assert_array_equal(one.per_image["worst_case"], held)
            np.testing.assert_array_equal(one.per_image["certificate"], held)
            assert (one.conditions, one.clean_accuracy) == (other.conditions, other.clean_accuracy)
        without = certify_evidence(of, DEFENSES)
        assert without.margin_guard == 0
        for one, other in zip(without.defenses, plain.defenses, strict=True):
            np.testing.assert_array_equal(
                one.per_image["worst_case"], other.per_image["worst_case"]
            )
    assert MarginGuard(guard, of_tables=False, of_evidence=True) in notices_of(guarded)
    other = certify_evidence(
        keeping[1], [dataclasses.replace(DEFENSES[0], clip=3)], margin_guard=30
    )
    assert not other.defenses[0].worst_case_accuracy
    for of, words in ((saved, "0 or 3, which"), (whole[1], "expected 0, which the run")):
        with pytest.raises(ValueError, match=f"{words}.*got 0.1; evidence is not kept"):
            certify_evidence(of, DEFENSES, margin_guard=0.1)
    before = _files(folder)
    with pytest.raises(FileExistsError, match=r"margin_guard is 3\.0 there, 0\.1 here"):
        _run(folder, margin_guard=0.1)
    with pytest.raises(FileExistsError, match=r"margin_guard is 3\.0 there, None here"):
        _run(folder)
    assert _files(folder) == before


class Another(PatchGuard):
    """Has no ``guarded`` of its own."""


def test_a_class_that_says_nothing_within_a_guard_is_refused_one(whole, tmp_path):
    with pytest.raises(ValueError, match="patchguard: expected no margin guard, as the class Ano"):
        _run(tmp_path / "evidence", defenses=[Another(THREAT, **HOW)], margin_guard=0.1)
    assert not (tmp_path / "evidence").exists()
    with pytest.raises(ValueError, match="margin guard: expected a number of at least 0, got -1"):
        certify_evidence(whole[1], DEFENSES, margin_guard=-1)


def test_a_killed_run_that_keeps_evidence_goes_on_to_the_same_bits(keeping, tmp_path, monkeypatch):
    """It is killed between the evidence of a block and the block."""
    folder, real = tmp_path / "evidence", EvidenceStore.write

    def killed(self, number, block):
        if number == 1:
            raise KeyboardInterrupt
        real(self, number, block)

    monkeypatch.setattr(EvidenceStore, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, keep=True)
    monkeypatch.undo()
    assert (folder / "kept-0-000001.npy.sha256").exists()
    with pytest.raises(ValueError, match="3 of 4 blocks are missing"):
        cm.kept_evidence(folder)
    _run(folder, keep=True)
    there, here = _files(keeping[0]), _files(folder)
    assert there.keys() == here.keys()
    assert {n for n in there if there[n] != here[n]} <= {evidence_store.RECORD}


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_damaged_evidence_is_computed_again_and_said_so(keeping, tmp_path, how):
    folder = tmp_path / "evidence"
    shutil.copytree(keeping[0], folder)
    file = folder / "kept-0-000002.npy.sha256"
    good = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    words = {"flipped": "damaged, another checksum", "gone": "missing"}[how]
    with pytest.raises(ValueError, match=f"kept-0-000002.*{words}.*give the command of the run"):
        cm.kept_evidence(folder)
    said, told = [], []
    hooks = EvidenceHooks(warn=said.append, progress=lambda done, total: told.append(done))
    _run(folder, keep=True, hooks=hooks)
    assert words in said[0]
    assert len(told) == 1
    assert file.read_bytes() == good


def test_a_disk_without_room_for_evidence_is_refused_before_any_work(
    keeping, whole, tmp_path, monkeypatch
):
    needed = 13 * 36 * CLASSES * 4 + (1 << 20) + 4 * 2 * 4096
    free = [needed]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=free[0]))
    assert _run(tmp_path / "fits", keep=True, hooks=EvidenceHooks(stop=lambda: True)) is None
    free[0] -= 1
    with pytest.raises(OSError, match=r"1\.1 MB of free disk for evidence of 13 images, got 1\.1"):
        _run(tmp_path / "evidence", keep=True)
    assert not (tmp_path / "evidence").exists()
    free[0] = 0
    assert _run(keeping[0], keep=True) is not None  # it is all there
    free[0] = needed
    with pytest.raises(FileExistsError, match="keep_evidence is None there, True here"):
        _run(whole[0], keep=True)


def test_images_that_are_left_out_are_not_in_kept_evidence(keeping, tmp_path):
    @dataclasses.dataclass
    class Spoilt:
        """A whole block and one image more cannot be read."""

        test_set: object

        def __len__(self):
            return len(self.test_set)

        def read(self, start, stop):
            for row in range(start, stop):
                if row in (1, 4, 5, 6, 7):
                    raise UnreadableImage(str(row), "broken")
            return self.test_set.read(start, stop)

    how = {"keep": True, "spoilt": Spoilt, "skip_unreadable": True}
    saved = _run(tmp_path / "evidence", **how)
    assert EvidenceStore(tmp_path, 13, 4).spans()[1] == (4, 8)
    assert sorted(saved.rows.rows.left_out) == [1, 4, 5, 6, 7]
    _run(tmp_path / "evidence", **how, hooks=EvidenceHooks(progress=lambda *_: pytest.fail("new")))
    kept, every = (cm.kept_evidence(folder) for folder in (tmp_path / "evidence", keeping[0]))
    rows = np.delete(np.arange(13), [1, 4, 5, 6, 7])
    assert kept.ids == tuple(every.ids[row] for row in rows)
    np.testing.assert_array_equal(kept.evidence, every.evidence[rows])


def test_images_of_another_size_are_refused_where_they_come(tmp_path):
    class Larger(_Listed):
        def read(self, start, stop):
            batch = self.test_set.read(start, stop)
            return batch if start < 8 else batch._replace(images=np.ones((4, 9, 9, 1), np.uint8))

    def spoilt(test_set):
        larger = Larger(test_set)
        larger.listing = None
        return larger

    with pytest.raises(ValueError, match=r"images: expected shape \[T, 8, 8, channels\]"):
        _run(tmp_path / "evidence", spoilt=spoilt)
    assert evidence_store.images_done(tmp_path / "evidence") == (8, 13)
