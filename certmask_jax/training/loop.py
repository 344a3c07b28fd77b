"""The loop over epochs and steps: it measures, saves, resumes and stops."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.models import Params
from certmask_jax.tables.prediction_table import check_labels
from certmask_jax.training import checkpoints, input_pipeline
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.input_pipeline import Source
from certmask_jax.training.log import LogRow
from certmask_jax.training.step import DeviceBatch, Measures, Trainer

# The host runs this many steps ahead of what it has seen the result of.
_STEPS_IN_FLIGHT = 4


class Trained(NamedTuple):
    """What a run leaves."""

    params: Params
    rows: tuple[LogRow, ...]  # one an epoch
    step: int  # steps done
    finished: bool  # False when it stopped before the recipe's end


class Progress(NamedTuple):
    """Where a run stands; told after every step."""

    step: int  # steps done
    steps: int  # all that it is to do
    loss: float  # of a step a few steps ago; NaN before any is known
    rows: tuple[LogRow, ...]


class Saving(NamedTuple):
    """What a run leaves on its way, and when it stops: as in ``train``."""

    saved: Checkpoints | None
    checkpoint_every: int | None
    max_steps: int | None
    should_stop: Callable[[], bool] | None
    progress: Callable[[Progress], None] | None


def run_steps(
    made: Trainer,
    source: Source,
    params: Params | None,
    accuracy: Callable[[Params], float] | None,
    saving: Saving,
) -> Trained:
    """All steps that are still to do, from the latest checkpoint if there is one.

    Args:
      made: the trainer.
      source: what its batches come from.
      params: variables to start from; random ones by default.
      accuracy: of variables, on what is held out.
      saving: what is kept, and when it stops.

    Raises:
      ValueError, FloatingPointError: as ``train``.
    """
    saved, checkpoint_every, max_steps, should_stop, progress = saving
    run = _Run(made, saved, params, accuracy)
    total = made.steps_per_epoch * made.recipe.epochs
    last = total if max_steps is None else min(total, max_steps)
    batches = input_pipeline.prefetched(
        itertools.islice(_work(made, run.step, len(source)), max(0, last - run.step)),
        lambda item: _put(made, source, *item),
    )
    for batch in batches:
        run.advance(batch)
        ends_epoch = run.step % made.steps_per_epoch == 0
        if ends_epoch:
            run.finish_epoch()
        asked = should_stop is not None and should_stop()
        stops = run.step < total and (asked or run.step == last)
        if ends_epoch or stops or (checkpoint_every and run.step % checkpoint_every == 0):
            run.save(scored=ends_epoch)
        if progress is not None:
            progress(Progress(run.step, last, run.last_loss, tuple(run.rows)))
        if stops:
            batches.close()
            break
    return Trained(made.result(run.state), tuple(run.rows), run.step, run.step == total)


class _Run:
    """The changing part of a run."""

    def __init__(
        self,
        made: Trainer,
        saved: Checkpoints | None,
        params: Params | None,
        accuracy: Callable[[Params], float] | None,
    ) -> None:
        self._made, self._saved, self._accuracy = made, saved, accuracy
        self._in_flight: deque[tuple[int, Measures]] = deque()
        self.rows: list[LogRow] = []
        self.last_loss = float("nan")
        self._loss_sum, self._correct, self._images = 0.0, 0, 0
        self.state = made.start(params)
        self.step = 0
        latest = None if saved is None else saved.latest()
        if latest is not None:
            self.state = made.place(checkpoints.restored(latest.arrays, self.state))
            self.step = latest.step
            self.rows = [LogRow(*row) for row in latest.about["rows"]]
            self._loss_sum, self._correct, self._images = latest.about["totals"]
        self._since = (time.perf_counter(), self.step)

    def advance(self, batch: DeviceBatch) -> None:
        """One step, and the news of the step a few steps ago."""
        self.state, measures = self._made.step(self.state, batch)
        self.step += 1
        self._in_flight.append((self.step, measures))
        if len(self._in_flight) > _STEPS_IN_FLIGHT:
            self._collect()

    def finish_epoch(self) -> None:
        """Adds a row."""
        self._drain()
        images = (self.step - self._since[1]) * self._made.recipe.batch_size
        speed = images / max(1e-9, time.perf_counter() - self._since[0])
        row = LogRow(
            step=self.step,
            epoch=self.step / self._made.steps_per_epoch,
            loss=self._loss_sum / self._images,
            accuracy=self._correct / self._images,
            held_out_accuracy=None if self._accuracy is None else self._accuracy(self._result()),
            learning_rate=self._rate(),
            images_per_second=round(speed, 1),
        )
        self.rows.append(row)
        self._loss_sum, self._correct, self._images = 0.0, 0, 0
        self._since = (time.perf_counter(), self.step)

    def _result(self) -> Params:
        """The model as it would be returned now."""
        return self._made.result(self.state)

    def save(self, *, scored: bool) -> None:
        """Writes a checkpoint, if its numbers are good."""
        if self._saved is None:
            return
        self._drain()
        state = jax.device_get(self.state)
        bad = [n for n, a in checkpoints.named_arrays(state).items() if not _is_finite(a)]
        if bad:
            raise self._broken(f"{bad[0]} is not finite after step {self.step}")
        about = {"rows": self.rows, "totals": [self._loss_sum, self._correct, self._images]}
        score = self.rows[-1].held_out_accuracy if scored else None
        self._saved.save(self.step, state, about, score=score)

    @reproducible()
    def _rate(self) -> float:
        """The learning rate of the last step."""
        return float(self._made.rate(self.step - 1))

    def _drain(self) -> None:
        while self._in_flight:
            self._collect()

    def _collect(self) -> None:
        step, measures = self._in_flight.popleft()
        batch = self._made.recipe.batch_size
        measures = jax.device_get(measures)
        self.last_loss = float(measures.loss)
        if not np.isfinite(self.last_loss):
            raise self._broken(f"the loss is {self.last_loss} at step {step}")
        self._loss_sum += self.last_loss * batch
        self._correct += int(measures.correct)
        self._images += batch

    def _broken(self, what: str) -> FloatingPointError:
        steps = [] if self._saved is None else self._saved.steps()
        kept = f"; the last good checkpoint is of step {steps[-1]}" if steps else ""
        return FloatingPointError(f"{what}; try a smaller learning_rate{kept}")


def _work(
    made: Trainer, first: int, images: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
    """Numbers and key of each step's batch, from step ``first`` to the end."""
    recipe = made.recipe
    for epoch in range(first // made.steps_per_epoch, recipe.epochs):
        plan = input_pipeline.epoch_plan(
            recipe.seed, epoch, images=images, batch_size=recipe.batch_size
        )
        keys = jax.device_get(jax.random.key_data(plan.keys))
        skipped = max(0, first - epoch * made.steps_per_epoch)
        yield from list(zip(plan.numbers, keys, strict=True))[skipped:]


def _put(
    made: Trainer, source: Source, numbers: NDArray[np.int64], key: NDArray[np.uint32]
) -> DeviceBatch:
    pixels = source.gather(numbers)
    check_labels(pixels.labels, len(numbers), made.model.num_classes)
    return made.put(pixels, key)


def _is_finite(array: NDArray[Any]) -> bool:
    return bool(np.isfinite(array.astype(np.float32)).all())
