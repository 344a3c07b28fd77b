"""The certificate of interval bounds on tables, by exhaustion; and what is still undecided."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from certmask_jax import defenses, mask_sets
from certmask_jax.certification.report import records
from certmask_jax.defenses import Seen
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.tables.outputs import CERTAIN, UNKNOWN
from certmask_jax.tables.prediction_table import from_labels


def _cover(hidden, width):
    boxes = np.zeros((len(hidden), max(map(len, hidden)), 4), int)
    for mask, pixels in zip(boxes, hidden, strict=True):
        mask[: len(pixels)] = [[0, pixel, 1, pixel + 1] for pixel in pixels]
    return MaskSet(boxes, (1, width), (1, 1))


COVERS = {
    "places": _cover([[0], [1], [2]], 3),
    "twice": _cover([[0, 1], [1, 2], [0, 2]], 3),
    "one is enough": _cover([[0, 1, 2], [1, 2], [0]], 3),
}
SAID = [(0, True), (0, False), (1, True), (1, False)]  # label, and whether it is certain


def _table(defense, rows, known=None):
    labels = np.array([[label for label, _ in row] for row in rows])
    certain = np.array([[sure for _, sure in row] for row in rows])
    if known is not None:
        labels = np.where(known, labels, UNKNOWN)
    return from_labels(
        labels,
        defense.masked_images,
        num_classes=2,
        margins=np.where(certain, 1.0, 0.0),
        confidences=np.where(certain, CERTAIN, 0.0),
    )


def _unmasked(defense):
    boxes = defense.masked_images.boxes
    return int(np.flatnonzero((boxes[..., 2] == boxes[..., 0]).all(axis=1))[0])


@pytest.mark.parametrize("name", COVERS)
def test_the_worst_case_is_a_certain_mask_at_every_place(name):
    """Every table of labels that are certain or not, against the definition in plain words."""
    defense = defenses.IntervalBounds(COVERS[name])
    unmasked = _unmasked(defense)
    rows = list(itertools.product(SAID, repeat=len(defense.masked_images)))
    table = _table(defense, rows)
    for label in (0, 1):
        expected = [
            row[unmasked] == (label, True)
            and all(
                any(row[column] == (label, True) for column in np.flatnonzero(group))
                for group in defense.groups
            )
            for row in rows
        ]
        labels = np.full(len(rows), label)
        np.testing.assert_array_equal(defense.worst_case(table, labels), expected)
        np.testing.assert_array_equal(defense.certificate(table, labels), expected)
        assert 0 < sum(expected) < len(rows)
    np.testing.assert_array_equal(defense.rule(table), [row[unmasked][0] for row in rows])


@pytest.mark.parametrize("name", COVERS)
def test_nothing_but_what_is_undecided_changes_an_answer_or_a_verdict(name):
    defense = defenses.IntervalBounds(COVERS[name])
    count = len(defense.masked_images)
    rows = list(itertools.product(SAID, repeat=count))
    table = _table(defense, rows)
    verdicts = {label: defense.worst_case(table, np.full(len(rows), label)) for label in (0, 1)}
    answers = defense.rule(table)
    left_out = 0
    for known in map(np.array, itertools.product((False, True), repeat=count)):
        for part in itertools.product(SAID, repeat=int(known.sum())):
            agree = np.array(
                [
                    tuple(np.array(row, object)[known].tolist()) == ()
                    or all(
                        row[column] == said
                        for column, said in zip(np.flatnonzero(known), part, strict=True)
                    )
                    for row in rows
                ]
            )
            seen = _seen(known, part)
            for label in (None, 0, 1):
                undecided = defense.undecided(seen, label)
                assert not (undecided & known).any()
                left_out += int((~known & ~undecided).sum())
                facts = [answers] if label is None else [answers, verdicts[label]]
                told = np.flatnonzero(known | undecided)
                seen_as = [tuple(rows[i][column] for column in told) for i in np.flatnonzero(agree)]
                for fact in facts:
                    by_told = {}
                    for key, value in zip(seen_as, fact[agree].tolist(), strict=True):
                        assert by_told.setdefault(key, value) == value, (known, part, label)
                wanted = defense.open_columns(seen, label)
                assert undecided[wanted].all()
                assert (len(wanted) > 0) == undecided.any()
    assert left_out > 0


def _seen(known, part):
    labels, margins, trust = np.full(len(known), 77), np.full(len(known), 7.0), np.zeros(len(known))
    labels[known] = [label for label, _ in part]
    margins[known] = [1.0 if certain else 0.0 for _, certain in part]
    trust[known] = [CERTAIN if certain else 0.0 for _, certain in part]
    return Seen(labels, margins.astype(np.float16), known, trust.astype(np.float16))


def test_a_table_of_a_plain_model_proves_nothing():
    defense = defenses.IntervalBounds(mask_sets.budgeted_grid(8, 1, mask_stride=1))
    labels = np.zeros((3, len(defense.masked_images)), int)
    table = from_labels(labels, defense.masked_images, num_classes=10)
    assert table.confidences.max() <= 1
    assert not defense.worst_case(table, [0, 0, 0]).any()


def test_what_it_is():
    defense = defenses.IntervalBounds(mask_sets.budgeted_grid(8, 1, mask_stride=1))
    assert defense.name == records.BY_BOUNDS
    assert not defense.exact
    assert defense.guarantee == "recovery"
    assert len(defense.masked_images) == 65
