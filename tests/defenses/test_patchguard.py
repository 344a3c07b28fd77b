"""PatchGuard and PatchGuard++ on local evidence: golden results, exhaustion, and hard numbers."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_small_fields as oracle
import pytest
from many_cases import cases

from certmask_jax.defenses import clipped_bagnet, patchguard, unmasked_program
from certmask_jax.defenses.defense import ALERT
from certmask_jax.defenses.robust_masking_game import game_on

GOLDEN = [
    ("patchguard_bagnet17_224", 3),
    ("patchguard_small_2d", 5),
    ("patchguard_ties_1d", 4),
    ("maskds_cifar_confidence", 2),
    ("cifar_patchguard", 3),
]


def _golden(shared, name):
    return np.load(shared / "golden" / "small_fields" / f"{name}.npz")


def _counterexamples(shared):
    cases = json.loads((shared / "golden/small_fields/counterexamples.json").read_text())
    return {case["name"]: case for case in cases}


def _map(*classes):
    """``[1, n, 1, K]`` from one list of numbers a class."""
    return np.array(classes, np.float32).T[None, :, None, :]


@partial(jax.jit, static_argnames=("window", "clip", "threshold", "wrap"))
def _all(evidence, labels, **options):
    """Traced together, which also shares what they have in common."""
    return (
        patchguard.robust_masking_rule(evidence, **options),
        patchguard.robust_masking_worst_case(evidence, labels, ties="largest", **options),
        patchguard.robust_masking_worst_case(evidence, labels, ties=None, **options),
        patchguard.as_published(evidence, labels, **options),
        patchguard.as_published(evidence, labels, program="before_2021_12", **options),
    )


@partial(jax.jit, static_argnames=("window", "clip", "threshold", "wrap"))
def _in_the_papers_order(evidence, labels, **options):
    return (
        patchguard.robust_masking_rule(evidence, **options),
        patchguard.robust_masking_worst_case(evidence, labels, ties="largest", **options),
        patchguard.as_published(evidence, labels, **options),
    )


@pytest.mark.parametrize(
    ("name", "index"), [(name, i) for name, count in GOLDEN for i in range(count)]
)
def test_golden_labels_and_verdicts(shared, name, index):
    golden = _golden(shared, name)
    evidence, labels = golden["local_logits"], golden["label"].astype(np.int32)
    read = {key: golden[f"p{index}_{key}"] for key in ("window", "T", "clip", "wrap", "sound")}
    options = {
        "window": tuple(map(int, read["window"])),
        "clip": math.inf if read["clip"] < 0 else float(read["clip"]),
        "threshold": float(read["T"]),
        "wrap": bool(read["wrap"]),
    }
    rule, ordered, head = map(
        np.asarray, _in_the_papers_order(jnp.asarray(evidence), jnp.asarray(labels), **options)
    )
    np.testing.assert_array_equal(rule, golden[f"p{index}_peer_pred"])
    np.testing.assert_array_equal(head, golden[f"p{index}_peer_result"] == 2)
    if options["threshold"] == 0:
        np.testing.assert_array_equal(ordered, read["sound"])
    else:  # the golden form is weaker than theorem 2
        assert not (read["sound"] & ~ordered).any()
        few = slice(2, 4 if evidence.shape[1] > 12 else 10)
        robust = patchguard.robust_masking_worst_case(evidence[few], labels[few], **options)
        np.testing.assert_array_equal(
            robust, oracle.theorem_2(evidence[few], labels[few], *options.values())
        )
        assert not (robust & ~ordered[few]).any()
    if f"p{index}_exact" in golden:
        exact = patchguard.robust_masking_worst_case(
            evidence, labels, ties="largest", exact=True, **options
        )
        np.testing.assert_array_equal(exact, golden[f"p{index}_exact"])


def _some_evidence(count, cells, classes, *, seed):
    """Small integers: much for the label, little for the others, so that half is certified."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count).astype(np.int32)
    shape = (count, *cells, classes)
    rate = random.uniform(0, 0.3, (count, 1, 1, 1))
    evidence = random.integers(1, 4, shape) * (random.random(shape) < rate)
    own = random.integers(1, 5, shape[:-1]) * (random.random(shape[:-1]) < 0.9)
    evidence[np.arange(count), ..., labels] = own
    return evidence, labels


