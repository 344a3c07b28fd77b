"""PatchCURE's rule by exhaustion: every table of few labels, against every attack on it."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
from defense_cases import hidden_of, robust_of

from certmask_jax import defenses, mask_sets
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.tables.prediction_table import from_labels

COVERS = {
    "one mask a place": mask_sets.budgeted_grid((1, 3), (1, 1), mask_stride=1),
    "the paper's": mask_sets.budgeted_grid((1, 5), (1, 2), mask_stride=(1, 2)),
    "redundant": MaskSet(
        [[[0, 0, 1, 2]], [[0, 1, 1, 3]], [[0, 0, 1, 1]], [[0, 2, 1, 3]]], (1, 3), (1, 1)
    ),
}


@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_verdicts_are_exact_on_every_table(cover, classes):
    defense = defenses.patchcure(COVERS[cover])
    count = len(defense.masked_images)
    if classes**count > 1000:
        rng = np.random.default_rng(0)
        rows = rng.choice(classes, (400, count), p=[0.8, *[0.2 / (classes - 1)] * (classes - 1)])
    else:
        rows = np.array(list(itertools.product(range(classes), repeat=count)))
    table = from_labels(rows.astype(np.int16), defense.masked_images, num_classes=classes)
    labels = np.zeros(len(rows), np.int32)
    pair = unions(defense.mask_set, 2)[1]
    images = unions(defense.mask_set, 2)[0]
    own = table.columns(images)
    base = next(c for c, boxes in enumerate(defense.masked_images.boxes) if not boxes.any())
    expected = [oracle.patchcure(row[own[pair]], row[base]) for row in rows]
    np.testing.assert_array_equal(defense.rule(table), expected)
    robust = robust_of(defense, table, labels, hidden_of(defense, defense.threat))
    verdicts = defense.verdicts(table, labels)
    np.testing.assert_array_equal(verdicts["worst_case"], robust)
    np.testing.assert_array_equal(verdicts["certificate"], robust)
    correct = verdicts["two_mask_correct"]
    np.testing.assert_array_equal(correct, (rows[:, own[np.unique(pair)]] == 0).all(axis=1))
    assert not (correct & ~robust).any()
    assert 0 < robust.sum() < len(rows)
    more = (robust & ~correct).any()  # where a mask is needless its row need not be good
    assert more == (cover == "redundant")
