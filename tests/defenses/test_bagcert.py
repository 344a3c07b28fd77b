"""BagCert: its votes of regions against every score that a patch can give, and by hand."""

from __future__ import annotations

import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracle_small_fields as oracle
import pytest
from many_cases import cases

from certmask_jax.defenses import bagcert
from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.masks.threats import Threat

CELLS, CLASSES = (2, 4), 3
TINY = float(np.finfo(np.float32).tiny)


@functools.cache
def _cases(window, threshold):
    """Evidence, labels, and who is fooled if ties are as in the rule, or always lost."""
    random = np.random.default_rng(window[0] * 10 + window[1])
    count = cases(800)
    labels = random.integers(0, CLASSES, count)
    # Some evidence is the threshold itself, which does not exceed it.
    steps = random.choice([-2, -2, -0.25, 0, 0.25], (count, *CELLS, CLASSES))
    steps[np.arange(count), ..., labels] += random.choice([0, 3, 3, 3], (count, *CELLS))
    evidence = (threshold + steps).astype(np.float32)
    fooled, lost = np.zeros(count, bool), np.zeros(count, bool)
    order = np.argsort(np.arange(CLASSES)[None, :] == labels[:, None], axis=1, kind="stable")
    fixed = evidence.reshape(count, -1, CLASSES)
    for box in oracle.windows(CELLS, window):
        # Every score of every cell in the window.
        for bits in itertools.product((False, True), repeat=len(box) * CLASSES):
            attacked = fixed.copy()
            scores = np.reshape(bits, (len(box), CLASSES))
            attacked[:, box] = np.where(scores, threshold + 1, threshold)
            attacked = attacked.reshape(evidence.shape)
            fooled |= oracle.most_regions(attacked, threshold) != labels
            last = np.take_along_axis(attacked, order[:, None, None, :], axis=-1)
            lost |= oracle.most_regions(last, threshold) != CLASSES - 1
    return evidence, labels, fooled, lost


GAMES = [((1, 1), 0.0), ((1, 2), 0.5), ((2, 1), -1.25), ((1, 1), -3.0)]


@pytest.mark.parametrize(("window", "threshold"), GAMES)
def test_worst_case_against_every_score_in_every_window(window, threshold):
    evidence, labels, fooled, lost = _cases(window, threshold)
    given = {"window": window, "threshold": threshold}
    answers = bagcert.rule(evidence, threshold=threshold)
    np.testing.assert_array_equal(answers, oracle.most_regions(evidence, threshold))
    np.testing.assert_array_equal(bagcert.worst_case(evidence, labels, **given), ~fooled)
    np.testing.assert_array_equal(bagcert.worst_case(evidence, labels, **given, ties=None), ~lost)
    published = bagcert.every_location_as_published(evidence, labels, **given)
    np.testing.assert_array_equal(published, ~lost)
    assert 20 < (~lost).sum() < (~fooled).sum() < len(labels) - 20


def test_these_cases_tell_the_condition_from_others_that_are_near_it():
    """Equality that passes, the runner-up alone, twice the reach, ``>=`` at the threshold."""
    evidence, labels, _, lost = _cases((1, 2), 0.5)

    def holds(*, least=1, times=1, of_all=True, scores=evidence > 0.5):
        flat = scores.reshape(len(labels), -1, CLASSES).astype(int)
        rows = np.arange(len(labels))
        totals = flat.sum(axis=1)
        totals[rows, labels] = -1
        kept = np.ones(len(labels), bool)
        for box in oracle.windows(CELLS, (1, 2)):
            outside = np.delete(flat, box, axis=1).sum(axis=1)
            leads = outside[rows, labels][:, None] - outside - times * len(box)
            leads[rows, labels] = 99
            least_lead = leads.min(axis=1) if of_all else leads[rows, totals.argmax(axis=1)]
            kept &= least_lead >= least
        return kept

    np.testing.assert_array_equal(holds(), ~lost)
    for mutant in (
        {"least": 0}, {"times": 2}, {"of_all": False}, {"scores": evidence >= 0.5}
    ):  # fmt: skip
        assert (holds(**mutant) != ~lost).any(), mutant


