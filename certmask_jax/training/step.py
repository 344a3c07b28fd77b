"""One training step: a jitted function of the state, a batch and a key, sharded over devices.

The batch is split over a 1-D mesh as in ``forward``, the state is on every device, and plain
``jit`` does the rest: statistics and gradients are those of the whole batch, on any number of
devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible, usual_promotion
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.viewed_model import all_views
from certmask_jax.inference.views import read, with_views
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model, Params
from certmask_jax.training import recipes
from certmask_jax.training.input_pipeline import Pixels
from certmask_jax.training.passes import Pass, check_parts, training_pass
from certmask_jax.training.recipes import Recipe
from certmask_jax.training.trained_part import TrainedPart, last_block_of
from certmask_jax.training.training_images import TrainingImages, computing


class TrainState(NamedTuple):
    """All that a step changes."""

    variables: Params
    optimizer: Any
    average: Params  # of the variables, or {} without
    step: Array  # int32, steps done


class Measures(NamedTuple):
    """What a step found in its batch, before it changed the variables."""

    loss: Array  # float32, mean
    correct: Array  # int32, images


class DeviceBatch(NamedTuple):
    """A batch where the step wants it."""

    images: Array  # uint8[B, h, w, c]; features float32[B, C, D] where the head alone is trained
    labels: Array  # int32[B]
    key: Array  # uint32[...], the data of a random key


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """A model and a recipe made ready to step; build it with ``trainer``."""

    model: Model
    recipe: Recipe
    steps_per_epoch: int
    mesh: Mesh
    rate: Callable[[int], Any]
    """Learning rate of a step, counted from 0."""
    _part: TrainedPart
    _optimizer: optax.GradientTransformation
    _step: Callable[[TrainState, DeviceBatch], tuple[TrainState, Measures]]

    @reproducible()
    def start(self, params: Params | None = None) -> TrainState:
        """The state before the first step; random variables by default."""
        if params is None:
            params = self.model.init(jax.random.key(self.recipe.seed))
        average = params if self.recipe.ema else {}
        zero = np.zeros((), np.int32)
        return self.place(
            TrainState(
                params,
                self._optimizer.init(self._part.split(params["params"])[0]),
                average,
                zero,  # type: ignore[arg-type]
            )
        )

    def place(self, state: TrainState) -> TrainState:
        """A copy of a state on every device."""
        copied = jax.tree.map(np.array, state)  # the step gives its input's memory away
        return jax.device_put(copied, NamedSharding(self.mesh, PartitionSpec()))

    def put(self, pixels: Pixels, key: NDArray[np.uint32]) -> DeviceBatch:
        """A batch, and the data of its key, on the devices."""
        split = NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.device_put(DeviceBatch(*pixels, key), DeviceBatch(split, split, whole))  # type: ignore[arg-type]

    def step(self, state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Measures]:
        """One step; ``state`` is given away and must not be used again."""
        with usual_promotion(), reproducible():  # traced and lowered under it, gradients too
            return self._step(state, batch)

    def result(self, state: TrainState) -> Params:
        """The variables that training is for: their average if the recipe has one."""
        return state.average if self.recipe.ema else state.variables


def trainer(
    model: Model,
    recipe: Recipe,
    *,
    num_images: int,
    cutout_masks: Sequence[MaskSet] = (),
    mesh: Mesh | None = None,
) -> Trainer:
    """Makes a trainer.

    Args:
      model, recipe: what and how. Where the recipe trains the head alone, ``model`` is the head
        itself (``head_alone``), and its batches are features of images.
      num_images: of the training set; what does not fill a batch waits for another epoch's shuffle.
      cutout_masks: mask sets for the recipes that hide masks; one is drawn a step. Of a model in
        two parts they are masks of its map, in cells.
      mesh: 1-D mesh; all devices by default.

    Raises:
      ValueError: for a recipe whose squares, bands, padding or moves are larger than the images,
        fewer images than a batch, a batch that the devices cannot share evenly,
        masks that are missing or not wanted or of another image size, a window of features that
        the model does not have, what a model in two parts does not have (``check_parts``), or a
        model that cannot compute in bfloat16.
    """
    if model.kind.parts is not None:
        check_parts(recipe)
    if recipe.train != "head":
        recipe.check_input_size(model.data_config.input_size)
    mesh = device_mesh() if mesh is None else mesh
    steps = num_images // recipe.batch_size
    if steps < 1:
        raise ValueError(
            f"batch_size: expected at most the {num_images} images, got {recipe.batch_size}"
        )
    if recipe.batch_size % mesh.size:
        near = max(1, round(recipe.batch_size / mesh.size)) * mesh.size
        raise ValueError(
            f"batch_size: expected a multiple of the {mesh.size} devices, got "
            f"{recipe.batch_size}; {near} would do"
        )
    made = _compiled(model, recipe, steps, tuple(cutout_masks), mesh)
    return Trainer(model, recipe, steps, mesh, *made)


@functools.lru_cache(maxsize=8)
def _compiled(
    model: Model, recipe: Recipe, steps_per_epoch: int, masks: tuple[MaskSet, ...], mesh: Mesh
) -> tuple[Callable[[int], Any], TrainedPart, optax.GradientTransformation, Any]:
    """Rate, what is trained, optimiser, jitted step; cached, so that equal runs compile once."""
    part = last_block_of(model) if recipe.train == "last_block" else TrainedPart()
    seen_in: _SeenIn
    if recipe.train == "head":
        seen_in = _any_copy
    else:
        seen_in = _masked_images(model, TrainingImages.of(model, recipe, masks))
    peak = recipes.learning_rate(recipe, model.name)
    rate = recipes.schedule(recipe, peak, steps_per_epoch=steps_per_epoch)
    optimizer = recipes.optimizer(recipe, rate)
    step = jax.jit(
        _step(
            model,
            recipe,
            optimizer,
            part,
            seen_in,
            training_pass(model, recipe, masks),
            steps_per_epoch,
        ),
        donate_argnums=0,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    return rate, part, optimizer, step


_SeenIn = Callable[[Array, Params, DeviceBatch], Array]
"""(key, variables, batch) -> what the model is given."""


def _masked_images(model: Model, images_of: TrainingImages) -> _SeenIn:
    if model.kind.parts is not None:  # its map of features loses masks, see its pass
        return lambda key, variables, batch: images_of(key, batch.images, None)
    module = computing(model.module, images_of.recipe)
    evaluated = with_views(module.apply, images_of.recipe.views)

    def seen_in(key: Array, variables: Params, batch: DeviceBatch) -> Array:
        def losses_of(images: Array) -> Array:
            # In eval mode: an image's worst masks must not depend on its neighbours' masks.
            logits = evaluated(variables, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

        return images_of(key, batch.images, losses_of)

    return seen_in


def _any_copy(key: Array, variables: Params, batch: DeviceBatch) -> Array:
    """One of the copies of each image, drawn by chance: ``float32[B, D]``."""
    count, copies = batch.images.shape[:2]
    chosen = jax.random.randint(key, (count, 1, 1), 0, copies)
    return jnp.take_along_axis(batch.images, chosen, axis=1)[:, 0]


def _step(
    model: Model,
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    part: TrainedPart,
    seen_in: _SeenIn,
    logits_of: Pass,
    steps_per_epoch: int,
) -> Callable[[TrainState, DeviceBatch], tuple[TrainState, Measures]]:
    views = read(recipe.views)

    def loss_of(
        trained: Any,
        frozen: Any,
        rest: Any,
        images: Array,
        labels: Array,
        key: Array,
        progress: Array,
    ) -> tuple[Array, Any]:
        truth = labels
        if len(views) > 1:  # those of an image beside each other, so that they are on its device
            copies = jnp.moveaxis(all_views(images, views), 0, 1)
            images = copies.reshape(-1, *images.shape[1:])
            truth = jnp.repeat(labels, len(views))
        variables = {"params": part.merged(trained, frozen), **rest}
        logits, changed = logits_of(variables, images, truth, key, progress)
        target = optax.smooth_labels(
            jax.nn.one_hot(truth, model.num_classes), recipe.label_smoothing
        )
        target = jnp.tile(target, (len(logits) // len(target), 1))
        loss = optax.softmax_cross_entropy(logits, target).mean()
        logits = logits[: len(truth)]
        if len(views) > 1:
            logits = logits.reshape(len(labels), len(views), model.num_classes).mean(axis=1)
        return loss, (changed, (logits.argmax(axis=1) == labels).sum(dtype=jnp.int32))

    def step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Measures]:
        variables, labels = state.variables, batch.labels
        key = jax.random.wrap_key_data(batch.key)
        images = seen_in(key, variables, batch)
        rest = {name: value for name, value in variables.items() if name != "params"}
        trained, frozen = part.split(variables["params"])
        (loss, (changed, correct)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            trained,
            frozen,
            rest,
            images,
            labels,
            jax.random.fold_in(key, 4),
            state.step / (recipe.epochs * steps_per_epoch),
        )
        updates, moments = optimizer.update(grads, state.optimizer, trained)
        params = part.merged(optax.apply_updates(trained, updates), frozen)
        after = {"params": params, **changed}
        average = state.average
        if recipe.ema:
            average = optax.incremental_update(after, average, 1 - recipe.ema)
        return TrainState(after, moments, average, state.step + 1), Measures(loss, correct)

    def looped(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Measures]:
        state, measures = jax.lax.scan(step, state, jax.tree.map(lambda leaf: leaf[None], batch))
        return state, jax.tree.map(lambda leaf: leaf[0], measures)

    return looped if recipe.looped else step
