"""Early exit of one round: what is left out could not have changed an answer or a verdict."""

from __future__ import annotations

import numpy as np
import pytest
from covers import random_cover
from early_exit_cases import CLASSES, evaluated, facts, filled_in, random_table

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses.detector_early_exit import (
    most_telling,
    undecided_agreement,
    undecided_dissent,
)
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
        is_open = undecided_agreement(weights, tolerance, seen).any()
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


def _minority_reports(rng, count):
    for _ in range(count):
        masks = random_cover(rng, int(rng.integers(2, 12)), 6, 2)
        yield defenses.MinorityReports(masks, tau=float(rng.choice([0, 0.25, 0.5, 0.9])))


def test_verdicts_of_minority_reports_are_those_of_the_whole_table():
    rng = np.random.default_rng(2)
    outcomes = [_differs(rng, each, each.open_columns) for each in _minority_reports(rng, 12)]
    assert not any(differs for differs, _ in outcomes)
    assert sum(left_out for _, left_out in outcomes) > 50


@pytest.mark.parametrize("mutant", ["whoever dissents", "a lower tau", "whoever is alone"])
def test_mutant_of_minority_reports_that_stops_too_early_is_caught(mutant):
    rng = np.random.default_rng(3)
    caught = 0
    for defense in _minority_reports(rng, 12):
        images, tau = defense.masked_images, defense.tau
        unmasked = int(
            np.flatnonzero((images.boxes[..., 2] == images.boxes[..., 0]).all(axis=1))[0]
        )
        others = np.setdiff1d(np.arange(len(images)), unmasked)

        def ask(seen, label, of=others, base=unmasked, tau=tau):
            if mutant == "whoever dissents":
                seen = seen._replace(confidences=np.ones(len(seen.known)))
            elif mutant == "a lower tau":
                tau = tau / 2
            elif len(np.unique(seen.predictions[seen.known])) > 1:
                return np.zeros(0, np.intp)
            is_open = undecided_dissent(of, base, tau, seen).any()
            return most_telling(seen, label) if is_open else np.zeros(0, np.intp)

        caught += _differs(rng, defense, ask)[0]
    assert caught > 0


def test_minority_reports_by_hand():
    """Masks 0 to 2, and the image itself at 3; 0.5 is no more than tau."""

    def is_open(labels, trust, tau=0.5):
        known = np.array([said is not None for said in labels])
        predictions = np.array([7 if said is None else said for said in labels])
        seen = Seen(predictions, np.ones(4, np.float16), known, np.array(trust, np.float16))
        return undecided_dissent(np.arange(3), 3, tau, seen).tolist()

    sure = [0.9] * 4
    assert is_open([None, None, None, None], sure) == [True] * 4
    assert is_open([None, 0, None, 0], sure) == [True, False, True, False]
    assert is_open([None, 1, None, 0], sure) == [False] * 4  # an alert
    assert is_open([None, 1, None, 0], [0.9, 0.5, 0.9, 0.1]) == [True, False, True, False]
    assert is_open([None, 1, None, 0], [0.9, 0.501, 0.9, 0.1]) == [False] * 4
    assert is_open([0, 1, None, None], sure) == [False] * 4  # one of them dissents
    assert is_open([0, 1, None, None], [0.9, 0.2, 0.9, 0.9]) == [False, False, True, True]
    blind = Seen(
        np.array([1, 1, 1, 0]), np.ones(4, np.float16), np.array([True, False, True, True])
    )
    assert undecided_dissent(np.arange(3), 3, 0.0, blind).tolist() == [False, True, False, False]


def test_minority_reports_asks_for_the_image_itself_first():
    defense = defenses.MinorityReports(mask_sets.budgeted_grid(12, 2, masks_per_axis=4))
    nothing = Seen.nothing(len(defense.masked_images))
    first = defense.open_columns(nothing, 0)
    boxes = defense.masked_images.boxes[first[0]]
    assert (boxes[..., 2] == boxes[..., 0]).all()
    assert len(first) in (8, 9)
    assert len(defense.open_columns(nothing, None)) == len(defense.masked_images)
