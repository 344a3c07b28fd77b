"""The search over candidates: what it keeps, what it drops, and what it says of what it dropped."""

from __future__ import annotations

import math

import numpy as np
import pytest

from certmask_jax.certification.successive_halving import (
    Demand,
    Measured,
    front,
    halve,
    mean_interval,
    paired_interval,
    rungs,
    search,
)


def _measured(certified, passes, right=None, demands=()):
    certified = np.asarray(certified, float)
    passes = np.broadcast_to(np.asarray(passes, float), certified.shape)
    right = certified > 0 if right is None else np.asarray(right, bool)
    return Measured(certified, passes, right, tuple(demands))


def _share(count, of):
    return np.arange(of) < count


def test_the_paired_interval_is_agresti_and_mins():
    """Half an image more in each of the four cells, worked out on a sheet."""
    one = [1, 1, 1, 0, 1, 1, 0, 0, 1, 0]  # 3 only here, 1 only there
    other = [0, 0, 0, 1, 1, 1, 0, 0, 1, 0]
    only, only_other, count = 3.5, 1.5, 12
    middle = (only - only_other) / count
    error = math.sqrt(only + only_other - (only - only_other) ** 2 / count) / count
    low, high = paired_interval(one, other)
    assert low == pytest.approx(middle - 1.96 * error, abs=1e-5)
    assert high == pytest.approx(middle + 1.96 * error, abs=1e-5)


def test_few_images_without_a_difference_prove_little():
    low, high = paired_interval([1, 1], [1, 1])
    assert low < -0.4
    assert high > 0.4


def test_each_round_sees_twice_as_many_images():
    assert rungs(500, 20) == [32, 63, 125, 250, 500]
    assert rungs(500, 3) == [250, 500]
    assert rungs(20, 20) == [20]
    assert rungs(40, 20) == [20, 40]
    assert rungs(100, 1) == [100]


def _on_the_front(known, budget):
    """By the definition, one by one; nobody here is equal to another."""
    within = [one for one in known if known[one].cost <= budget]
    return {
        one
        for one in within
        if not any(
            known[other].cost <= known[one].cost
            and known[other].worth >= known[one].worth
            and other != one
            for other in within
        )
    }


def _table(seed, candidates=14, images=400):
    """A stored table: candidates of growing cost that certify more, some worse than they cost."""
    rng = np.random.default_rng(seed)
    cost = rng.choice(np.arange(5, 200), candidates, replace=False)
    chance = 0.2 + 0.12 * np.log(cost) * rng.uniform(0.3, 1, candidates)
    hard = rng.random((images, 1))  # an image is hard for all of them
    noise = rng.normal(0, 0.1, (images, candidates))
    return cost, (hard + noise < chance)


@pytest.mark.parametrize("seed", range(8))
def test_halving_loses_no_more_of_the_exhaustive_front_than_it_says(seed):
    cost, certified = _table(seed)
    looked_at = []

    def measure(left, images):
        looked_at.append(len(left))
        return [_measured(certified[:images, one], cost[one]) for one in left]

    whole = search(len(cost), [400], measure, budget=120, may_lose=1)
    assert whole.dropped == ()
    assert set(whole.front) == _on_the_front(whole.measured, 120)
    looked_at.clear()
    halved = search(len(cost), rungs(400, len(cost)), measure, budget=120, may_lose=1)
    assert looked_at == sorted(looked_at, reverse=True)
    assert looked_at[-1] < looked_at[0]
    lost = set(whole.front) - set(halved.front)
    by = {drop.candidate: drop for drop in halved.dropped}
    for one in lost:  # what is lost is lost by no more than what was said
        assert by[one].why == "beaten"
        best = max(
            whole.measured[kept].worth
            for kept in halved.front
            if whole.measured[kept].cost <= whole.measured[one].cost
        )
        assert whole.measured[one].worth - best <= by[one].at_most
    assert [whole.measured[one].cost for one in halved.front] == sorted(
        whole.measured[one].cost for one in halved.front
    )


