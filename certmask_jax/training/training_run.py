"""``train``: a model, the last block of it or its head alone, by one recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from certmask_jax._own_settings import reproducible
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.preprocessing import check_images
from certmask_jax.inference.whole_table import predict
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model, Params
from certmask_jax.training.checkpoints import Checkpoints
from certmask_jax.training.frozen_features import Features, compute_features, copies_of
from certmask_jax.training.head_model import head_alone, head_variables, with_head
from certmask_jax.training.input_pipeline import Source
from certmask_jax.training.loop import Progress, Saving, Trained, run_steps
from certmask_jax.training.passes import check_parts
from certmask_jax.training.recipes import Recipe
from certmask_jax.training.step import Trainer, trainer
from certmask_jax.training.training_images import TrainingImages, seen_by

_HELD_OUT_AT_ONCE = 256


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
    features_progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Trains a model, or the part of it that the recipe says; goes on from the latest checkpoint.

    Args:
      model: what to train. One in two parts (``models.in_two_parts``) is trained as it is cut, and
        what its masks hide are features.
      source: images ``uint8[h, w, c]`` of the model's input size, and labels.
      recipe: how.
      params: variables to start from; random ones by default, where all of them are trained.
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
      features_progress: where the head alone is trained, called while features are computed, with
        the masked images done and all of them. They are kept beside the checkpoints.

    Raises:
      ValueError: for bad images, labels, masks or batch sizes, a checkpoint of another state, or a
        part to train that the model does not have, or without ``params``.
      FloatingPointError: when a loss or a parameter is no longer finite; checkpoints before stay.
    """
    check_images(source.gather(np.arange(1)).images, model.data_config.input_size)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every: expected at least 1 step, got {checkpoint_every}")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1 step, got {max_steps}")
    mesh = device_mesh() if mesh is None else mesh
    if recipe.train != "all" and params is None:
        raise ValueError(
            f"params: expected variables to start from where the recipe trains {recipe.train!r} "
            "and leaves the rest as it is, got none"
        )
    saving = Saving(saved, checkpoint_every, max_steps, should_stop, progress)
    if recipe.train == "head":
        return _train_head(
            model,
            params,
            (source, held_out),
            recipe,
            cutout_masks,
            mesh,
            features_progress,
            saving,
        )
    made = trainer(model, recipe, num_images=len(source), cutout_masks=cutout_masks, mesh=mesh)
    accuracy = None if held_out is None else functools.partial(_accuracy, made, held_out)
    return run_steps(made, source, params, accuracy, saving)


def _train_head(
    model: Model,
    params: Params,
    sources: tuple[Source, Source | None],
    recipe: Recipe,
    cutout_masks: Sequence[MaskSet],
    mesh: Mesh,
    progress: Callable[[int, int], None] | None,
    saving: Saving,
) -> Trained:
    """The head on features of masked copies, which are computed first."""
    alone, made = _head_trainer(model, recipe, len(sources[0]), cutout_masks, mesh)

    def features_of(source: Source, name: str, copies: int) -> Features | None:
        return compute_features(
            model,
            params,
            source,
            recipe,
            copies=copies,
            cutout_masks=cutout_masks,
            mesh=mesh,
            folder=None if saving.saved is None else saving.saved.folder / "features" / name,
            identity="" if saving.saved is None else saving.saved.identity,
            should_stop=saving.should_stop,
            progress=progress,
        )

    stopped = Trained(params, (), 0, False)
    features = features_of(sources[0], "train", copies_of(recipe))
    if features is None:
        return stopped
    accuracy = None
    if sources[1] is not None:
        held_out = features_of(sources[1], "held_out", 1)  # the images as they are
        if held_out is None:
            return stopped
        accuracy = functools.partial(_head_accuracy, alone, held_out)
    trained = run_steps(made, features, head_variables(model, params), accuracy, saving)
    return trained._replace(params=with_head(model, params, trained.params))


def _head_trainer(
    model: Model, recipe: Recipe, num_images: int, cutout_masks: Sequence[MaskSet], mesh: Mesh
) -> tuple[Model, Trainer]:
    """The head as a model, and its trainer; what is wrong with the images' changes is said too."""
    if model.kind.parts is not None:
        check_parts(recipe)
    recipe.check_input_size(model.data_config.input_size)
    TrainingImages.of(model, recipe, cutout_masks)
    alone = head_alone(model)
    return alone, trainer(alone, recipe, num_images=num_images, mesh=mesh)


def check(
    model: Model, recipe: Recipe, *, num_images: int, cutout_masks: Sequence[MaskSet] = ()
) -> None:
    """Raises ``ValueError`` where ``train`` would on all devices, before images are read."""
    if recipe.train == "head":
        _head_trainer(model, recipe, num_images, cutout_masks, device_mesh())
    else:
        trainer(model, recipe, num_images=num_images, cutout_masks=cutout_masks)


def _accuracy(made: Trainer, held_out: Source, params: Params) -> float:
    """The accuracy on held-out images, unmasked."""
    model, correct = made.model, 0
    size = model.kind.masked_size(model.data_config.input_size)
    for start in range(0, len(held_out), _HELD_OUT_AT_ONCE):
        stop = min(start + _HELD_OUT_AT_ONCE, len(held_out))
        pixels = held_out.gather(np.arange(start, stop))
        table = predict(
            model.apply_fn,
            params,
            pixels.images,
            distinct_unions.unmasked(size),
            preprocessing=seen_by(model),
            views=made.recipe.views,
            chunk=_HELD_OUT_AT_ONCE,
            mesh=made.mesh,
        )
        correct += int((table.predictions[:, 0] == pixels.labels).sum())
    return correct / len(held_out)


@reproducible()
def _head_accuracy(alone: Model, held_out: Features, params: Params) -> float:
    """The accuracy of a head on features of held-out images."""
    logits = alone.apply_fn(jax.device_get(params), held_out.of_copies[:, 0])  # type: ignore[arg-type]
    return float(np.mean(np.asarray(logits).argmax(axis=1) == held_out.labels))
