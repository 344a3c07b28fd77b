"""The oracle itself, on cases small enough to do by hand."""

from __future__ import annotations

import numpy as np
import oracle
import pytest


@pytest.mark.parametrize(
    ("k", "votes"),
    [(2, "yyyyzz"), (2, "yyyzz"), (2, "yyyzzzzz"), (1, "y" * 35 + "z")],
)
def test_vote_counts_that_break_certmask_although_all_clean_votes_are_true(k, votes):
    """Soundness, 2.1: covering masks say y, the attacker's say z, and z wins."""
    labels = [0 if v == "y" else 1 for v in votes]
    assert oracle.certmask_rule(labels, k) == 1


def test_double_masking_by_hand():
    # Mask 2 disagrees with the majority 0 and stands by its label with every second mask.
    stands = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 1]])
    assert oracle.double_masking(stands) == 1
    falls = np.array([[0, 0, 1], [0, 0, 0], [1, 0, 1]])
    assert oracle.double_masking(falls) == 0
    tie = np.array([[0, 0], [0, 1]])
    assert [oracle.double_masking(tie, t) for t in ("largest", "smallest")] == [0, 0]
    tie = np.array([[0, 2], [2, 1]])
    assert [oracle.double_masking(tie, t) for t in ("largest", "smallest")] == [1, 0]


def test_challenger_masking_by_hand():
    # 0 against 1: T = 1, so 1 takes over; 1 against 2 (label 2): T = 2, so 2 wins.
    table = np.array([[0, 1, 0], [1, 1, 2], [0, 2, 2]])
    assert oracle.challenger_masking(table) == 2
    # Neither label: the challenger retires, and the game ends.
    table = np.array([[0, 2, 2], [2, 1, 2], [2, 2, 1]])
    assert oracle.challenger_masking(table) == 0


def test_tolerant_detection_by_hand():
    assert oracle.tolerant_detection([1, 1, 1, 0], 1) == 1
    assert oracle.tolerant_detection([1, 1, 0, 0], 1) == oracle.ALERT


def test_minimum_by_hand():
    assert oracle.minimum_k_fold(5, 2, 3, 1) == 2  # 4 locations, 2 a mask
    assert oracle.minimum_k_fold(5, 2, 3, 2) == 4


def test_adversary_by_hand():
    hidden = np.array([[True, False], [False, True]])

    def first(row):
        return int(row[0])

    assert not oracle.table_adversary(first, [0, 0], hidden, 0, 2)
    assert oracle.table_adversary(first, [0, 0], hidden[:, :1], 0, 2)
