"""Which masked images may be chosen to say a label: numbers on which rules turn, and rows."""

from __future__ import annotations

import numpy as np

import certmask_jax as cm
from certmask_jax.attacks.table_goals import counts_of
from certmask_jax.attacks.wanted_labels import Case, Choices

TARGET, LABEL = 2, 0


def _boxes(*masks):
    """Masks by number, two at most: ``int32[V, 2, 4]``, of which each is one row of pixels."""
    made = np.zeros((len(masks), 2, 4), np.int32)
    for column, numbers in enumerate(masks):
        for at, number in enumerate(numbers):
            made[column, at] = number, 0, number + 1, 8
    return made


def test_as_many_of_the_easiest_are_chosen_as_rules_turn_on():
    """One, two, half, all but two, all, as many as hide the place, k, and one more of each."""
    random = np.random.default_rng(0)
    shown = random.permutation(26) < 20
    lag = random.permutation(26).astype(float)
    case = Case(0, shown, lag, TARGET, LABEL)
    chosen = Choices(_boxes(*((n,) for n in range(26))), counts=(14,)).of(case, np.full(26, LABEL))
    assert {count for _, count in chosen} == {1, 2, 3, 6, 7, 10, 11, 12, 14, 15, 18, 19, 20}
    easiest = [n for n in np.argsort(lag) if shown[n]]
    for columns, count in chosen:
        assert sorted(easiest[:count]) == np.flatnonzero(columns).tolist()


def test_pairs_are_chosen_as_first_round_and_as_rows():
    """The row of a mask that hides the place is no choice unless what hides it too says so."""
    masks = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    shown = np.asarray([False, True, True, False, False, True])  # the place is in mask 0
    case = Case(0, shown, np.zeros(6), TARGET, LABEL)

    def others(clean):
        made = Choices(_boxes(*masks)).of(case, np.asarray(clean))
        return [np.flatnonzero(columns).tolist() for columns, count in made if not count]

    # In each row of a mask that shows the place a pair hides it, and says the label.
    assert others([LABEL] * 6) == []
    # The pair of 0 and 2 says the target by itself: then so can the whole row of mask 2.
    assert others([LABEL, LABEL, LABEL, LABEL, TARGET, LABEL]) == [[2, 5]]


def test_what_a_rule_turns_on_is_how_many_masks_hide_every_place():
    masks = cm.mask_sets.exact_k_fold(8, 3, mask_size=5, coverage=(2, 1))
    assert counts_of(cm.defenses.certmask(masks)) == (2,)
    assert counts_of(None) == ()
