"""Every defense against every sort of threat: rule, proofs, early exit, by literal oracles.

What is checked of one is checked of all: see ``defense_cases.CASES``.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from defense_cases import (
    CASES,
    SORTS,
    hidden_of,
    pair_cover_set,
    random_set,
    random_table,
    robust_of,
    smaller,
)
from early_exit_cases import evaluated, filled_in

from certmask_jax.defenses import Defense, Guarantee, adversary
from certmask_jax.tables.outputs import NO_LABEL, UNKNOWN

TABLES = 320  # a mask set
SETS = 5
EARLY = 40  # of these through early exit
MOST_CHOICES = 800  # of the attacker at one placement


def _built(case, rng, sort):
    """A defense whose tables can be exhausted, of what its masks were built for or of less."""
    while True:
        own_sets = case.particular and sort in ("one patch", "region")
        masks = pair_cover_set(rng) if own_sets else random_set(rng, sort)
        against = smaller(rng, masks.threat) if rng.random() < 0.4 else None
        try:
            defense = case.build(masks, against=against)
        except ValueError:
            assert case.particular
            if sort != "one patch":  # refuses what it cannot prove; others are drawn
                sort = SORTS[int(rng.integers(len(SORTS)))]
            continue
        hidden = hidden_of(defense, defense.threat)
        num_classes = int(rng.integers(2, 4))
        if (num_classes * len(case.trusts)) ** int((~hidden).sum(axis=0).max()) <= MOST_CHOICES:
            assert defense == case.build(masks, against=against)
            return defense, hidden, num_classes


@pytest.mark.parametrize("name", CASES)
def test_rule_and_proofs_are_those_of_the_literal_oracles(name):
    """1,600 random tables for each defense, over mask sets for every sort of threat."""
    case = CASES[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    proved = left_out = 0
    for number, sort in zip(range(SETS), itertools.cycle(SORTS), strict=False):
        defense, hidden, num_classes = _built(case, rng, sort)
        table, labels = random_table(rng, defense, TABLES, num_classes)
        answers, verdicts = defense.rule(table), defense.verdicts(table, labels)
        if case.literal is not None:
            rule, trusts = case.literal(defense, num_classes), table.confidences.astype(float)
            rows = zip(table.predictions, trusts, strict=True)
            np.testing.assert_array_equal(answers, [rule(row, trust) for row, trust in rows])
        robust = robust_of(defense, table, labels, hidden, choices=case.trusts)
        worst, certified = verdicts["worst_case"], verdicts["certificate"]
        if defense.exact:
            np.testing.assert_array_equal(worst, robust)
        assert not (worst & ~robust).any()
        assert not (certified & ~worst).any()
        proved += worst.sum()
        left_out += _check_early_exit(rng, defense, table, labels, answers, verdicts)
        if number < 4:
            _check_certified_labels(defense, table, hidden, answers, case.trusts)
            _check_adversary(defense, table, labels, hidden, robust, case.trusts)
    assert proved > 0 or name.startswith("certmask")
    assert left_out == 0 or type(defense).undecided is not Defense.undecided


def _check_early_exit(rng, defense, table, labels, answers, verdicts):
    """What is left out changes nothing, whatever it holds."""
    known = np.ones(table.predictions.shape, bool)
    part = table.take(slice(EARLY), np.arange(known.shape[1]), table.masked_images)
    known[:EARLY] = evaluated(rng, defense, part, labels[:EARLY])
    anything = rng.integers(0, table.num_classes, known.shape)
    for filled in (
        filled_in(table, known, UNKNOWN, np.inf, 0),
        filled_in(table, known, anything, 1, rng.random(known.shape)),
    ):
        np.testing.assert_array_equal(defense.rule(filled), answers)
        for fact, values in defense.verdicts(filled, labels).items():
            np.testing.assert_array_equal(values, verdicts[fact], err_msg=fact)
    return int((~known).sum())


def _check_certified_labels(defense, table, hidden, answers, trusts):
    """Without a true label: every patched version of the image gets the label that is certified."""
    labels = defense.certified_labels(table)
    given = labels != NO_LABEL
    np.testing.assert_array_equal(labels[given], answers[given])
    if defense.guarantee == Guarantee.RECOVERY:
        robust = robust_of(defense, table, np.maximum(labels, 0), hidden, choices=trusts)
        assert robust[given].all()


def _check_adversary(defense, table, labels, hidden, robust, trusts):
    """The package's own exhaustion, which users audit rules with, says the same."""
    for i in range(3):
        assert robust[i] == adversary.worst_case(
            defense.row_rule,
            table.predictions[i],
            hidden.T,
            int(labels[i]),
            num_classes=table.num_classes,
            guarantee=defense.guarantee,
            confidences=table.confidences[i].astype(float),
            confidence_choices=trusts,
        )
