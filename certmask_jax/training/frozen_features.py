"""What the head of a model sees of masked copies of each image, computed once.

With a frozen backbone nothing else is needed to train the head. The randomness of a copy is that
of the seed, the image's number and the copy's, so that features depend neither on the devices nor
on where a run was stopped.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible, usual_promotion
from certmask_jax.files import whole_files
from certmask_jax.inference.devices import put_everywhere
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model, Params
from certmask_jax.training.head_model import head_alone, head_variables, seen_by_head
from certmask_jax.training.input_pipeline import Pixels, Source
from certmask_jax.training.recipes import Recipe
from certmask_jax.training.training_images import TrainingImages, computing

_IMAGES_A_DEVICE = 8
_IMAGES_A_BLOCK = 64
_CLOSE = 1e-3  # of the largest logit


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features of T images as a source of training: ``gather`` gives ``float32[B, C, D]``.

    Attributes:
      of_copies: ``float32[T, C, D]``; the first copy of an image is the image itself.
      labels: ``int32[T]``.
    """

    of_copies: NDArray[np.float32]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, numbers: NDArray[np.int64]) -> Pixels:
        """The features of some images, in place of their pixels."""
        return Pixels(self.of_copies[numbers], self.labels[numbers])  # type: ignore[arg-type]


def copies_of(recipe: Recipe) -> int:
    """C: copies that differ; one where images lose nothing and are not moved."""
    moves = (recipe.flip, recipe.crop, recipe.shift, recipe.rotate, recipe.zoom)
    return recipe.copies if recipe.cutout != "none" or any(moves) else 1


def compute_features(
    model: Model,
    params: Params,
    source: Source,
    recipe: Recipe,
    *,
    copies: int,
    cutout_masks: Sequence[MaskSet] = (),
    mesh: Mesh,
    folder: Path | None = None,
    identity: str = "",
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Features | None:
    """Runs the frozen part on copies of all images.

    Args:
      model, params: what is frozen; in eval mode.
      source: T images ``uint8[h, w, c]``.
      recipe: what copies lose and how they are moved, the seed and the precision.
      copies: C, see ``Features``.
      cutout_masks: see ``trainer``.
      mesh: 1-D mesh; images are split over it.
      folder: where finished blocks are kept, and come from when a run is resumed; None to keep
        nothing.
      identity: of the run; blocks of another are computed anew.
      should_stop: asked after each block; True ends the work.
      progress: called after each block with the copies done and all of them.

    Returns:
      The features, or None when it was stopped.

    Raises:
      ValueError: for a model whose head does not see one vector of each image, or whose logits are
        not what its head gives.
      FloatingPointError: for features that are not finite.
      OSError: when a block cannot be read or written.
    """
    size = _IMAGES_A_DEVICE * mesh.size
    program = _program(model, recipe, cutout_masks)
    split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    everywhere = put_everywhere(params, mesh)
    parts, labels = [], []
    starts = range(0, len(source), _IMAGES_A_BLOCK)
    for start in starts:
        numbers = np.arange(start, min(start + _IMAGES_A_BLOCK, len(source)))
        file = None if folder is None else folder / f"{start:08}.npz"
        features = None if file is None else _read(file, identity)
        if features is None:
            pixels = source.gather(numbers)
            computed = np.stack(
                [
                    _of_copy(program, everywhere, pixels.images, numbers, copy, size, split)
                    for copy in range(copies)
                ],
                axis=1,
            )
            if not np.isfinite(computed).all():
                raise FloatingPointError(
                    f"features of images {start} to {numbers[-1]} are not finite; compute float32 "
                    "has a wider range than bfloat16, else the weights are broken"
                )
            features = Features(computed, pixels.labels)
            if file is not None:
                _write(file, identity, features)
        parts.append(features.of_copies)
        labels.append(features.labels)
        if progress is not None:
            progress(copies * (int(numbers[-1]) + 1), copies * len(source))
        if should_stop is not None and start != starts[-1] and should_stop():
            return None
    return Features(np.concatenate(parts), np.concatenate(labels))


def _program(model: Model, recipe: Recipe, cutout_masks: Sequence[MaskSet]) -> Any:
    """The jitted (params, images uint8[b, h, w, c], numbers, copy) -> (features, logits' error)."""
    alone = head_alone(model)
    images_of = TrainingImages.of(model, recipe, cutout_masks)
    module = computing(model.module, recipe)

    def features(params: Params, images: Array, numbers: Array, copy: Array) -> tuple[Array, Array]:
        key = jax.random.key(recipe.seed + 2)

        def one(number: Array, image: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, number), copy)
            return images_of(own, image[None], None)[0]

        plain = images_of.encoded(images)
        changed = jax.vmap(one)(numbers, images)
        given = jnp.where(copy == 0, plain, changed)
        seen, _, logits = seen_by_head(model, module, params, given)
        seen = seen.astype(jnp.float32).reshape(images.shape[0], -1)
        again = alone.apply_fn(head_variables(model, params), seen)
        error = jnp.abs(again - logits).max() / jnp.maximum(jnp.abs(logits).max(), 1e-6)
        return seen, error

    return jax.jit(features)


def _of_copy(
    program: Any,
    params: Params,
    images: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    copy: int,
    size: int,
    split: NamedSharding,
) -> NDArray[np.float32]:
    """``float32[b, D]`` of one copy of each image; ``size`` of them at once."""
    parts = []
    for start in range(0, len(images), size):
        at = np.minimum(np.arange(start, start + size), len(images) - 1)  # filled up with the last
        batch = jax.device_put((images[at], numbers[at].astype(np.int32)), split)
        with usual_promotion(), reproducible():
            computed, error = program(params, *batch, np.int32(copy))
        if not float(error) <= _CLOSE and np.isfinite(float(error)):
            raise ValueError(
                "train: expected a model whose logits are what its head gives, but something "
                "follows the head"
            )
        parts.append(np.asarray(computed)[: len(images) - start])
    return np.concatenate(parts)


def _read(file: Path, identity: str) -> Features | None:
    """A block that was kept; None where there is none, of another run, or damaged."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(content)) as arrays:
            if str(arrays["identity"]) != identity:
                return None
            return Features(arrays["features"], arrays["labels"])
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        return None  # it is computed again, to the same bits


def _write(file: Path, identity: str, block: Features) -> None:
    content = io.BytesIO()
    np.savez(content, features=block.of_copies, labels=block.labels, identity=np.array(identity))
    file.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write(file, content.getvalue())
