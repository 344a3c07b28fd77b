"""What a training step is given of its images: encoded, moved, and with Cutout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model
from certmask_jax.training import augmentation, cutout
from certmask_jax.training.recipes import Recipe

Hide = Callable[[Array, Array, Any], Array]
"""(key, images, losses of images) -> images that have lost what Cutout takes."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingImages:
    """What a recipe makes of images; build it with ``of``.

    Called with a key, ``uint8[B, h, w, c]`` and the losses of images (for greedy Cutout) it gives
    ``float32[B, h, w, C]``, normalised or as the model's encoding has them, moved and with what
    they lose replaced by 0. The border that random crops add is 0 too: what is hidden.
    """

    recipe: Recipe
    preprocessing: Preprocessing
    hide: Hide

    @classmethod
    def of(cls, model: Model, recipe: Recipe, masks: Sequence[MaskSet]) -> TrainingImages:
        """For the images of a model; ``ValueError`` as ``trainer`` for masks.

        The images of a model in two parts lose no masks: these are of its map of features.
        """
        preprocessing = seen_by(model)
        if not model.kind.hides_pixels and recipe.cutout in cutout.OF_MASKS:
            return cls(recipe, preprocessing, _nothing)
        size = model.data_config.input_size
        return cls(recipe, preprocessing, hiding(recipe, size, masks, "the model's {} pixels"))

    def encoded(self, images: Array) -> Array:
        """``uint8[B, h, w, c]`` -> ``float32[B, h, w, C]``, whole images."""
        nothing = jnp.zeros((1, 4), jnp.int32)
        return jax.vmap(lambda image: model_input(image, nothing, self.preprocessing))(images)

    def __call__(self, key: Array, images: Array, losses_of: cutout.LossesOf | None) -> Array:
        images = _augmented(key, self.encoded(images), self.recipe)
        return self.hide(jax.random.split(key)[1], images, losses_of)


def seen_by(model: Model) -> Preprocessing:
    """How a model wants its images, masked ones too."""
    config = model.data_config
    return Preprocessing.of_encoding(model.encoding, mean=config.mean, std=config.std)


def _nothing(key: Array, images: Array, losses_of: Any) -> Array:
    return images


def hiding(recipe: Recipe, input_size: tuple[int, int], masks: Sequence[MaskSet], on: str) -> Hide:
    """The recipe's Cutout.

    Args:
      recipe: its ``cutout`` says what is lost.
      input_size: (height, width) of the images, or of maps that lose masks as images do.
      masks: of that size, where the recipe hides masks.
      on: what that size is of, for the error.

    Raises:
      ValueError: for masks that are missing, not wanted, or of another size.
    """
    wants = recipe.cutout in cutout.OF_MASKS
    if wants != bool(masks):
        raise ValueError(
            f"cutout {recipe.cutout}: expected {'at least 1 mask set' if wants else 'no mask sets'}"
            f", got {len(masks)}"
        )
    if recipe.cutout == "none":
        return _nothing
    if recipe.cutout in cutout.BANDS:
        band = recipe.cutout_band or cutout.default_band(input_size)
        return lambda key, images, losses_of: cutout.random_bands(
            key, images, kind=recipe.cutout, band=band
        )
    if not wants:
        size = recipe.cutout_size or cutout.default_size(input_size)
        return lambda key, images, losses_of: cutout.random_squares(
            key, images, size=size, squares=recipe.cutout_squares
        )
    stack = cutout.mask_stack(masks)
    if masks[0].image_size != tuple(input_size):
        raise ValueError(
            f"cutout masks: expected masks on {on.format(input_size)}, got them on "
            f"{masks[0].image_size}"
        )
    if recipe.cutout == "greedy":
        return lambda key, images, losses_of: cutout.greedy(key, images, stack, losses_of)[0]
    order = 1 if recipe.cutout == "mask_set" else 2
    return lambda key, images, losses_of: cutout.random_masks(key, images, stack, order=order)


def _augmented(key: Array, images: Array, recipe: Recipe) -> Array:
    """Moves, flips and crops, as far as the recipe asks; each with randomness of its own."""
    if recipe.shift or recipe.rotate or recipe.zoom:
        images = augmentation.moved(
            jax.random.split(key)[0],
            images,
            shift=recipe.shift,
            rotate=recipe.rotate,
            zoom=recipe.zoom,
        )
    if recipe.crop:
        images = augmentation.cropped(jax.random.fold_in(key, 2), images, pad=recipe.crop)
    if recipe.flip:
        images = augmentation.flipped(jax.random.fold_in(key, 3), images)
    return images


def computing(module: Any, recipe: Recipe) -> Any:
    """A module that computes in the recipe's precision."""
    if recipe.compute == "float32":
        return module
    if not hasattr(module, "dtype"):
        raise ValueError(
            f"compute: expected a model with a dtype for bfloat16, but {type(module).__name__} "
            "has none; use float32"
        )
    return module.clone(dtype=jnp.bfloat16)
