"""How busy training keeps the device: steps a second with real input, and with one batch repeated.

certmask train ... --measure-input
"""

from __future__ import annotations

import dataclasses
import itertools
import time

import jax
import numpy as np

from certmask_jax.models import Params
from certmask_jax.training import input_pipeline
from certmask_jax.training.input_pipeline import Source
from certmask_jax.training.step import Trainer, TrainState

_WARM_UP = 5
_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class InputMeasure:
    """Medians of a few rounds; each round takes its measurements one after the other."""

    real: float  # steps a second, images read, decoded and sent as in training
    constant: float  # steps a second, the same batch again and again: the device at its busiest
    input_alone: float  # batches a second, nothing trained
    busy: float  # share of the time in which the device computes: real over constant of a round

    def __str__(self) -> str:
        return (
            f"{self.real:.2f} steps/s with real input, {self.constant:.2f} with one batch held "
            f"constant; the device is busy {100 * min(1.0, self.busy):.0f}% of the time; the input "
            f"alone gives {self.input_alone:.2f} batches/s"
        )


def measure(made: Trainer, source: Source, params: Params | None, *, steps: int) -> InputMeasure:
    """Trains ``3 * 2 * steps`` steps for nothing and says how fast.

    Args:
      made: what would train.
      source: what would be trained on; its first images are the constant batch.
      params: variables to start from; random ones by default.
      steps: of each measurement.
    """
    batch = made.recipe.batch_size
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    constant = made.put(source.gather(np.arange(batch)), key)
    plan = input_pipeline.epoch_plan(0, 0, images=len(source), batch_size=batch)
    state = made.start(params)
    for _ in range(_WARM_UP):
        state, _ = made.step(state, constant)

    def real() -> object:
        numbers = itertools.islice(itertools.cycle(plan.numbers), steps)
        return input_pipeline.prefetched(numbers, lambda n: made.put(source.gather(n), key))

    def trained(state: TrainState, batches: object) -> tuple[TrainState, float]:
        jax.block_until_ready(state)
        start = time.perf_counter()
        for one in batches:  # type: ignore[attr-defined]
            state, measures = made.step(state, one)
            jax.block_until_ready(measures)
        return state, steps / (time.perf_counter() - start)

    rounds = []
    for _ in range(_ROUNDS):
        state, held = trained(state, itertools.repeat(constant, steps))
        state, fed = trained(state, real())
        start = time.perf_counter()
        for one in real():  # type: ignore[attr-defined]
            jax.block_until_ready(one)
        rounds.append((fed, held, steps / (time.perf_counter() - start), fed / held))
    return InputMeasure(*(float(v) for v in np.median(rounds, axis=0)))