EXHAUSTED = {  # cells, window, wrap, clip, threshold, alphabet of the attacker
    "plain": ((5, 1), (2, 1), False, 3.0, 0.0, (0, 3)),
    "wrapped": ((5, 1), (2, 1), True, math.inf, 0.0, (0, 40)),
    "wide on a cycle": ((5, 1), (3, 1), True, 3.0, 0.0, (0, 1, 3)),
    "two axes": ((3, 4), (2, 2), False, math.inf, 0.0, (0, 40)),
    "two cycles": ((2, 4), (1, 2), True, 3.0, 0.0, (0, 3)),
    "threshold": ((6, 1), (2, 1), False, math.inf, 0.5, (0, 0.5, 1, 2, 3, 5, 40)),
    "threshold on a cycle": ((6, 1), (2, 1), True, math.inf, 0.75, (0, 0.5, 1, 2, 3, 5, 40)),
    "threshold and clip": ((6, 1), (2, 1), False, 4.0, 0.3125, (0, 0.5, 1, 2, 3, 4)),
}


@pytest.mark.parametrize("name", EXHAUSTED)
def test_worst_case_against_every_attack(name):
    cells, window, wrap, clip, threshold, alphabet = EXHAUSTED[name]
    count = cases(600)
    evidence, labels = _some_evidence(count, cells, 3, seed=len(name))
    options = {"window": window, "clip": clip, "threshold": threshold, "wrap": wrap}
    rule, ordered, robust, head, old = map(
        np.asarray, _all(jnp.asarray(evidence, jnp.float32), jnp.asarray(labels), **options)
    )
    np.testing.assert_array_equal(
        rule, oracle.robust_masking(evidence, window, clip, threshold, wrap)
    )
    by_attack = partial(
        oracle.robust_masking_by_attack, evidence, labels, window, alphabet,
        clip=clip, threshold=threshold, wrap=wrap,
    )  # fmt: skip
    strict, truth = by_attack(), by_attack(ties="largest")
    assert 20 < truth.sum() < count - 20
    assert not (robust & ~strict).any()
    assert not (ordered & ~truth).any()
    assert (rule == labels)[ordered].all()
    if threshold == 0:
        np.testing.assert_array_equal(robust, strict)
        np.testing.assert_array_equal(ordered, truth)
        assert not (head & ~truth).any()
        if not wrap:
            np.testing.assert_array_equal(head, truth)
    else:
        assert ordered.sum() > 20
        if not wrap:
            assert not (head & ~truth).any()
            assert (old & ~truth).any() or name == "threshold and clip"


@pytest.mark.parametrize("threshold", [0.0, 0.3125])
@pytest.mark.parametrize(
    ("cells", "window"), [((6, 1), (2, 1)), ((3, 4), (2, 2)), ((4, 1), (1, 1))]
)
def test_the_first_program_is_that_of_the_plain_loop(cells, window, threshold):
    random = np.random.default_rng(8)
    labels = random.integers(0, 3, cases(300)).astype(np.int32)
    evidence = random.integers(0, 3, (cases(300), *cells, 3)) + 2 * (
        np.arange(3) == labels[:, None, None, None]
    )
    certified = patchguard.as_published(
        evidence, labels, window=window, threshold=threshold, program="first"
    )
    looped = [
        oracle.printed_certificate(image, label, window, threshold)
        for image, label in zip(evidence, labels, strict=True)
    ]
    np.testing.assert_array_equal(certified, looped)
    assert 20 < certified.sum() < len(certified) - 20


