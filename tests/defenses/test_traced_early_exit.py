"""What an answer still needs, inside a compiled program: the rule's answer, from part of a table.

``undecided`` is the oracle, which is held against its definition by exhaustion elsewhere.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from early_exit_cases import CLASSES, random_table

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import Seen
from certmask_jax.defenses.over_tables import Row
from certmask_jax.inference import guard_graph
from certmask_jax.masks import pair_covers
from certmask_jax.masks.distinct_unions import unions
from certmask_jax.tables.outputs import SCHEMA, UNKNOWN, Outputs
from certmask_jax.tables.prediction_table import PredictionTable

GRID = mask_sets.budgeted_grid((8, 8), 2, masks_per_axis=3)
SMALL = mask_sets.budgeted_grid((6, 6), 1, masks_per_axis=2)
BLOCKS = pair_covers.pairs_of_blocks((12, 12), (2, 2), rows=(3, 3))
PLANE = pair_covers.pairs_of_blocks((1, 9), (1, 1), rows=(4,))

CASES = {
    "double masking": defenses.double_masking(GRID),
    "smallest": defenses.double_masking(mask_sets.repeated(GRID, coverage=2), ties="smallest"),
    "two sets": defenses.double_masking(
        SMALL, mask_sets.budgeted_grid((6, 6), 1, masks_per_axis=3)
    ),
    "challenger masking": defenses.challenger_masking(GRID),
    "patchcure": defenses.patchcure(GRID),
    "pair cover": defenses.pair_cover(BLOCKS),
    "pair cover of four": defenses.pair_cover(PLANE, ties="smallest"),
    "mrcert": defenses.mrcert(SMALL),
    "mrcert of nine": defenses.mrcert(GRID),
    "detection": defenses.certmask_detection(GRID),
}
ALWAYS_WHOLE = ("detection",)
ROWS = 300


@functools.partial(jax.jit, static_argnums=(0, 2))
def _run(defense, outputs, at_once):
    """What the loop of a guard knows in the end, where a table stands in for the model."""
    count = len(defense.masked_images)

    def needs(so_far, known):
        row = Row(so_far.predictions.astype(jnp.int32), so_far.confidences.astype(jnp.float32))
        return defense.row_needs(row, known)

    def of_row(row):
        def evaluate(columns):
            return row.map(lambda column: column[jnp.minimum(columns, count - 1)])

        return guard_graph.evaluated(evaluate, needs, count, at_once)

    return jax.vmap(of_row)(outputs)


def _left(name, at_once):
    """A random table, and the part of it that the loop evaluated."""
    defense = CASES[name]
    table = random_table(np.random.default_rng(1), defense, ROWS)[0]
    whole = Outputs(*(jnp.asarray(getattr(table, column)) for column in SCHEMA))
    outputs, known = _run(defense, whole, at_once)
    part = PredictionTable.of(outputs.map(np.asarray), defense.masked_images, CLASSES)
    return table, part, np.asarray(known)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_the_whole_table(name):
    defense = CASES[name]
    table, part, known = _left(name, 3)
    np.testing.assert_array_equal(part.predictions[known], table.predictions[known])
    assert (part.predictions[~known] == UNKNOWN).all()
    np.testing.assert_array_equal(defense.rule(part), defense.rule(table))
    for row, margins, told in zip(part.predictions, part.margins, known, strict=True):
        assert not defense.undecided(Seen(row, margins, told), None).any()
    if name in ALWAYS_WHOLE:
        assert known.all()
    else:
        assert known.mean() < 0.9
        assert len(np.unique(known.sum(axis=1))) > 2


def test_double_masking_looks_at_rows_of_masks_that_disagree_and_no_others():
    pair = unions(GRID, 2)[1]
    table, _, known = _left("double masking", len(CASES["double masking"].masked_images))
    seen = 0
    for row, told in zip(table.predictions, known, strict=True):
        single = row[pair.diagonal()]
        values, counts = np.unique(single[single >= 0], return_counts=True)
        most = values[counts == counts.max()].max()
        wanted = np.zeros(len(row), bool)
        wanted[pair.diagonal()] = True
        wanted[pair[single != most]] = True
        np.testing.assert_array_equal(told, wanted)
        seen += wanted.all()
    assert seen < ROWS / 2


def test_a_location_of_a_pair_cover_that_agrees_is_all_that_is_looked_at():
    defense = CASES["pair cover"]
    table, _, known = _left("pair cover", 64)
    agree = (table.predictions == table.predictions[:, :1]).all(axis=1)
    agree &= table.predictions[:, 0] >= 0
    assert agree.any()
    assert (known[agree].sum(axis=1) == defense.groups.sum(axis=1).min()).all()