def test_by_hand_a_class_behind_the_runner_up_wins():
    """15 regions in a row, windows of 3. Bee scores in all, cow in 10 and ant in 9.

    Every window has 2 of cow's, so 12 of bee's stay against 8 and at most 3 more: bee is 1 ahead.
    The first window has none of ant's. If it scores for ant alone, ant has 12 as well, and wins
    the tie. With one more region bee is ahead of ant too.
    """
    ant, bee = np.arange(15) >= 6, np.ones(15, bool)
    cow = np.arange(15) % 3 < 2
    evidence = np.where(np.stack([ant, bee, cow], axis=-1), 2, -2).reshape(1, 1, 15, 3)
    label = np.ones(1, int)
    assert bagcert.region_scores(evidence)[0, 0].sum(axis=0).tolist() == [9, 15, 10]
    assert bagcert.rule(evidence) == 1
    window = {"window": (1, 3)}
    assert not bagcert.worst_case(evidence, label, **window)
    without_ant = evidence[..., 1:]
    assert bagcert.worst_case(without_ant, label - 1, **window, ties=None)
    attacked = evidence.copy()
    attacked[0, 0, :3] = 2, -2, -2
    assert bagcert.rule(attacked) == 0
    # Of equals the smallest, so in the other order the tie is bee's; the paper's has no order.
    swapped = evidence[..., [1, 0, 2]]
    assert bagcert.rule(attacked[..., [1, 0, 2]]) == 0
    assert bagcert.worst_case(swapped, label - 1, **window)
    assert not bagcert.every_location_as_published(swapped, label - 1, **window)
    longer = np.concatenate([evidence, [[[[-2, 2, -2]]]]], axis=2)
    assert bagcert.worst_case(longer, label, **window, ties=None)
    places = bagcert.at_places(jnp.asarray(longer, jnp.float32), jnp.ones(1, jnp.int32), **window)
    # 13 of bee against 9 - (how many in the window) and 3, and against 8 and 3, or 9 and 3 at the
    # end; ant wins ties and cow does not.
    in_window = np.convolve(np.append(ant, False), [1, 1, 1], "valid")
    of_cow = 10 - np.convolve(np.append(cow, False), [1, 1, 1], "valid")
    wanted = np.minimum(13 - (9 - in_window) - 3, 13 - of_cow - 3 + 1)
    assert places.leads[0].tolist() == wanted.tolist()
    assert wanted.min() == 1


def test_a_tie_of_nobodys_votes_is_the_smallest_labels():
    nothing = np.zeros((1, 2, 2, 3), np.float32)
    assert bagcert.rule(nothing) == 0
    assert not bagcert.worst_case(nothing, [0], window=1)