def test_linear_programs_are_never_wrong_and_certify_more():
    evidence, labels = _some_evidence(40, (6, 1), 2, seed=3)
    # By hand: 4 are left of y, and B / (1 - T) = 4, but any window with the 3 of z is masked.
    evidence[0, :, 0], labels[0] = [[2, 3]] + 5 * [[2, 0]], 0
    options = {"window": (2, 1), "threshold": 0.25}
    sufficient = patchguard.robust_masking_worst_case(evidence, labels, ties=None, **options)
    exact = patchguard.robust_masking_worst_case(evidence, labels, ties=None, exact=True, **options)
    halves = tuple(x / 2 for x in range(12))
    truth = oracle.robust_masking_by_attack(evidence, labels, (2, 1), (*halves, 60), threshold=0.25)
    assert not (sufficient & ~exact).any()
    assert not (exact & ~truth).any()
    assert (bool(sufficient[0]), bool(exact[0])) == (False, True)


@pytest.mark.parametrize(("denominator", "threshold"), [(10**6, 0.375), (1, 0.3125)])
def test_the_linear_program_against_all_contents_of_a_window(denominator, threshold):
    """In quarters, which is as fine as its solutions are here; and where it has none.

    A dual solution that is rounded badly is no longer tight, and a bound all the same.
    """
    random = np.random.default_rng(0)
    game = game_on((8, 1), window=(2, 1), clip=math.inf, threshold=threshold, wrap=False)
    boxes = oracle.windows((8, 1), (2, 1))
    impossible = below = 0
    for _ in range(40):
        evidence = random.integers(0, 4, 8) * (random.random(8) < 0.8)
        attacked = int(random.integers(0, 7))
        units = (evidence * 2**game.grid.bits).astype(np.int32)[:, None]
        bound = unmasked_program.most_unmasked(units, attacked, game, denominator=denominator)
        bound /= 2**game.grid.bits
        around = evidence.astype(float)
        around[boxes[attacked]] = 0
        contents = np.array(list(itertools.product(np.arange(0, 48) / 4, repeat=2)))
        tried = np.repeat(around[None], len(contents), axis=0)
        tried[:, boxes[attacked]] = contents
        largest = np.max([tried[:, box].sum(axis=1) for box in boxes], axis=0)
        unmasked = tried.sum(axis=1)[largest <= threshold * tried.sum(axis=1)]
        total = around.sum()
        if len(unmasked):
            assert unmasked.max() <= bound
            assert denominator == 1 or bound - 1 < unmasked.max()
            below += bound < total / (1 - threshold) - 1e-6
        else:
            impossible += bound <= total
    assert denominator == 1 or (impossible > 5 and below > 2)


def test_by_hand_a_full_window_below_the_threshold_ties():
    """Of 5 and 3 cells of 1 one is attacked: 4 are left, and 3 and a full window are 4 too.

    A window of the other class then has a quarter of its sum, so none is masked at T = 1/2.
    """
    cells = np.array([[1, 1], [1, 1], [1, 1], [1, 0], [1, 0]], float)
    for label, wins in ((0, False), (1, True)):  # a tie is the largest label's
        evidence = cells[None, :, None, :: 1 - 2 * label]
        how = {"window": (1, 1), "clip": 1.0, "threshold": 0.5}
        assert patchguard.robust_masking_worst_case(evidence, [label], **how) == wins
        assert not patchguard.robust_masking_worst_case(evidence, [label], **how, ties=None)
        attacked = evidence.copy()
        attacked[0, 3, 0] = [label, 1 - label]  # nothing for the label, and 1 for the other
        assert (patchguard.robust_masking_rule(attacked, **how) == label) == wins


