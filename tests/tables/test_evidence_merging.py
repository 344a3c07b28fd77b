"""Shares of a run on evidence: put together they are the run; what is missing is named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax import data, models
from certmask_jax.certification.evidence_run import evaluate_evidence
from certmask_jax.certification.run_hooks import EvidenceHooks
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.files.folder_locks import FolderLock
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.threats import Threat
from certmask_jax.tables import evidence_merging, evidence_store

DEFENSES = [
    PatchGuard(Threat.of(8, 1), field=2, stride=1),
    ClippedBagNet(Threat.of(8, 2), field=2, stride=1, clip=2),
]
BLOCKS = [(0, 2), (2, 4), (4, 6), (6, 7)]
RNG = np.random.default_rng(8)
IMAGES = RNG.integers(0, 250, (7, 8, 8, 1), np.uint8)
IMAGES[1, 2, 2] = 255
LABELS = RNG.integers(0, 2, 7).astype(np.int32)
PARAMS = RNG.normal(size=(4, 2)).astype(np.float32)


def _local_logits(params, images):
    """Linear in each field of 2 pixels; of a bright first pixel not finite."""
    fields = [images[:, i : i + 7, j : j + 7, 0] for i in (0, 1) for j in (0, 1)]
    logits = jnp.stack(fields, axis=-1) @ params
    return jnp.where(fields[0][..., None] > 0.99, jnp.nan, logits)


LOCAL = LocalLogits(_local_logits, field=2, stride=1)


def _run(folder, share=(0, 1), *, params=PARAMS, defenses=DEFENSES, **more):
    told = []
    test_set = data.from_arrays(
        IMAGES, LABELS, data_config=models.create("vit_digits").data_config, num_outputs=2
    )
    more = {"hooks": EvidenceHooks(progress=lambda *done: told.append(done)), **more}
    about = {} if share == (0, 1) else {"shard": f"{share[0]}/{share[1]}"}
    saved = evaluate_evidence(
        test_set, LOCAL, params, defenses, folder, preprocessing=Preprocessing(), chunk=2,
        mesh=device_mesh(jax.local_devices()[:1]), share=share, keep=True,
        provenance={"mine": "kept", **about}, **more,
    )  # fmt: skip
    assert (saved is None) == (share[1] > 1)
    return folder, told


def _shares(folder, parts):
    return [_run(folder / f"share {i}", (i, parts))[0] for i in range(parts)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run alone, and two shares of it; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    return _run(folder / "alone")[0], _shares(folder, 2)


@pytest.fixture
def copies(made, tmp_path):
    """The shares, to be changed."""
    return [shutil.copytree(share, tmp_path / share.name) for share in made[1]]


def _content(folder):
    """All but the facts of the session that made it."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    record = json.loads(files.pop(evidence_store.RECORD))
    del record["about"]["provenance"]
    return files, record


@pytest.mark.parametrize("parts", [3, 4])
def test_shares_in_any_order_are_one_run(made, tmp_path, parts):
    folders = []
    for part in range(parts):
        folder, told = _run(tmp_path / f"{part}", (part, parts))
        own = BLOCKS[part::parts]
        done = np.cumsum([stop - start for start, stop in own]).tolist()
        assert told == [(count, done[-1]) for count in done]  # of its images alone
        folders.append(folder)
    warned = []
    evidence_merging.merge(folders[::-1], tmp_path / "merged", warn=warned.append)
    assert warned == []
    assert _content(tmp_path / "merged") == _content(made[0])
    provenance = evidence_store.recorded(tmp_path / "merged")["about"]["provenance"]
    assert provenance["mine"] == "kept"
    assert provenance["shares"] == parts
    assert "shard" not in provenance
    saved = evidence_store.load_evidence(tmp_path / "merged")
    assert np.isnan(saved.rows.margins).tolist() == [False, True, *5 * [False]]
    assert evidence_merging.is_complete(tmp_path / "merged")


@pytest.mark.parametrize(
    ("given", "words"),
    [([0], "images 2 to 3, 6 to 6 are in none; .*share 1/2$"), ([1], "0 to 1, 4 to 5 .*0/2$")],
)
def test_what_is_missing_is_named_and_nothing_is_written(made, tmp_path, given, words):
    shares = [made[1][i] for i in given]
    for done in (evidence_merging.check, lambda some: evidence_merging.merge(some, tmp_path / "m")):
        with pytest.raises(FileNotFoundError, match=words):
            done(shares)
    assert not (tmp_path / "m").exists()
    assert not evidence_merging.is_complete(shares[0])


