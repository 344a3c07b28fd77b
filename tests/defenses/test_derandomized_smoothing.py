"""Votes of bands: golden results, constructed attacks on random tiny cases, counterexamples."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from many_cases import cases

from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.defenses import vote_gaps
from certmask_jax.masks.bands import (
    affected_parts,
    blocks,
    column_bands,
    row_and_column_bands,
    row_bands,
)

BUILD = {
    "column": column_bands,
    "row": row_bands,
    "both": row_and_column_bands,
    "block": blocks,
}
MODES = {"col": "column", "both": "both", "block": "block"}


def _golden(shared, name):
    return np.load(shared / "golden" / "small_fields" / f"{name}.npz")


def _counterexample(shared, name):
    path = shared / "golden" / "small_fields" / "counterexamples.json"
    return next(one for one in json.loads(path.read_text()) if one["name"] == name)


def _met(width, patch, band, stride):
    """``bool[locations, bands]`` by the definition, column by column."""
    starts = range(0, width, stride)
    return np.array(
        [
            [
                bool({(p + i) % width for i in range(band)} & set(range(at, at + patch)))
                for p in starts
            ]
            for at in range(width - patch + 1)
        ]
    )


@pytest.mark.parametrize(
    ("name", "logits", "mode", "size"),
    [
        ("ds_column", "band_logits", "column", 32),
        ("ds_block", "block_logits", "block", 10),
        ("cifar_ds_column", "band_logits", "column", 32),
    ],
)
def test_golden_of_levine_and_feizi(shared, name, logits, mode, size):
    golden = _golden(shared, name)
    labels = golden["label"]
    for case in [key[:2] for key in golden if key.endswith("_patch")]:
        patch = int(golden[f"{case}_patch"])
        band = next(
            (int(golden[f"{case}_{n}"]) for n in ("band", "block") if f"{case}_{n}" in golden), 4
        )
        if f"{case}_threshold" in golden:
            votes = smoothing.threshold_votes(golden[logits], float(golden[f"{case}_threshold"]))
        else:
            votes = smoothing.top_one_votes(golden[logits])
        counts, answers = smoothing.vote_counts(votes), smoothing.rule(votes)
        np.testing.assert_array_equal(answers, golden[f"{case}_peer_pred"])
        reach = vote_gaps.published_reach(patch, band, mode=mode)
        gap = vote_gaps.levine_feizi_gap(counts, answers, reach=reach)
        np.testing.assert_array_equal(gap, golden[f"{case}_peer_certified"])
        affected = BUILD[mode](size, patch, band=band).affected()
        robust = smoothing.worst_case(votes, labels, affected)
        np.testing.assert_array_equal(robust, golden[f"{case}_sound_exact"])
        assert (robust | ~vote_gaps.levine_feizi_gap(counts, labels, reach=reach)).all()
        if f"{case}_counts" in golden:
            np.testing.assert_array_equal(counts, golden[f"{case}_counts"])
        assert isinstance(robust, np.ndarray)
        assert isinstance(answers, np.ndarray)


@pytest.mark.parametrize("case", range(8))
def test_golden_of_smoothed_vits(shared, case):
    golden = {
        key[3:]: value
        for key, value in _golden(shared, "svit_certify").items()
        if key.startswith(f"p{case}_")
    }
    mode, labels = MODES[str(golden["mode"])], golden["label"]
    width, band, patch, stride = (int(golden[n]) for n in ("width", "ablation", "patch", "stride"))
    masks = BUILD[mode](width, patch, band=band, stride=stride)
    parts = affected_parts(masks)
    assert len(parts) == (2 if mode == "both" else 1)
    votes = smoothing.label_votes(
        golden["labels"], int(max(golden["labels"].max(), labels.max())) + 1
    )
    counts = smoothing.vote_counts(votes)
    printed = vote_gaps.published_reach(patch, band, stride=stride, mode=mode)
    true = int(sum(part.sum(axis=1).max() for part in parts))
    assert (printed, true) == (golden["affected_formula"], golden["affected_true_max"])
    expected = {
        "peer_smoothed_correct": smoothing.rule(votes) == labels,
        "peer_certified": vote_gaps.smoothed_vit_gap(counts, labels, reach=printed),
        "sound_gap": vote_gaps.smoothed_vit_gap(counts, labels, reach=true),
        "sound_exact": smoothing.worst_case(votes, labels, parts),
    }
    for name, verdicts in expected.items():
        np.testing.assert_array_equal(verdicts, golden[name], name)
    if mode == "both":  # the pairs of both parts listed say the same
        whole = smoothing.worst_case(votes, labels, masks.affected())
        np.testing.assert_array_equal(whole, expected["sound_exact"])


def test_golden_of_the_toolbox(shared):
    """Which of equal second classes it meets is arbitrary: it certifies between two bounds."""
    golden = _golden(shared, "art_certify")
    for case in range(4):
        get = {key[3:]: golden[key] for key in golden if key.startswith(f"p{case}_")}
        mode, algorithm = str(get["mode"]), str(get["algorithm"])
        reach = vote_gaps.published_reach(int(get["patch"]), int(get["ablation"]), mode=mode)
        top = get["peer_top"]
        np.testing.assert_array_equal(get["counts"].argmax(axis=1), top)
        most = vote_gaps.toolbox_gap(get["counts"], top, reach=reach, algorithm=algorithm)
        least = vote_gaps.smoothed_vit_gap(get["counts"], top, reach=reach)
        assert (most | ~get["peer_cert"]).all()
        assert (get["peer_cert"] | ~least).all()
        if algorithm == "salman2021":
            np.testing.assert_array_equal(most, get["peer_cert"])
            continue
        sound = vote_gaps.levine_feizi_gap(get["counts"], top, reach=reach)
        np.testing.assert_array_equal(sound, get["sound_counts_only"])
        torch = pytest.importorskip("torch", reason="its selection is what the toolbox goes by")
        counts = torch.tensor(get["counts"].astype(np.int64))
        second = torch.kthvalue(counts, counts.shape[1] - 1, dim=1).indices.numpy()
        certified = vote_gaps.toolbox_gap(get["counts"], top, reach=reach, second=second)
        np.testing.assert_array_equal(certified, get["peer_cert"])


def _attacked_everywhere(votes, labels, affected, ties="smallest"):
    """Robust by trying, at each location and for each wrong class, the attack of the proof."""
    robust = smoothing.rule(votes, ties=ties) == labels
    for group in affected:
        for target in range(votes.shape[-1]):
            attacked = votes.copy()
            attacked[:, group] = np.arange(votes.shape[-1]) == target
            counts = attacked.sum(axis=1)
            order = counts if ties == "smallest" else counts[:, ::-1]
            answers = order.argmax(axis=1)
            answers = answers if ties == "smallest" else votes.shape[-1] - 1 - answers
            robust &= (answers == labels) | (labels == target)
    return robust


@pytest.mark.parametrize("ties", ["smallest", "largest"])
def test_the_worst_case_is_what_attacks_of_the_proof_leave(ties):
    rng = np.random.default_rng(0)
    seen = np.zeros(2, int)
    for width, band, patch, stride in [(7, 2, 1, 1), (9, 2, 2, 2), (8, 3, 1, 3), (11, 2, 1, 4)]:
        met = _met(width, patch, band, stride)
        affected = column_bands((3, width), (1, patch), band=band, stride=stride).affected()
        labels = rng.integers(0, 3, cases(700))
        bias = rng.random((cases(700), 1, 3)) * np.where(
            labels[:, None, None] == np.arange(3), 1.5, 0.4
        )
        votes = rng.random((cases(700), met.shape[1], 3)) < bias  # none, one or several
        robust = smoothing.worst_case(votes, labels, affected, ties=ties)
        np.testing.assert_array_equal(robust, _attacked_everywhere(votes, labels, met, ties))
        free = smoothing.certificate(votes, labels, affected)
        both = [
            smoothing.worst_case(votes, labels, affected, ties=t) for t in ("smallest", "largest")
        ]
        assert (~free | (both[0] & both[1])).all()
        seen += [robust.sum(), (robust & ~free).sum()]
    assert (seen > 20).all()


def test_the_attack_of_the_proof_is_the_worst_by_exhaustion():
    met, labels = _met(5, 1, 2, 1), np.zeros(1024, int)  # 5 bands, of which a patch meets 2
    affected = column_bands((1, 5), (1, 1), band=2).affected()
    votes = np.array(list(itertools.product([0, 1], repeat=10)), bool).reshape(1024, 5, 2)
    robust = np.ones(1024, bool)
    for group in met:
        for said in itertools.product([0, 1], repeat=2 * int(group.sum())):
            attacked = votes.copy()
            attacked[:, group] = np.array(said, bool).reshape(-1, 2)
            robust &= attacked.sum(axis=1).argmax(axis=1) == 0
    np.testing.assert_array_equal(smoothing.worst_case(votes, labels, affected), robust)
    assert 0 < robust.sum() < 1024


def test_bands_of_both_axes_fall_apart():
    masks = row_and_column_bands((6, 9), (1, 1), band=(1, 2), stride=(1, 2))
    rng = np.random.default_rng(1)
    votes = rng.random((300, len(masks), 3)) < rng.random((300, 1, 3)) * [1, 0.3, 0.2]
    labels = np.zeros(300, int)
    whole = smoothing.worst_leads(votes, labels, masks.affected())
    np.testing.assert_array_equal(
        smoothing.worst_leads(votes, labels, affected_parts(masks))[:, 1:], whole[:, 1:]
    )
    rows, columns = _met(6, 1, 1, 1), _met(9, 1, 2, 2)
    met = np.array([[*r, *c] for r in rows for c in columns])
    robust = smoothing.worst_case(votes, labels, affected_parts(masks))
    np.testing.assert_array_equal(robust, _attacked_everywhere(votes, labels, met))
    assert 10 < robust.sum() < 290


def test_counterexample_smoothed_vit_at_its_published_stride(shared):
    case = _counterexample(shared, "svit_stride10_224")
    masks = column_bands(224, 32, band=19, stride=10)
    votes = np.zeros((1, 23, 2), bool)
    hit = [case["bands_at"].index(at) for at in case["affected_bands"]]
    wrong = [b for b in range(23) if b not in hit][: case["other_votes"]]
    votes[0, :, 0] = True
    votes[0, wrong] = [False, True]
    reach = vote_gaps.published_reach(32, 19, stride=10)
    counts = smoothing.vote_counts(votes)
    assert counts.tolist() == [[17, 6]]
    assert 2 * reach + 1 == case["published_gap"]
    zero = np.zeros(1, int)
    assert vote_gaps.smoothed_vit_gap(counts, zero, reach=reach).all()
    assert not smoothing.worst_case(votes, zero, masks.affected()).any()
    assert np.flatnonzero(_met(224, 32, 19, 10)[0]).tolist() == hit
    votes[0, hit] = [False, True]
    assert smoothing.vote_counts(votes).tolist() == [case["after_attack"]]
    assert smoothing.rule(votes).tolist() == [1]


def test_counterexample_smoothed_vit_smallest(shared):
    case = _counterexample(shared, "svit_smallest")
    votes = smoothing.label_votes(np.array([case["labels"]]), 2)
    zero = np.zeros(1, int)
    reach = vote_gaps.published_reach(1, 2, stride=2)
    assert vote_gaps.smoothed_vit_gap(smoothing.vote_counts(votes), zero, reach=reach).all()
    affected = column_bands((1, 5), (1, 1), band=2, stride=2).affected()
    assert not smoothing.worst_case(votes, zero, affected).any()
    votes = votes.copy()
    votes[0, [0, 2]] = [False, True]
    assert smoothing.vote_counts(votes).tolist() == [case["after_attack"]]


def test_counterexample_the_toolbox_at_a_tie(shared):
    case = _counterexample(shared, "art_levine_tie")
    counts, label = np.array([case["counts"]]), np.array([case["label"]])
    assert vote_gaps.toolbox_gap(counts, label, reach=case["affected"]).all()
    assert not vote_gaps.levine_feizi_gap(counts, label, reach=case["affected"]).any()
    said = np.array([[1, 1, 0, 1, 1, 1, 2]])
    votes = smoothing.label_votes(said, 4)
    assert smoothing.vote_counts(votes).tolist() == counts.tolist()
    affected = column_bands((1, 7), (1, 1), band=2).affected()
    assert not smoothing.worst_case(votes, label, affected).any()
    attacked = said.copy()
    attacked[0, :2] = 0  # bands 0 and 1 meet column 1
    votes = smoothing.label_votes(attacked, 4)
    assert smoothing.vote_counts(votes).tolist() == [case["after_attack"]]
    assert smoothing.rule(votes).tolist() == [case["prediction_after"]]


def test_the_most_bands_that_a_patch_meets(shared):
    """Theorem 6 of the specification: its bound, and where the printed form is right."""
    rng = np.random.default_rng(2)
    short = reached = 0
    for _ in range(300):
        width = int(rng.integers(3, 40))
        band = int(rng.integers(1, width))
        patch = int(rng.integers(1, width - band + 1))
        stride = int(rng.integers(1, width + 1))
        length, rest = patch + band - 1, width % stride
        printed = vote_gaps.published_reach(patch, band, stride=stride)
        bound = printed if rest == 0 else max(printed, -(-(length + stride - rest) // stride))
        most = int(_met(width, patch, band, stride).sum(axis=1).max())
        assert most <= bound
        assert most == printed or rest
        short, reached = short + (most > printed), reached + (most == bound)
    assert short > 10
    assert reached > 200
    expected = {(19, 32, 10): 6, (19, 32, 5): 11, (19, 39, 10): 7, (19, 23, 10): 5, (37, 23, 10): 7}
    for (band, patch, stride), most in expected.items():
        affected = column_bands(224, patch, band=band, stride=stride).affected()
        assert affected.sum(axis=1).max() == most
    for patch, most in ((23, 121), (32, 144)):
        assert blocks(224, patch, band=75, stride=10).affected().sum(axis=1).max() == most


def test_votes():
    logits = np.array(
        [[[2.0, 2.0, 1.0], [0.0, np.nan, 9.0], [np.inf, 0.0, 0.0], [-np.inf, 0.0, 0.0]]]
    )
    top = [[[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0]]]
    np.testing.assert_array_equal(smoothing.top_one_votes(logits), np.array(top, bool))
    shared_top = [[[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1]]]
    np.testing.assert_array_equal(smoothing.shared_top_votes(logits), np.array(shared_top, bool))
    some = [[[1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1]]]
    np.testing.assert_array_equal(smoothing.threshold_votes(logits, 0.4), np.array(some, bool))
    huge = np.array([[[1e8, -1e8, 5e-324]]])
    np.testing.assert_array_equal(smoothing.threshold_votes(huge, 0.2), [[[True, False, False]]])
    half = smoothing.threshold_votes(np.array([[[3.0, 3.0], [3.0, -np.inf]]]), 0.5)
    np.testing.assert_array_equal(half, [[[True, True], [True, False]]])  # a share of just theta
    all_of_it = smoothing.threshold_votes(np.array([[[3.0, -np.inf]]]), 1.0)
    np.testing.assert_array_equal(all_of_it, [[[True, False]]])
    none = np.zeros((1, 4, 3), bool)
    assert smoothing.rule(none).tolist() == [0]
    assert smoothing.rule(none, ties="largest") == [2]


def test_traced_the_same():
    rng = np.random.default_rng(3)
    masks = column_bands(8, 1, band=2)
    votes, labels = rng.random((20, 8, 3)) < [0.8, 0.2, 0.2], np.zeros(20, int)
    affected = masks.affected()
    expected = smoothing.worst_case(votes, labels, affected)
    one = jax.jit(lambda v, y: (smoothing.rule(v), smoothing.worst_case(v, y, affected)))
    answers, robust = jax.vmap(one)(jnp.asarray(votes), jnp.asarray(labels, jnp.int32))
    np.testing.assert_array_equal(robust, expected)
    np.testing.assert_array_equal(answers, smoothing.rule(votes))
    assert 0 < expected.sum() < 20


def test_bad_input_is_named():
    votes, affected = np.zeros((2, 4, 3), bool), np.zeros((1, 4), bool)
    labels = np.zeros(2, int)
    for wrong, why in (
        (lambda: smoothing.rule(votes.astype(int)), "votes: expected bool"),
        (lambda: smoothing.worst_case(votes, labels, affected[:, :3]), "affected: expected bool"),
        (lambda: smoothing.worst_case(votes, labels, affected.astype(int)), "affected: expected b"),
        (
            lambda: smoothing.worst_case(votes, labels[:1], affected),
            "labels: expected one integer for each",
        ),
        (lambda: smoothing.worst_case(votes, labels + 3, affected), "labels: expected classes"),
        (lambda: smoothing.worst_case(votes, labels, affected, ties="any"), "ties: expected"),
        (lambda: smoothing.threshold_votes(np.zeros((1, 1, 2)), 0), "threshold: expected a share"),
        (lambda: vote_gaps.published_reach(5, 4, mode="diagonal"), "mode: expected one of"),
        (lambda: vote_gaps.levine_feizi_gap(np.zeros(3, int), labels, reach=1), "counts: expected"),
        (lambda: smoothing.label_votes(np.array([0.5, 0.0]), 3), "labels: expected integers"),
        (lambda: smoothing.label_votes(np.array([3, 0]), 3), "labels: expected classes below 3"),
    ):
        with pytest.raises(ValueError, match=why):
            wrong()


@pytest.mark.parametrize(
    "gap", [vote_gaps.levine_feizi_gap, vote_gaps.smoothed_vit_gap, vote_gaps.toolbox_gap]
)
def test_gaps_are_asked_for_the_class_of_each_image(gap):
    counts, labels = np.zeros((2, 3), int), np.zeros(2, int)
    for wrong, why in (
        (labels[:1], "labels: expected one integer for each"),
        (labels + 0.5, "labels: expected one integer for each"),
        (labels + 3, "labels: expected classes from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=why):
            gap(counts, wrong, reach=1)