def test_counterexamples_to_what_was_published(shared):
    cases = _counterexamples(shared)
    label = np.zeros(1, np.int32)

    # Ties go to the largest label, so the true one is 1 here.
    case = cases["patchguard_paper_v1"]
    clean, attacked = _map(case["u_z"], case["u_y"]), _map(case["attack_z"], case["attack_y"])
    assert oracle.printed_robust_masking(clean, (1, 1)) == 1
    assert case["printed_algorithm_2"]
    assert patchguard.as_published(clean, label + 1, window=1, program="first")
    assert oracle.printed_robust_masking(attacked, (1, 1)) == 0
    # Each class masked on its own it is safe: 1 of y against 0 of z.
    assert patchguard.robust_masking_worst_case(clean, label + 1, window=1)
    assert patchguard.robust_masking_rule(attacked, window=1) == 1

    # The vector of soundness 5.1, where no tie is needed.
    clean, attacked = _map([0, 0.5, 0, 0], [5, 1, 1, 1]), _map([0, 0.5, 0, 6.4], [5, 1, 1, 0])
    assert patchguard.as_published(clean, label + 1, window=1, program="first")
    assert oracle.printed_robust_masking(clean, (1, 1)) == 1
    assert oracle.printed_robust_masking(attacked, (1, 1)) == 0
    assert patchguard.robust_masking_rule(attacked, window=1) == 1

    for name, wrap in (("patchguard_prefix_T", False), ("maskds_wrap_T_head", True)):
        case = cases[name]
        options = {"window": (2, 1), "threshold": case["T"], "wrap": wrap}
        clean, attacked = _map(case["u_y"], case["u_z"]), _map(case["attack_y"], case["attack_z"])
        rule, _, robust, head, old = _all(jnp.asarray(clean), jnp.asarray(label), **options)
        assert (bool(old), bool(head)) == (True, case["head_code"] == 2)
        assert not robust
        assert not patchguard.robust_masking_worst_case(clean, label, exact=True, **options)
        assert rule == 0
        assert patchguard.robust_masking_rule(attacked, **options) == 1
        changed = np.flatnonzero((clean != attacked).any(axis=(0, 2, 3)))
        assert len(changed) <= 2  # what one window may hold
        assert oracle.robust_masking(attacked, (2, 1), threshold=case["T"], wrap=wrap) == 1

    # The theorem holds there, and in float32 the program did not.
    case = cases["patchguard_float32_cancellation"]
    clean = _map(case["u_y"], case["u_z"])
    assert patchguard.robust_masking_worst_case(clean, label, window=1)
    for size in (1e6, 1e8, 3e38, math.inf, math.nan):
        attacked = clean.copy()
        attacked[0, 0, 0, 0] = size
        assert patchguard.robust_masking_rule(attacked, window=1) == 0

    case = cases["pgpp_float32_cancellation"]
    clean = _map(case["u_y"], case["u_z"])
    assert patchguard.detection_worst_case(clean, label, window=1, tau=0.5)
    for size in (1e6, 1e8, 3e38, math.inf):
        attacked = clean.copy()
        attacked[0, 0, 0] = -size, size
        assert patchguard.detection_rule(attacked, window=1, tau=0.5) == ALERT

    case = cases["pgpp_tau_equality"]
    clean = _map(case["u_y"], case["u_z"])
    attacked = clean.copy()
    attacked[0, 0, 0] = 0, 5
    assert patchguard.detection_as_published(clean, label, window=1, tau=0.5)
    assert not patchguard.detection_worst_case(clean, label, window=1, tau=0.5)
    assert patchguard.detection_rule(attacked, window=1, tau=0.5) == case["output"] == 1


def test_golden_detection(shared):
    golden = _golden(shared, "patchguardpp_detection")
    window = tuple(map(int, golden["window"]))
    for index, tau in enumerate(map(float, golden["taus"])):
        _check_detection(golden, window, tau, golden["peer_output"][index], index)
    real = _golden(shared, "cifar_patchguard")
    for side, tau in itertools.product((3, 5), (0.3, 0.5)):
        key = f"pgpp_w{side}_tau{tau}"
        output, result = real[f"{key}_output"], real[f"{key}_result"]
        _check_detection(real, (side, side), tau, output, None, result)