def test_any_numbers_traced_and_bad_inputs():
    random = np.random.default_rng(4)
    labels = random.integers(0, 4, 60)
    evidence = random.normal(0, 1, (60, 5, 5, 4)).astype(np.float32)
    evidence[np.arange(60), ..., labels] += 1.4
    tease = np.float32([1e8, -1e8, 3e38, -3e38, 1e-40, 0, 20, np.inf, -np.inf, np.nan])
    robust = bagcert.worst_case(evidence, labels, window=2)
    assert 10 < robust.sum() < 60
    for _ in range(20):
        attacked = evidence.copy()
        top, left = random.integers(0, 4, 2)
        attacked[:, top : top + 2, left : left + 2] = random.choice(tease, (60, 2, 2, 4))
        np.testing.assert_array_equal(bagcert.rule(attacked)[robust], labels[robust])
    damaged = evidence.copy()
    damaged[:, 0, 0, 0] = [np.nan, np.inf, -np.inf] * 20
    assert not bagcert.worst_case(damaged, labels, window=2).any()
    assert not bagcert.every_location_as_published(damaged, labels, window=2).any()

    worst = jax.jit(lambda u, y: bagcert.worst_case(u, y, window=2))
    traced = worst(jnp.asarray(evidence), jnp.asarray(labels, jnp.int32))
    assert isinstance(traced, jax.Array)
    np.testing.assert_array_equal(traced, robust)
    for call, words in (
        (lambda: bagcert.rule(evidence, threshold=np.inf), "threshold: .* between -1024 and 1024"),
        (lambda: bagcert.rule(evidence, threshold=np.nan), "threshold: .* between -1024 and 1024"),
        (lambda: bagcert.rule(evidence[0]), r"evidence: expected \[images"),
        (
            lambda: bagcert.worst_case(evidence, labels, window=6),
            "window: 6 x 6 cells are more than the 5 x 5",
        ),
        (
            lambda: bagcert.worst_case(evidence, labels + 4, window=2),
            "labels: expected classes from 0 to 3",
        ),
        (
            lambda: bagcert.worst_case(evidence, labels, window=2, ties="largest"),
            "ties: expected None or 'smallest'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_scores_are_the_same_wherever_they_are_counted(kind):
    """Numbers that some devices take for 0 score for nothing, at every threshold near 0."""
    least = np.finfo(np.float32).tiny
    given = np.float32([-least, -1e-40, -0.0, 0, 1e-40, least / 2, least, 1, np.inf, np.nan])
    evidence = kind(given.reshape(1, 1, 1, -1))
    positive = [False] * 6 + [True, True, True, False]
    for threshold in (0.0, 1e-40, -1e-40):
        scores = bagcert.region_scores(evidence, threshold=threshold)
        assert isinstance(scores, type(evidence))
        assert scores.dtype == bool
        assert scores[0, 0, 0].tolist() == positive
    at_one = bagcert.region_scores(kind(np.float32([[[[1, np.nextafter(np.float32(1), 2)]]]])),
                                   threshold=1)  # fmt: skip
    assert at_one[0, 0, 0].tolist() == [False, True]


def test_the_papers_condition_is_about_the_cells_that_are_reached():
    """Two of four quarters speak for the label, none for the other, which loses ties.

    A patch in their half leaves 1 against 1, and in the other half 2 against 1.
    """
    evidence = np.zeros((1, 2, 2, 2), np.float32)
    evidence[..., 1, 0] = 1
    for region, strictly in (((0, 0, 4, 2), True), ((0, 2, 4, 4), False)):
        defense = BagCert(Threat.of(4, 1, region=region), field=2, stride=2)
        results = defense.results(jnp.asarray(evidence), jnp.zeros(1, jnp.int32))
        assert results.worst_case.tolist() == [True]
        assert results.conditions["every_location"].tolist() == [strictly]


@pytest.mark.parametrize("threshold", [0.0, 0.5, float(np.float32(0.1))])
@pytest.mark.parametrize("guard", [1e-40, 2 * TINY, 0.1, 3.3])
def test_within_a_guard_a_vote_is_sure_or_possible_as_fractions_say(threshold, guard):
    """Numbers around each end, and numbers that are flushed to 0, on both sides of the guard."""
    drawn = np.random.default_rng(0).normal(0, 2, 200)
    numbers = [*drawn, *np.round(drawn * 8) / 8, 0, TINY, -TINY, TINY / 2, -TINY / 2, 1e8, 1.75]
    numbers = np.asarray(numbers, np.float32)
    evidence = np.stack([numbers, numbers], axis=-1).reshape(1, -1, 1, 2)
    votes = bagcert._units_against(evidence, np.zeros(1, np.int32), threshold, guard)
    half, least = Fraction(guard) / 2, Fraction(float(np.float32(threshold)))
    inside = half * Fraction(10**12 - 1, 10**12)
    for number, (sure, possible) in zip(numbers.tolist(), votes[0, :, 0].tolist(), strict=True):
        low, high = Fraction(number) - half, Fraction(number) + half
        steps = [Fraction(0), Fraction(TINY), -Fraction(TINY), least, least + half / 10**12]
        tried = [Fraction(number), Fraction(number) - inside, Fraction(number) + inside]
        tried += [one for one in steps if low < one < high]
        scores = [(0 if abs(one) < Fraction(TINY) else one) > least for one in tried]
        assert not sure or all(scores)
        assert possible or not any(scores)
