"""Early exit of one round: what is left out could not have changed an answer or a verdict."""

from __future__ import annotations

import numpy as np
import pytest
from covers import random_cover
from early_exit_cases import CLASSES, evaluated, facts, filled_in, random_table

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses.certmask_early_exit import most_telling, undecided
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.tables.prediction_table import NO_LABEL, UNKNOWN


def _detectors(rng, count):
    for _ in range(count):
        if rng.random() < 0.5:
            masks = mask_sets.exact_k_fold((6, 7), 2, mask_size=4, coverage=2)
        else:
            masks = random_cover(rng, int(rng.integers(1, 9)), 6, 2)
        masks = mask_sets.repeated(masks, coverage=int(rng.integers(1, 3)))
        tolerance = int(rng.integers(0, (len(masks) + 1) // 2))
        yield defenses.certmask_detection(masks, tolerance=tolerance)


def _steer(weights, tolerance):
    def ask(seen, label):
        is_open = undecided(weights, tolerance, seen).any()
        return most_telling(seen, label) if is_open else np.zeros(0, np.intp)

    return ask


def _differs(rng, defense, steer):
    """Whether steering by ``steer`` changes an answer or a verdict; and how much it leaves out."""
    table, labels = random_table(rng, defense, 64)
    known = evaluated(rng, defense, table, labels, ask=steer)
    whole = facts(defense, table, labels)
    fillings = [filled_in(table, known, UNKNOWN, np.inf, 0)]
    fillings += [filled_in(table, known, rng.integers(0, CLASSES, known.shape), 1, 0)]
    differs = any(
        (values != whole[fact]).any()
        for filled in fillings
        for fact, values in facts(defense, filled, labels).items()
    )
    return differs, (~known).sum()


def test_verdicts_of_the_detector_are_those_of_the_whole_table():
    rng = np.random.default_rng(0)
    outcomes = [_differs(rng, defense, defense.open_columns) for defense in _detectors(rng, 12)]
    assert not any(differs for differs, _ in outcomes)
    assert sum(left_out for _, left_out in outcomes) > 50


@pytest.mark.parametrize("off", [-1, -2])
def test_mutant_that_stops_a_vote_too_early_is_caught(off):
    rng = np.random.default_rng(1)
    caught = 0
    for defense in _detectors(rng, 8):
        votes = len(defense.mask_set) // len(defense.masked_images)
        weights = np.full(len(defense.masked_images), votes, np.int32)
        steer = _steer(weights, defense.options["tolerance"] + off)
        caught += _differs(rng, defense, steer)[0]
    assert caught > 0


def test_by_hand():
    steer = _steer(np.array([1, 2, 1, 1], np.int32), 2)
    margins = np.array([4, 1, 2, 3], np.float16)

    def ask(labels, label=0):
        known = np.array([said is not None for said in labels])
        predictions = np.array([7 if said is None else said for said in labels])
        return steer(Seen(predictions, margins, known), label).tolist()

    nothing = [None] * 4
    assert sorted(ask(nothing)) == [0, 1, 2, 3]
    assert ask(nothing, None) == [0, 1, 2, 3]
    assert ask([0, None, None, 0]) == [2, 1]  # 3 1/3 and 3 2/3 of the margins between 4 and 3
    assert ask([0, 1, None, None]) == [2, 3]  # two votes for 1, one for 0: 1 can still have three
    assert ask([0, 1, 2, None]) == [3]  # two dissent from 1, no more than may
    assert ask([0, 1, 2, NO_LABEL]) == []
    assert ask([0, None, 2, NO_LABEL]) == [1]
    steer = _steer(np.array([1, 2, 1, 1], np.int32), 1)
    assert ask([0, None, 2, None]) == [3, 1]
    assert ask([0, None, 2, NO_LABEL]) == []  # two dissent from any label