def _check_detection(golden, window, tau, output, index, result=None):
    evidence, labels = golden["local_logits"], golden["label"].astype(np.int32)
    options = {"window": window, "tau": tau}
    answers = patchguard.detection_rule(evidence, **options)
    np.testing.assert_array_equal(answers, np.where(output == -1, ALERT, output))
    np.testing.assert_array_equal(answers, oracle.detection(evidence, window, tau))
    published = patchguard.detection_as_published(evidence, labels, **options)
    np.testing.assert_array_equal(
        published, (golden["peer_result"][index] if result is None else result) == 2
    )
    robust = patchguard.detection_worst_case(evidence, labels, **options)
    assert not (robust & ~published).any()


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_detection_against_every_attack(tau):
    random = np.random.default_rng(1)
    count = cases(800)
    labels = random.integers(0, 3, count).astype(np.int32)
    evidence = random.integers(-2, 3, (count, 4, 1, 3)).astype(np.float32)
    evidence[np.arange(count), ..., labels] += random.integers(0, 4, (count, 4, 1))
    options = {"window": 1, "tau": tau}
    robust = patchguard.detection_worst_case(evidence, labels, **options)
    answers = patchguard.detection_rule(evidence, **options)
    np.testing.assert_array_equal(answers, oracle.detection(evidence, (1, 1), tau))
    assert (answers == labels)[robust].all()
    fooled = np.zeros(count, bool)
    for cell, content in itertools.product(range(4), itertools.product((-900, 0, 900), repeat=3)):
        attacked = evidence.copy()
        attacked[:, cell, 0] = content
        answer = oracle.detection(attacked, (1, 1), tau)
        fooled |= (answer != labels) & (answer != ALERT)
    assert 50 < robust.sum() < count - 50
    assert not (robust & fooled).any()
    # The other way round, but for ties, which the proof does not use.
    total = np.sort(evidence.sum(axis=(1, 2)), axis=1)
    rest = [np.sort(np.delete(evidence, c, axis=1).sum(axis=(1, 2)), axis=1) for c in range(4)]
    clear = np.all([s[:, -1] > s[:, -2] for s in (total, *rest)], axis=0)
    np.testing.assert_array_equal(robust[clear], (~fooled & (answers == labels))[clear])


def test_rule_and_proof_compare_the_same_number_with_tau():
    """Tau just below and just above a confidence of 1 / (1 + exp(-1/2)) of the table."""
    clean = _map([3, 1], [0, 0])  # without the first cell the means are 1/2 and 0
    attacked = _map([-900, 1], [900, 0])
    one, other = 2**20, round(math.exp(-0.5) * 2**20)
    for tau, above in ((one / (one + other + 0.5), True), (one / (one + other - 0.5), False)):
        options = {"window": 1, "tau": tau}
        assert patchguard.detection_worst_case(clean, [0], **options) == above
        answer = patchguard.detection_rule(attacked, **options)
        assert answer == (ALERT if above else 1)


def test_by_hand_a_mean_that_ties_is_never_certified():
    """Without either window of two cells, 1 of the first class is left, and nothing of the other.

    All of it is 2 and 2, which the largest label wins; then both windows dissent.
    """
    cells = np.array([[1, 0], [0, 2], [1, 0]], float)
    for label, answer in ((0, ALERT), (1, 1)):
        evidence = cells[None, :, None, :: 1 - 2 * label]
        how = {"window": (2, 1), "tau": 0.0}
        assert patchguard.detection_rule(evidence, **how) == answer
        assert not patchguard.detection_worst_case(evidence, [label], **how)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array])
