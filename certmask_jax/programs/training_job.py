"""A training, from its options to the weights: what ``certmask train`` does."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from certmask_jax import predict, training, weights
from certmask_jax._text import counted
from certmask_jax.models import Params
from certmask_jax.programs import measure_input, opened_training, recipe_options
from certmask_jax.programs.opened_training import TrainingJob
from certmask_jax.programs.training_options import check_uses
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.input_pipeline import Streamed
from certmask_jax.training.log import LogRow, write_csv, write_picture
from certmask_jax.training.step import trainer
from certmask_jax.training.training_images import seen_by

_STOPPED = 143  # as the shell reports a program that SIGTERM ended


def run(arguments: argparse.Namespace) -> int:
    """Trains, writes, evaluates on the test split; returns the exit status."""
    check_uses(arguments, recipe_options.read(arguments))
    folder = arguments.run_folder
    options = opened_training.options_of_model(arguments)
    name = options.model.rpartition(":")[2]  # of a model by import path, its function's
    out = arguments.out or (folder or Path("runs")) / f"{name}.npz"
    if out.exists() and not (arguments.overwrite or arguments.resume or arguments.measure_input):
        raise FileExistsError(f"--out {out}: exists already; --overwrite replaces it")
    weights.check_writable(out)
    job = opened_training.opened(arguments, options)
    if arguments.measure_input:
        made = trainer(job.model, job.recipe, num_images=len(job.source), cutout_masks=job.masks)
        print(measure_input.measure(made, job.source, job.params, steps=arguments.measure_input))
        return 0
    saved = None
    if folder is not None:
        saved = Checkpoints(
            folder / "checkpoints",
            run=job.identity,
            keep_best=arguments.keep_best,
            resume=arguments.resume,
        )
    trained = _train(job, saved, folder, arguments)
    _say_unreadable(job.streamed)
    if folder is not None:
        _write_log(folder, trained.rows, title=f"{job.model.name} on {arguments.dataset}")
    tried = arguments.max_steps is not None and trained.step >= arguments.max_steps
    if not trained.finished:
        tail = " (--max-steps)" if tried else ""
        on = "; --resume goes on from there" if folder is not None else ""
        print(f"stopped after step {trained.step}{tail}{on}", file=sys.stderr)
        if not tried:
            return _STOPPED
    weights.save(out, trained.params, card=options.card_for(job.model))
    print(f"{out}: {_evaluated(job, trained.params, arguments.test_images)}")
    return 0


def _train(
    job: TrainingJob, saved: Checkpoints | None, folder: Path | None, arguments: argparse.Namespace
) -> training.Trained:
    """The run with its progress bar, its CSV, and SIGTERM as a request to stop."""
    written = -1
    with (
        _asked_to_stop(listens=saved is not None) as should_stop,
        contextlib.ExitStack() as bars,
    ):
        bar = features = None

        def advance_features(done: int, of_all: int) -> None:
            nonlocal features
            if features is None or features.total != of_all or done <= features.n:
                features = bars.enter_context(_bar("image", "features", of_all))
            features.update(done - features.n)
            if done == of_all:
                features.close()

        def advance(now: training.Progress) -> None:
            nonlocal written, bar
            if bar is None:
                bar = bars.enter_context(_bar("step", "training", now.steps))
                bar.initial = now.step - 1  # of a resumed run, so that the time left is true
                bar.n = now.step - 1
            if now.loss == now.loss:  # NaN before the first is known
                bar.set_postfix(loss=f"{now.loss:.3f}", refresh=False)
            bar.update(now.step - bar.n)
            if folder is not None and len(now.rows) != written:
                write_csv(folder / "metrics.csv", now.rows)
                written = len(now.rows)

        try:
            return training.train(
                job.model,
                job.source,
                recipe=job.recipe,
                params=job.params,
                cutout_masks=job.masks,
                held_out=job.held_out,
                saved=saved,
                checkpoint_every=arguments.checkpoint_every,
                max_steps=arguments.max_steps,
                should_stop=should_stop,
                progress=advance,
                features_progress=advance_features,
            )
        finally:
            if saved is not None:
                saved.close()


def _bar(unit: str, what: str, total: int) -> Any:
    return tqdm(total=total, unit=unit, desc=what, mininterval=1)


@contextlib.contextmanager
def _asked_to_stop(*, listens: bool) -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come; without a run folder SIGTERM just ends."""
    asked: list[int] = []
    if not listens:
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def _evaluated(job: TrainingJob, params: Params, count: int) -> str:
    """Clean and certified accuracy on test images that are spread evenly over the split."""
    chosen = np.linspace(0, len(job.test_set) - 1, min(count, len(job.test_set))).round()
    held_out = [job.test_set.read(int(i), int(i) + 1) for i in chosen]
    labels = np.concatenate([one.labels for one in held_out])
    defense, about, apply_fn = job.at_the_end
    table = predict(
        apply_fn,
        params,
        np.concatenate([one.images for one in held_out]),
        defense.masked_images,
        preprocessing=seen_by(job.model),
        views=job.recipe.views,
    )
    clean = np.mean(defense.rule(table) == labels)
    robust = np.mean(defense.worst_case(table, labels))
    on = f"on {counted(len(labels), 'test image')}"
    return f"{on}, {about}: clean {clean:.3f}, certified {robust:.3f}"


def _write_log(folder: Path, rows: Sequence[LogRow], *, title: str) -> None:
    write_csv(folder / "metrics.csv", rows)
    try:
        write_picture(folder / "curves.png", rows, title=title)
    except ImportError as error:
        print(f"no picture of the curves ({error}); pip install 'certmask_jax[plots]'")


def _say_unreadable(streamed: Streamed) -> None:
    for number, why in sorted(streamed.unreadable.items())[:10]:
        print(f"unreadable image {number}: {why}", file=sys.stderr)
    if streamed.unreadable:
        print(
            f"{counted(len(streamed.unreadable), 'image')} could not be read; the next ones "
            "of the set are in their place",
            file=sys.stderr,
        )
