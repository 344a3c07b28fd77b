"""What answers alone take, from tables that early exit made for verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from small_runs import PARAMS, SmallTestSet, linear

import certmask_jax as cm
from certmask_jax.certification.answer_passes import answers_alone, first_wave
from certmask_jax.tables.outputs import UNKNOWN

GRID = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=3)
DEFENSES = [
    cm.defenses.double_masking(GRID),
    cm.defenses.challenger_masking(GRID),
    cm.defenses.pair_cover(cm.pair_covers.pair_cover(8, 1, budget=10)),
]
IMAGES = SmallTestSet(count=12).images


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda one: one.name)
def test_passes_are_those_of_the_guard_itself_whatever_the_table_lacks(defense):
    table = cm.predict(linear, PARAMS, IMAGES, defense.masked_images)
    guard = cm.defended(linear, PARAMS, defense, channels=1)
    expected = guard(IMAGES).masked_images
    assert len(set(expected.tolist())) > 1  # they differ, or this says little
    assert expected.min() >= first_wave(defense)

    def never(rows, columns):
        raise AssertionError("the whole table lacks nothing")

    assert answers_alone(table, defense, never).tolist() == expected.tolist()

    hidden = np.random.default_rng(0).random(table.predictions.shape) < 0.4
    partial = cm.PredictionTable.of(
        table.map(lambda column: np.array(column)), table.masked_images, table.num_classes
    )
    partial.predictions[hidden] = UNKNOWN
    asked = []

    def evaluate(rows, columns):
        assert hidden[rows, columns].all()
        asked.extend(zip(rows.tolist(), columns.tolist(), strict=True))
        return table.map(lambda column: np.asarray(column)[rows, columns])

    assert answers_alone(partial, defense, evaluate).tolist() == expected.tolist()
    assert len(asked) == len(set(asked)) > 0
