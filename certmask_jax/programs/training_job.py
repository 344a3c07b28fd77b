"""A training, from its options to the weights: what ``certmask train`` does."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from certmask_jax import data, predict, training, weights
from certmask_jax._text import counted
from certmask_jax.files import fingerprint
from certmask_jax.inference import views
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model, Params
from certmask_jax.programs import (
    data_options,
    masks_of_training,
    measure_input,
    model_options,
    parts_options,
    recipe_options,
)
from certmask_jax.programs.chosen_model import ModelOptions
from certmask_jax.programs.command_line import as_options
from certmask_jax.programs.masks_of_training import AtTheEnd
from certmask_jax.programs.training_options import check_uses
from certmask_jax.training import cutout, input_pipeline, training_run
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.input_pipeline import Source, Streamed
from certmask_jax.training.log import LogRow, write_csv, write_picture
from certmask_jax.training.step import trainer
from certmask_jax.training.training_images import seen_by

_STOPPED = 143  # as the shell reports a program that SIGTERM ended


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the options come down to."""

    model: Model
    params: Params | None
    recipe: training.Recipe
    masks: tuple[MaskSet, ...]
    source: Source
    held_out: Source | None
    streamed: Streamed
    test_set: data.Dataset
    at_the_end: AtTheEnd
    identity: dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Trains, writes, evaluates on the test split; returns the exit status."""
    check_uses(arguments, recipe_options.read(arguments))
    folder = arguments.run_folder
    options = _model_options(arguments)
    name = options.model.rpartition(":")[2]  # of a model by import path, its function's
    out = arguments.out or (folder or Path("runs")) / f"{name}.npz"
    if out.exists() and not (arguments.overwrite or arguments.resume or arguments.measure_input):
        raise FileExistsError(f"--out {out}: exists already; --overwrite replaces it")
    weights.check_writable(out)
    job = _job(arguments, options)
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
    weights.save(out, trained.params)
    print(f"{out}: {_evaluated(job, trained.params, arguments.test_images)}")
    return 0


def _model_options(arguments: argparse.Namespace) -> ModelOptions:
    """Those of the model: a card says it unless it was typed."""
    is_said = "model" in arguments.typed or not model_options.may_say_model(arguments.weights)
    options = model_options.read(arguments, model=arguments.model if is_said else None)
    return options.with_card()


def _job(arguments: argparse.Namespace, options: ModelOptions) -> _Job:
    """Opens everything, so that whatever is wrong is said before the long work."""
    data_options.check_name(arguments.dataset)
    model = options.create()
    train_set = _data_set(arguments, model, "split")
    test_set = _data_set(arguments, model, "test_split")
    _check_same_classes(train_set, test_set)
    if train_set.num_classes != model.num_classes:
        model = options.create(num_classes=train_set.num_classes)
    recipe = recipe_options.read(arguments)
    parts = parts_options.read(arguments.two_parts)
    if parts is not None:
        model = parts_options.cut(model, parts)
    params = _first_weights(options, model, seed=recipe.seed)
    size = model.data_config.input_size
    masks = masks_of_training.read(model, arguments) if recipe.cutout in cutout.OF_MASKS else ()
    for note in train_set.notes:
        print(note, file=sys.stderr)
    streamed = Streamed(train_set, workers=arguments.workers, on_unreadable=arguments.on_unreadable)
    # For their errors, before all images are read.
    try:
        kept, _ = input_pipeline.split_off(streamed, arguments.held_out, seed=recipe.seed)
    except ValueError as error:
        raise ValueError(f"--held-out {arguments.held_out}: {error}") from error
    with as_options(*(field.name for field in dataclasses.fields(recipe))):
        training_run.check(model, recipe, num_images=len(kept), cutout_masks=masks)
    at_the_end = masks_of_training.at_the_end(recipe, model, masks)
    source, held_out = input_pipeline.split_off(
        _fitting(streamed, arguments.input, arguments.memory_mb, model),
        arguments.held_out,
        seed=recipe.seed,
    )
    first = streamed.gather(np.arange(1)).images
    identity = {
        "model": model.name,
        "model_options": {**options.about(), **_encoding_of(model), **model.facts},
        "num_classes": model.num_classes,
        "input_size": list(size),
        "recipe": _facts(recipe),
        "cutout_masks": [[str(one), fingerprint.of_arrays(one.boxes)[:16]] for one in masks],
        "data": {
            "name": arguments.dataset,
            "split": train_set.split,
            "images": len(train_set),
            "classes": dict(train_set.classes),
            "first_image": hashlib.sha256(first.tobytes()).hexdigest()[:16],
        },
        "held_out": arguments.held_out,
        "first_weights": None if params is None else weights.digest(params),
        **model.kind.facts,
    }
    return _Job(
        model, params, recipe, masks, source, held_out, streamed, test_set, at_the_end, identity
    )


def _encoding_of(model: Model) -> dict[str, Any]:
    """The model's encoding, if it is not the one that older runs had."""
    return {} if model.encoding == "fill" else {"encoding": model.encoding}


