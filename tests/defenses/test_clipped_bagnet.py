"""Clipped BagNet: golden results, exhaustion, and where the published program is wrong."""

from __future__ import annotations

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle_small_fields as oracle
import pytest
from many_cases import cases

from certmask_jax.defenses import clipped_bagnet

GOLDEN = [("clipped_bagnet", f"p{i}_") for i in range(4)] + [("clipped_bagnet_small_1d", "")]


def _clip(number):
    return None if number < 0 else float(number)


@pytest.mark.parametrize(("name", "prefix"), GOLDEN)
def test_golden_labels_and_verdicts(shared, name, prefix):
    golden = np.load(shared / "golden" / "small_fields" / f"{name}.npz")
    evidence, labels = golden["local_logits"], golden["label"]
    clip = _clip(golden[f"{prefix}clip"])
    given = {"window": tuple(map(int, golden[f"{prefix}window"])), "clip": clip}
    answers = clipped_bagnet.rule(evidence, clip=clip)
    np.testing.assert_array_equal(answers, golden[f"{prefix}peer_pred"])
    np.testing.assert_array_equal(answers, oracle.clipped_mean(evidence.astype(float), clip))
    ordered = clipped_bagnet.worst_case(evidence, labels, ties="smallest", **given)
    np.testing.assert_array_equal(ordered, golden[f"{prefix}sound"])
    published = clipped_bagnet.runner_up_as_published(evidence, labels, **given)
    np.testing.assert_array_equal(published, golden[f"{prefix}peer_result"] == 2)
    strict = clipped_bagnet.worst_case(evidence, labels, ties=None, **given)
    np.testing.assert_array_equal(
        strict, golden[f"{prefix}sound"] & (golden[f"{prefix}sound_margin"] > 0)
    )
    assert (published & ~ordered).any() == (name == "clipped_bagnet_small_1d")


def test_golden_on_real_images(shared):
    golden = np.load(shared / "golden" / "small_fields" / "cifar_patchguard.npz")
    evidence, labels = golden["local_logits"], golden["label"]
    for window in (3, 5):
        np.testing.assert_array_equal(
            clipped_bagnet.worst_case(evidence, labels, window=window, ties="smallest"),
            golden[f"cbn_w{window}_sound"],
        )
        np.testing.assert_array_equal(
            clipped_bagnet.runner_up_as_published(evidence, labels, window=window),
            golden[f"cbn_w{window}_result"] == 2,
        )


@pytest.mark.parametrize(("clip", "low", "high"), [(4.0, 0.0, 4.0), (None, -1e4, 1e4)])
def test_worst_case_against_every_attack(clip, low, high):
    """Classes and cells are independent and the rule is linear: only the ends matter."""
    random = np.random.default_rng(0)
    count = cases(1500)
    labels = random.integers(0, 3, count)
    evidence = random.integers(0, 3, (count, 4, 1, 3))
    evidence[np.arange(count), ..., labels] += random.integers(0, 5, (count, 4, 1))
    evidence = np.clip(evidence, 0, 4).astype(np.float32)
    if clip is None:
        evidence = (30 * evidence - 40).astype(np.float32)
    fooled, tied = np.zeros(count, bool), np.zeros(count, bool)
    for cell, content in itertools.product(range(4), itertools.product((low, high), repeat=3)):
        attacked = evidence.astype(float)
        attacked[:, cell, 0] = content
        fooled |= oracle.clipped_mean(attacked, clip) != labels
        # The same with the label last, which then loses its ties.
        order = np.argsort(np.arange(3)[None, :] == labels[:, None], axis=1, kind="stable")
        last = np.take_along_axis(attacked, order[:, None, None, :], axis=-1)
        tied |= oracle.clipped_mean(last, clip) != 2
        answers = clipped_bagnet.rule(attacked, clip=clip)
        sure = clipped_bagnet.worst_case(evidence, labels, window=1, clip=clip, ties=None)
        assert (answers == labels)[sure].all()
    given = {"window": 1, "clip": clip}
    robust = clipped_bagnet.worst_case(evidence, labels, ties=None, **given)
    ordered = clipped_bagnet.worst_case(evidence, labels, ties="smallest", **given)
    assert 100 < robust.sum() < count - 100
    assert not (robust & (fooled | tied)).any()
    assert not (ordered & fooled).any()
    if clip is not None:  # sums of float64 are exact there
        np.testing.assert_array_equal(robust, ~tied)
        np.testing.assert_array_equal(ordered, ~fooled)
        published = clipped_bagnet.runner_up_as_published(evidence, labels, **given)
        assert (published & fooled).sum() > 10