def test_halving_finds_the_exhaustive_front_where_candidates_differ_clearly():
    """Twelve candidates on 256 images: six on a front, six that cost the same and certify less."""
    images = np.random.default_rng(0).permutation(256)
    good = [(10 * k, images < 40 * k) for k in range(1, 7)]
    poor = [(10 * k + 1, images < 40 * k - 35) for k in range(1, 7)]
    table = [*good, *poor]
    evaluated = [0]

    def measure(left, count):
        evaluated[0] += len(left) * count
        return [_measured(table[one][1][:count], table[one][0]) for one in left]

    whole = search(12, [256], measure, budget=55, may_lose=0.05)
    exhaustive, evaluated[0] = evaluated[0], 0
    halved = search(12, rungs(256, 12), measure, budget=55, may_lose=0.05)
    assert halved.front == whole.front == (0, 1, 2, 3, 4)
    assert evaluated[0] < 0.9 * exhaustive
    assert {drop.candidate for drop in halved.dropped} >= {5, 11}  # dearer than the budget


@pytest.mark.parametrize("may_lose", [1, 0.2, 0.1])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_on_the_front_of_a_round_is_never_dropped(seed, may_lose):
    cost, certified = _table(seed, images=24)
    known = {one: _measured(certified[:, one], cost[one]) for one in range(len(cost))}
    dropped = halve(known, budget=1e9, may_lose=may_lose)
    gone = {drop.candidate for drop in dropped}
    assert not gone & _on_the_front(known, 1e9)
    for drop in dropped:
        other = known[drop.by]
        assert drop.by not in gone
        assert other.cost <= known[drop.candidate].cost
        assert other.worth >= known[drop.candidate].worth
        _, high = paired_interval(known[drop.candidate].certified, other.certified)
        assert drop.at_most == pytest.approx(max(0, high))
        assert drop.at_most <= may_lose
    most = max(7, len(_on_the_front(known, 1e9)))  # half of them, or the front
    left = len(known) - len(gone)
    assert left <= most or may_lose < 1
    if any(drop.at_most > 0 for drop in dropped):  # no more goes than has to, unless surely
        assert left >= most


def test_a_candidate_goes_for_its_cost_only_beyond_the_interval():
    within, dear = [20, 40] * 8, [39, 41] * 8  # means of 30 and 40
    known = {0: _measured(_share(8, 16), within), 1: _measured(_share(16, 16), dear)}
    assert mean_interval(within)[0] < 29 < 30 < mean_interval(within)[1]
    assert [(d.candidate, d.why) for d in halve(known, budget=29, may_lose=1)] == [(1, "budget")]
    assert halve(known, budget=40, may_lose=1) == []
    assert front(known, budget=29) == ()
    assert front(known, budget=30) == (0,)
    assert front(known, budget=40) == (0, 1)


def test_a_demand_that_is_not_met_hopelessly_drops_and_one_within_the_interval_does_not():
    def of(count):
        return _measured(_share(16, 16), 5, demands=[Demand(_share(count, 16), 0.9, "clean")])

    known = {0: of(4), 1: of(14), 2: of(16)}
    dropped = halve(known, budget=9, may_lose=1)
    assert dropped[0][:3] == (0, 16, "clean")
    assert front({1: of(14)}, budget=9) == ()
    assert front(known, budget=9) == (2,)


def test_what_meets_no_demand_drops_nobody_who_does():
    demand = Demand(_share(8, 16), 0.6, "clean"), Demand(_share(12, 16), 0.6, "clean")
    cheap = _measured(_share(16, 16), 5, demands=demand[:1])
    good = _measured(_share(10, 16), 9, demands=demand[1:])
    assert [d.candidate for d in halve({0: cheap, 1: good}, budget=99, may_lose=1)] == []
    assert front({0: cheap, 1: good}, budget=99) == (1,)


def test_of_equals_the_more_accurate_stays_then_the_first():
    same = [_measured(_share(8, 16), 5, _share(count, 16)) for count in (9, 12, 12)]
    assert front(dict(enumerate(same)), budget=9) == (1,)


def test_no_candidate_is_refused_and_none_left_is_no_front():
    with pytest.raises(ValueError, match="candidates: expected at least 1"):
        search(0, [10], lambda left, images: [], budget=1, may_lose=1)
    halved = search(
        2, [16, 32], lambda left, n: [_measured(np.ones(n), 9)] * len(left), budget=1, may_lose=1
    )
    assert halved.front == ()
    assert [drop.why for drop in halved.dropped] == ["budget", "budget"]
