"""What a program hears of a run while it goes on, and how it stops it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.tables.prediction_table import PredictionTable


class Step(NamedTuple):
    """What was done since the last call of ``progress``, in masked images."""

    settled: int  # evaluated, or found needless
    evaluated: int
    slots: int  # of chunks, which hold those evaluated and what was left empty
    total: int  # all that this call of ``evaluate`` is about
    is_new: bool  # whether it was done now, or in an earlier session
    stems: int = 0  # passes of a stem that were made beside these
    stem_slots: int = 0  # and with those left empty


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a program wants to hear of, and when it wants to stop.

    Attributes:
      progress: called some times a second or more.
      block: called with the images of each block that count, from the disk or new: a table, and
        labels ``int32[b]``.
      warn: told in a line of what happened to damaged blocks, or to the chunk.
      stop: asked before each block; true ends the evaluation there.
    """

    progress: Callable[[Step], None] = lambda step: None
    block: Callable[[PredictionTable, NDArray[np.int32]], None] = lambda table, labels: None
    warn: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False


@dataclasses.dataclass(frozen=True)
class EvidenceHooks:
    """What a program wants to hear of defenses on evidence, and when it wants to stop.

    Attributes:
      progress: told of the images of its share that are done, and of all these, after each block.
      warn: told in a line of what happened to damaged blocks or images.
      stop: asked before each block; true ends the evaluation there.
      passes: told of the passes of a block, and of the places for passes that these took.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    warn: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False
    passes: Callable[[int, int], None] = lambda useful, slots: None
