"""How many masked images the answers of a defense alone take, from a table of its verdicts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.inference.early_exit import Question, next_wave
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import UNKNOWN, PredictionTable

Evaluate = Callable[[NDArray[np.intp], NDArray[np.intp]], Outputs]
"""(rows ``[W]``, columns ``[W]`` of the table) -> what the model says, NumPy arrays ``[W]``."""


def first_wave(defense: Defense) -> int:
    """What every answer takes at least: the masked images that are asked for before any is known.

    A guarded classifier evaluates them all at once, whatever the image.
    """
    return len(defense.open_columns(Seen.nothing(len(defense.masked_images)), None))


def answers_alone(
    table: PredictionTable, defense: Defense, evaluate: Evaluate
) -> NDArray[np.int32]:
    """Masked images that a guarded classifier evaluates for each image, ``int32[T]``.

    See ``answer_waves``, of which it has the sums.
    """
    waves = answer_waves(table, defense, evaluate)
    return np.array([sum(of_one) for of_one in waves], np.int32)


def answer_waves(table: PredictionTable, defense: Defense, evaluate: Evaluate) -> list[list[int]]:
    """Masked images that a guarded classifier asks for at once, wave by wave, for each of T images.

    What the table holds is looked up. A table that early exit made for verdicts may lack some of
    what the answer alone asks for, as that is asked for in another order: it is evaluated, all
    images together, and thrown away.

    Args:
      table: T images, evaluated for this defense.
      defense: whose answers are asked for.
      evaluate: the model on items that the table lacks.
    """
    columns = table.columns(defense.masked_images)
    said = Outputs(*(np.array(np.asarray(column)[:, columns]) for column in table))
    there = said.predictions != UNKNOWN
    known = np.zeros(there.shape, np.bool_)
    question = Question(defense, np.arange(len(columns)))
    waves: list[list[int]] = [[] for _ in known]
    waiting = list(range(len(known)))
    while waiting:
        wanted = {
            row: next_wave(Seen.in_row(said, row, known[row]), [question], None, ())
            for row in waiting
        }
        waiting = [row for row in waiting if len(wanted[row])]
        if not waiting:
            break
        for row in waiting:
            waves[row].append(len(wanted[row]))
        rows = np.repeat(waiting, [len(wanted[row]) for row in waiting]).astype(np.intp)
        asked = np.concatenate([wanted[row] for row in waiting]).astype(np.intp)
        lacking = ~there[rows, asked]
        if lacking.any():
            at = rows[lacking], asked[lacking]
            for column, new in zip(said, evaluate(at[0], columns[at[1]]), strict=True):
                column[at] = np.asarray(new)
        known[rows, asked] = True
    return waves
