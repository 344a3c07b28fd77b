"""What the options of a training come down to, all opened, and what tells its runs from others."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from certmask_jax import data, training, weights
from certmask_jax.files import fingerprint
from certmask_jax.inference import views
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model, Params
from certmask_jax.programs import (
    data_options,
    masks_of_training,
    model_options,
    parts_options,
    recipe_options,
)
from certmask_jax.programs.chosen_model import ModelOptions
from certmask_jax.programs.command_line import as_options
from certmask_jax.programs.masks_of_training import AtTheEnd
from certmask_jax.training import cutout, input_pipeline, training_run
from certmask_jax.training.input_pipeline import Source, Streamed


@dataclasses.dataclass(frozen=True)
class TrainingJob:
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


def options_of_model(arguments: argparse.Namespace) -> ModelOptions:
    """Those of the model: a card says it unless it was typed."""
    is_said = "model" in arguments.typed or not model_options.may_say_model(arguments.weights)
    options = model_options.read(arguments, model=arguments.model if is_said else None)
    return options.with_card()


def opened(arguments: argparse.Namespace, options: ModelOptions) -> TrainingJob:
    """Opens everything, so that whatever is wrong is said before the long work."""
    data_options.check_name(arguments.dataset)
    model = options.create()
    if not model.kind.is_traced:
        model.param_shapes()  # for its error, before all images are read
    names = options.output_names
    train_set = _data_set(arguments, model, "split", names)
    test_set = _data_set(arguments, model, "test_split", names)
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
    return TrainingJob(
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
    if not recipe.bounds_patch:
        for name in ("bounds_patch", "bounds_places", "bounds_ramp"):
            del facts[name]
    return facts


def _data_set(
    arguments: argparse.Namespace, model: Model, option: str, output_names: Sequence[str]
) -> data.Dataset:
    """The images of a split; errors about the split name the option that chose it."""
    try:
        return data_options.named_data(
            arguments.dataset,
            data_config=model.data_config,
            split=getattr(arguments, option),
            data_dir=arguments.data_dir,
            num_outputs=arguments.num_classes,
            class_index=data_options.index_of(arguments.class_index),
            output_names=output_names,
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


def _check_same_classes(train_set: data.Dataset, test_set: data.Dataset) -> None:
    trained, tested = set(train_set.classes), set(test_set.classes)
    if trained != tested:
        raise ValueError(
            f"{train_set.name}: expected the same classes in {train_set.split!r} and "
            f"{test_set.split!r}, but only the former has {sorted(trained - tested) or 'none more'}"
            f" and only the latter has {sorted(tested - trained) or 'none more'}"
        )
