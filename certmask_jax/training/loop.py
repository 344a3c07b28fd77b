"""The loop over epochs and steps: it measures, saves, resumes and stops."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.inference.whole_table import predict
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model, Params
from certmask_jax.tables.prediction_table import check_labels
from certmask_jax.training import checkpoints, input_pipeline
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.input_pipeline import Source
from certmask_jax.training.log import Row
from certmask_jax.training.recipes import Recipe
from certmask_jax.training.step import DeviceBatch, Measures, Trainer, trainer

# The host runs this many steps ahead of what it has seen the result of.
_STEPS_IN_FLIGHT = 4
_HELD_OUT_AT_ONCE = 256


class Trained(NamedTuple):
    """What a run leaves."""

    params: Params
    rows: tuple[Row, ...]  # one an epoch
    step: int  # steps done
    finished: bool  # False when it stopped before the recipe's end


class Progress(NamedTuple):
    """Where a run stands; told after every step."""

    step: int  # steps done
    steps: int  # all that it is to do
    loss: float  # of a step a few steps ago; NaN before any is known
    rows: tuple[Row, ...]


def train(
    model: Model,
    source: Source,
    *,
    recipe: Recipe,
    params: Params | None = None,
    cutout_masks: Sequence[MaskSet] = (),
    held_out: Source | None = None,
    mesh: Mesh | None = None,
    saved: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    max_steps: int | None = None,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Trains a model; goes on from the latest checkpoint if there is one.

    Args:
      model: what to train.
      source: images ``uint8[h, w, c]`` of the model's input size, and labels.
      recipe: how.
      params: variables to start from; random ones by default.
      cutout_masks: see ``trainer``.
      held_out: images whose accuracy (unmasked, one prediction each) is measured after each epoch;
        it scores the checkpoints.
      mesh: 1-D mesh; all devices by default.
      saved: where checkpoints go and come from.
      checkpoint_every: steps between checkpoints, beside one after each epoch.
      max_steps: the run stops after so many steps, counted from its very beginning, or at its end
        if that comes first. What was done is the beginning of the whole run, learning rates and
        all, and may be resumed.
      should_stop: asked after each step; True writes a checkpoint and returns.
      progress: called after each step.

    Raises:
      ValueError: for bad images, labels, masks or batch sizes, or a checkpoint of another state.
      FloatingPointError: when a loss or a parameter is no longer finite; checkpoints before stay.
    """
    check_images(source.gather(np.arange(1)).images, model.data_config.input_size)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every: expected at least 1 step, got {checkpoint_every}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1 step, got {max_steps}")
    made = trainer(model, recipe, num_images=len(source), cutout_masks=cutout_masks, mesh=mesh)
    run = _Run(made, saved, params, held_out)
    total = made.steps_per_epoch * recipe.epochs
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
        held_out: Source | None,
    ) -> None:
        self._made, self._saved, self._held_out = made, saved, held_out
        self._in_flight: deque[tuple[int, Measures]] = deque()
        self.rows: list[Row] = []
        self.last_loss = float("nan")
        self._loss_sum, self._correct, self._images = 0.0, 0, 0
        self.state = made.start(params)
        self.step = 0
        latest = None if saved is None else saved.latest()
        if latest is not None:
            self.state = made.place(checkpoints.restored(latest.arrays, self.state))
            self.step = latest.step
            self.rows = [Row(*row) for row in latest.about["rows"]]
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
        row = Row(
            step=self.step,
            epoch=self.step / self._made.steps_per_epoch,
            loss=self._loss_sum / self._images,
            accuracy=self._correct / self._images,
            held_out_accuracy=None if self._held_out is None else self._accuracy(),
            learning_rate=self._rate(),
            images_per_second=round(speed, 1),
        )
        self.rows.append(row)
        self._loss_sum, self._correct, self._images = 0.0, 0, 0
        self._since = (time.perf_counter(), self.step)

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

    def _accuracy(self) -> float:
        """The accuracy on held-out images of the model as it would be returned now."""
        assert self._held_out is not None
        model, correct = self._made.model, 0
        config = model.data_config
        for start in range(0, len(self._held_out), _HELD_OUT_AT_ONCE):
            stop = min(start + _HELD_OUT_AT_ONCE, len(self._held_out))
            pixels = self._held_out.gather(np.arange(start, stop))
            table = predict(
                model.apply_fn,
                self._made.result(self.state),
                pixels.images,
                distinct_unions.unmasked(config.input_size),
                preprocessing=Preprocessing(mean=config.mean, std=config.std),
                views=self._made.recipe.views,
                chunk=_HELD_OUT_AT_ONCE,
                mesh=self._made.mesh,
            )
            correct += int((table.predictions[:, 0] == pixels.labels).sum())
        return correct / len(self._held_out)

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