def test_tau_may_be_a_number_of_numpy(kind):
    evidence, labels = np.full((1, 2, 2, 2), [3.0, 0.0]), [0]
    assert patchguard.detection_rule(evidence, window=1, tau=kind(0.5)) == 0
    assert patchguard.detection_worst_case(evidence, labels, window=1, tau=kind(0.5))
    assert patchguard.detection_as_published(evidence, labels, window=1, tau=kind(0.5))


def test_what_a_patch_puts_there_may_be_any_number():
    """Certified images are attacked with numbers that floating-point sums do not survive."""
    random = np.random.default_rng(5)
    count, cells = 40, (5, 4)
    labels = random.integers(0, 4, count).astype(np.int32)
    evidence = random.normal(0, 1, (count, *cells, 4)).astype(np.float32)
    evidence[np.arange(count), ..., labels] += random.uniform(0.3, 2, (count, 1, 1)).astype(
        np.float32
    )
    evidence[:, 0, 0] *= np.float32(1e-40)  # denormal
    tease = np.float32([1e8, -1e8, 3e38, -3e38, 1e-40, -1e-45, 0, 2, np.inf, -np.inf, np.nan])
    masked = patchguard.robust_masking_worst_case(evidence, labels, window=2)
    shared_out = patchguard.robust_masking_worst_case(evidence, labels, window=2, threshold=0.3)
    detected = patchguard.detection_worst_case(evidence, labels, window=2, tau=0.3)
    assert min(masked.sum(), shared_out.sum(), detected.sum()) >= 8
    for _ in range(40):
        attacked = evidence.copy()
        top, left = random.integers(0, 4), random.integers(0, 3)
        attacked[:, top : top + 2, left : left + 2] = random.choice(tease, (count, 2, 2, 4))
        answers = patchguard.robust_masking_rule(attacked, window=2)
        np.testing.assert_array_equal(answers[masked], labels[masked])
        answers = patchguard.robust_masking_rule(attacked, window=2, threshold=0.3)
        np.testing.assert_array_equal(answers[shared_out], labels[shared_out])
        answers = patchguard.detection_rule(attacked, window=2, tau=0.3)
        assert ((answers == labels) | (answers == ALERT))[detected].all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_evidence_that_is_not_finite_is_never_certified(bad):
    evidence = np.ones((2, 4, 4, 2), np.float32) * np.float32([5, 1])
    evidence[1, 3, 3, 1] = bad
    labels = np.zeros(2, np.int32)
    for robust in (
        patchguard.robust_masking_worst_case(evidence, labels, window=1),
        patchguard.detection_worst_case(evidence, labels, window=1, tau=0.0),
    ):
        np.testing.assert_array_equal(robust, [True, False])


def test_traced_and_mapped_over_further_axes():
    random = np.random.default_rng(2)
    evidence = random.normal(1, 2, (2, 3, 4, 4, 3)).astype(np.float32)
    labels = random.integers(0, 3, (2, 3)).astype(np.int32)

    def each(evidence, labels):
        return (
            patchguard.robust_masking_rule(evidence, window=2),
            patchguard.robust_masking_worst_case(evidence, labels, window=2),
            patchguard.detection_rule(evidence, window=2, tau=0.4),
            patchguard.detection_worst_case(evidence, labels, window=2, tau=0.4),
        )

    mapped = jax.jit(jax.vmap(each))(jnp.asarray(evidence), jnp.asarray(labels))
    for number in range(2):
        one = each(evidence[number], labels[number])
        assert all(isinstance(result, np.ndarray) for result in one)
        for ours, theirs in zip(one, mapped, strict=True):
            assert isinstance(theirs, jax.Array)
            np.testing.assert_array_equal(ours, theirs[number])