@pytest.mark.parametrize("name", ["block-000003.npz.sha256", "kept-0-000003.npy.sha256"])
def test_a_block_that_lacks_a_file_is_missing_and_the_share_goes_on(made, copies, tmp_path, name):
    (copies[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match="images 6 to 6 are in none"):
        evidence_merging.merge(copies, tmp_path / "merged")
    assert _run(copies[1], (1, 2))[1] == [(3, 3)]
    evidence_merging.merge(copies, tmp_path / "merged")
    assert _content(tmp_path / "merged") == _content(made[0])


@pytest.mark.parametrize("name", ["block-000001.npz.sha256", "kept-0-000001.npy.sha256"])
def test_damage_is_named_and_mended_by_the_share(made, copies, tmp_path, name):
    content = bytearray((copies[1] / name).read_bytes())
    content[-9] ^= 4
    (copies[1] / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(copies[1] / name))}: damaged.* mend it"):
        evidence_merging.merge(copies, tmp_path / "merged")
    _run(copies[1], (1, 2))
    evidence_merging.merge(copies, tmp_path / "merged")  # goes on with what it had
    assert _content(tmp_path / "merged") == _content(made[0])


def test_some_shares_begin_a_run_that_goes_on(made, tmp_path):
    evidence_merging.merge([made[1][1]], tmp_path / "merged", partial=True)
    assert evidence_store.images_done(tmp_path / "merged") == (3, 7)
    assert _run(tmp_path / "merged")[1] == [(5, 7), (7, 7)]
    assert _content(tmp_path / "merged") == _content(made[0])


def test_a_doubled_share_is_warned_of_and_must_be_the_same(made, copies, tmp_path):
    warned = []
    shares = [*made[1], copies[1]]
    evidence_merging.merge(shares, tmp_path / "merged", warn=warned.append)
    assert [line.split(" are in ")[0] for line in warned] == ["images 2 to 3, 6 to 6"]
    record = evidence_store.recorded(copies[1])
    store = evidence_store.store_of(copies[1], record)
    block = store.read(1, print)
    store.write(1, block._replace(answers=block.answers + 1))
    with pytest.raises(ValueError, match=r"2 to 3 are in .*share 1 and in .*share 1, and differ"):
        evidence_merging.merge(shares, tmp_path / "other")
    with pytest.raises(ValueError, match=r"in .*merged what .* images 2 to 3 in .*share 1 differ"):
        evidence_merging.merge([made[1][0], copies[1]], tmp_path / "merged")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"params": PARAMS * 2}, "weights_sha256 is"),
        ({"defenses": [DEFENSES[0], dataclasses.replace(DEFENSES[1], clip=1)]}, "clip"),
    ],
)
def test_a_share_of_another_run_is_refused_by_what_differs(made, tmp_path, change, named):
    other, _ = _run(tmp_path / "other", (1, 2), **change)
    with pytest.raises(ValueError, match="expected a share of the same run") as caught:
        evidence_merging.merge([made[1][0], other], tmp_path / "merged")
    assert named in str(caught.value)
    assert not (tmp_path / "merged").exists()
    with pytest.raises(FileExistsError, match="expected the evidence of this same run"):
        evidence_merging.merge(made[1], other)


def test_a_run_that_another_process_writes_is_let_be(made, tmp_path):
    with (
        FolderLock(tmp_path, "this evidence"),
        pytest.raises(FileExistsError, match="another process is writing this evidence"),
    ):
        evidence_merging.merge(made[1], tmp_path)
    assert list(tmp_path.iterdir()) == []
    evidence_merging.merge(made[1], tmp_path)
    assert _content(tmp_path) == _content(made[0])


def test_what_is_no_share_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match="at least 1 share, got none"):
        evidence_merging.merge([], tmp_path / "merged")
    with pytest.raises(FileNotFoundError, match="expected a folder with a share of evidence"):
        evidence_merging.merge([tmp_path / "nowhere"], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"at most 4 shares, as the evidence has 4 blocks .*got 5"):
        _run(tmp_path / "t", (0, 5))
    with pytest.raises(ValueError, match=r"share: expected \(i, n\)"):
        _run(tmp_path / "t", (2, 2))
    assert not (tmp_path / "t").exists()