def _facts(recipe: training.Recipe) -> dict[str, Any]:
    """A recipe's fields; those of parts are left out where all is trained, as in older runs."""
    facts = dataclasses.asdict(recipe)
    if recipe.views == views.NONE:  # as runs were told apart before there were any
        del facts["views"]
    if recipe.train != "head":
        del facts["copies"]
    if recipe.train == "all":
        del facts["train"]
    if recipe.cutout not in cutout.BANDS:
        del facts["cutout_band"]
    if not recipe.feature_window:
        del facts["feature_window"]
    return facts


def _data_set(arguments: argparse.Namespace, model: Model, option: str) -> data.Dataset:
    """The images of a split; errors about the split name the option that chose it."""
    try:
        return data_options.named_data(
            arguments.dataset,
            data_config=model.data_config,
            split=getattr(arguments, option),
            data_dir=arguments.data_dir,
            num_outputs=arguments.num_classes,
            class_index=data_options.index_of(arguments.class_index),
        )
    except ValueError as error:
        name, colon, text = str(error).partition(": ")
        if not colon or name != "split":
            raise
        raise ValueError(f"--{option.replace('_', '-')}: {text}") from error


def _first_weights(options: ModelOptions, model: Model, *, seed: int) -> Params | None:
    """What training starts from; None for random weights."""
    if options.weights is not None:
        file = options.read(options.weights)
        for note in options.taken(file, model)[1]:
            print(note, file=sys.stderr)
        return options.load(file, model, seed=seed)
    return None


def _fitting(streamed: Streamed, how: str, limit_mb: int, model: Model) -> Source:
    """The training set in memory if it fits or is asked for there, else as it streams."""
    height, width = model.data_config.input_size
    size = len(streamed) * height * width * model.data_config.channels
    if how == "stream" or (how == "auto" and size > limit_mb * 1_000_000):
        return streamed
    with tqdm(total=len(streamed), unit="image", desc="reading", mininterval=1) as bar:
        return input_pipeline.in_memory(streamed, progress=bar.update)


def _train(
    job: _Job, saved: Checkpoints | None, folder: Path | None, arguments: argparse.Namespace
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


def _evaluated(job: _Job, params: Params, count: int) -> str:
    """Clean and certified accuracy on test images that are spread evenly over the split."""
    chosen = np.linspace(0, len(job.test_set) - 1, min(count, len(job.test_set))).round()
    held_out = [job.test_set.read(int(i), int(i) + 1) for i in chosen]
    labels = np.concatenate([one.labels for one in held_out])
    defense, about = job.at_the_end
    table = predict(
        job.model.apply_fn,
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


def _check_same_classes(train_set: data.Dataset, test_set: data.Dataset) -> None:
    trained, tested = set(train_set.classes), set(test_set.classes)
    if trained != tested:
        raise ValueError(
            f"{train_set.name}: expected the same classes in {train_set.split!r} and "
            f"{test_set.split!r}, but only the former has {sorted(trained - tested) or 'none more'}"
            f" and only the latter has {sorted(tested - trained) or 'none more'}"
        )


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