def test_counterexamples_to_the_runner_up(shared):
    cases = json.loads((shared / "golden/small_fields/counterexamples.json").read_text())
    label = np.zeros(1, int)

    (case,) = [case for case in cases if case["name"] == "cbn_runner_up"]
    clean = np.array(case["logits"], np.float32).T[None, :, None, :]
    attacked = np.array(case["attack"], np.float32).T[None, :, None, :]
    given = {"window": 1, "clip": case["clip"]}
    assert clipped_bagnet.runner_up_as_published(clean, label, **given)
    assert not clipped_bagnet.worst_case(clean, label, **given)
    assert clipped_bagnet.rule(clean, clip=case["clip"]) == 0
    assert clipped_bagnet.rule(attacked, clip=case["clip"]) == case["attacked_prediction"] == 2

    saturated = [case for case in cases if case["name"] == "cbn_tanh_runner_up"]
    assert len(saturated) == 3
    for case in saturated:
        clean = np.array(case["raw_logits"], np.float32).T[None, :, None, :]
        attacked = clean.copy()
        attacked[0, case["attack_cell"], 0] = -1e8, -1e8, 1e8
        assert not clipped_bagnet.worst_case(clean, label, window=1)
        assert clipped_bagnet.rule(clean) == 0
        assert clipped_bagnet.rule(attacked) == case["attacked_prediction"]
        assert oracle.clipped_mean(attacked.astype(float)) == case["attacked_prediction"]
        # Two classes tie for the second place, which the program's sort settled by chance: in this
        # order a stable one takes the same of them.
        swapped = clean[..., [0, 2, 1]]
        assert clipped_bagnet.runner_up_as_published(swapped, label, window=1)
        assert not clipped_bagnet.worst_case(swapped, label, window=1)
        assert clipped_bagnet.rule(attacked[..., [0, 2, 1]]) == 1


def test_equality_is_no_certificate_where_tanh_reaches_its_ends():
    # 1 against -1 in each of two cells; a window may change one of them by 2, to a tie.
    evidence = np.array([[[[-1e8, 1e8]], [[-1e8, 1e8]]]], np.float32)
    labels = np.ones(1, int)
    attacked = evidence.copy()
    attacked[0, 0, 0] = 1e8, -1e8
    assert clipped_bagnet.rule(evidence) == 1
    assert clipped_bagnet.rule(attacked) == 0  # the smallest label
    assert clipped_bagnet.runner_up_as_published(evidence, labels, window=1)
    assert not clipped_bagnet.worst_case(evidence, labels, window=1, ties="smallest")
    assert not clipped_bagnet.worst_case(evidence[..., ::-1], 1 - labels, window=1, ties=None)


def test_any_numbers_traced_and_bad_inputs():
    random = np.random.default_rng(4)
    labels = random.integers(0, 4, 60)
    evidence = random.normal(20, 20, (60, 5, 5, 4)).astype(np.float32)
    evidence[np.arange(60), ..., labels] += 25
    tease = np.float32([1e8, -1e8, 3e38, -3e38, 1e-40, 0, 20, np.inf, -np.inf, np.nan])
    robust = clipped_bagnet.worst_case(evidence, labels, window=2)
    assert 10 < robust.sum() < 60
    for _ in range(20):
        attacked = evidence.copy()
        top, left = random.integers(0, 4, 2)
        attacked[:, top : top + 2, left : left + 2] = random.choice(tease, (60, 2, 2, 4))
        np.testing.assert_array_equal(clipped_bagnet.rule(attacked)[robust], labels[robust])
    evidence[:, 0, 0, 0] = np.nan
    assert not clipped_bagnet.worst_case(evidence, labels, window=2).any()
    evidence[:, 0, 0, 0] = 1

    worst = jax.jit(lambda u, y: clipped_bagnet.worst_case(u, y, window=2))
    traced = worst(jnp.asarray(evidence), jnp.asarray(labels, jnp.int32))
    assert isinstance(traced, jax.Array)
    np.testing.assert_array_equal(traced, clipped_bagnet.worst_case(evidence, labels, window=2))
    for call, words in (
        (lambda: clipped_bagnet.rule(evidence, clip=0), "clip: expected None or a finite number"),
        (lambda: clipped_bagnet.rule(evidence, clip=math.inf), "clip: expected None or a finite"),
        (lambda: clipped_bagnet.rule(evidence[0]), r"evidence: expected \[images"),
        (
            lambda: clipped_bagnet.worst_case(evidence, labels, window=6),
            "window: 6 x 6 cells are more than the 5 x 5",
        ),
        (
            lambda: clipped_bagnet.worst_case(evidence, labels + 4, window=2),
            "labels: expected classes from 0 to 3",
        ),
        (
            lambda: clipped_bagnet.worst_case(evidence, labels, window=2, ties="largest"),
            "ties: expected None or 'smallest'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