def test_no_images_are_no_answers():
    none, labels = np.zeros((0, 4, 5, 3)), np.zeros(0, int)
    results = [
        patchguard.robust_masking_rule(none, window=1),
        patchguard.detection_rule(none, window=1, tau=0.1),
        patchguard.detection_worst_case(none, labels, window=1, tau=0.1),
        patchguard.as_published(none, labels, window=1),
        *(
            patchguard.robust_masking_worst_case(none, labels, window=1, **options)
            for options in ({}, {"threshold": 0.3}, {"threshold": 0.3, "exact": True})
        ),
        clipped_bagnet.rule(none),
        clipped_bagnet.worst_case(none, labels, window=1),
        clipped_bagnet.runner_up_as_published(none, labels, window=1),
    ]
    assert [one.shape for one in results] == [(0,)] * len(results)


def test_bad_inputs_are_named():
    evidence, labels = np.zeros((2, 4, 3, 5)), np.array([0, 4])
    worst = partial(patchguard.robust_masking_worst_case, evidence, window=2)
    for call, words in (
        (lambda: worst(labels, threshold=1), "threshold: expected a number from 0 to below 1"),
        (lambda: worst(labels, threshold=-0.1), "threshold: expected a number from 0 to below 1"),
        (lambda: worst(labels, clip=0), "clip: expected a number above 0"),
        (lambda: worst(labels, clip=math.nan), "clip: expected a number above 0"),
        (lambda: worst([0, 5]), "labels: expected classes from 0 to 4"),
        (lambda: worst([-1, 0]), "labels: expected classes from 0 to 4"),
        (lambda: worst([0.0, 1.0]), "labels: expected one integer for each"),
        (lambda: worst([0]), "labels: expected one integer for each"),
        (lambda: worst(labels, ties="smallest"), "ties: expected None or 'largest'"),
        (lambda: worst(labels, window=4), "window: 4 x 4 cells are more than the 4 x 3"),
        (lambda: worst(labels, window=0), "window: expected 1 or more"),
        (lambda: worst(labels, window=(1, 2, 3)), "window: expected a whole number"),
        (lambda: worst(labels, window=1.5), "window: expected a whole number"),
        (
            lambda: patchguard.robust_masking_rule(evidence[0], window=2),
            r"evidence: expected \[images, height, width, classes\]",
        ),
        (
            lambda: patchguard.robust_masking_rule(evidence.astype(str), window=2),
            "evidence: expected real numbers",
        ),
        (
            lambda: patchguard.as_published(evidence, labels, window=2, program="x"),
            "program: expected one of",
        ),
        (
            lambda: patchguard.detection_rule(evidence, window=2, tau=1.0),
            "tau: expected a confidence",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="exact: expected evidence that is known"):
        jax.jit(partial(patchguard.robust_masking_worst_case, window=2, exact=True))(
            jnp.asarray(evidence, jnp.float32), jnp.asarray(labels, jnp.int32)
        )


def test_the_window_that_a_patch_reaches():
    """By enumeration of all places: the closed form, less what the border spares."""
    for patch, field, stride, size in itertools.product(
        (1, 2, 5, 8), (1, 3, 9), (1, 2, 3, 8), (9, 20, 32)
    ):
        if patch > size or field > size:
            continue
        cells = range((size - field) // stride + 1)
        reached = [
            sum(i * stride < at + patch and i * stride + field > at for i in cells)
            for at in range(size - patch + 1)
        ]
        given = {"field": field, "stride": stride}
        rows, _ = patchguard.reached_window(patch, image_size=size, **given)
        assert rows == max(1, *reached)
        closed = patchguard.reached_window(patch, **given)
        assert closed == (-(-(patch + field - 1) // stride),) * 2
        assert rows <= max(1, closed[0])
    assert patchguard.reached_window(32, field=17, stride=8) == (6, 6)
    assert patchguard.reached_window((30, 32), field=(17, 9), stride=8) == (6, 5)
    with pytest.raises(ValueError, match=r"patch: .* do not fit into the image"):
        patchguard.reached_window(33, field=17, stride=8, image_size=32)
    with pytest.raises(ValueError, match="stride: expected 1 or more"):
        patchguard.reached_window(3, field=3, stride=0)
