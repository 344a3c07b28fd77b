"""What a training step computes of its images: logits, and what the batch changes of the variables.

Of a model as it is; without a window of its local logits, as PatchGuard's nets are trained; or, of
a model in two parts, without the features that masks of the map hide. That is how PatchCURE's nets
are trained (Xiang et al., USENIX Security 2024): with one mask of the set that certifies hidden,
of first order, or with two, of second order, since double masking looks at both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from certmask_jax.inference.two_parts import TwoParts, mean_of_kept
from certmask_jax.inference.views import NONE
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.models import Model, Params
from certmask_jax.training.bounded_patches import check_bounds, worst_logits
from certmask_jax.training.cutout import BANDS, OF_MASKS
from certmask_jax.training.masked_features import check_window, random_windows
from certmask_jax.training.recipes import Recipe
from certmask_jax.training.training_images import computing, hiding

Pass = Callable[[Params, Array, Array, Array, Array], tuple[Array, Any]]
"""(variables, images, labels, key, progress) -> logits, and what changed beside ``params``.

``progress`` is the share of all steps that is done. Logits are ``float32[n B, K]``: those of the
images, and then others of theirs that count as much.
"""


def training_pass(model: Model, recipe: Recipe, masks: Sequence[MaskSet]) -> Pass:
    """The pass of a model by a recipe, with images as ``TrainingImages`` gives them.

    Args:
      model, recipe: what and how; what is frozen is in eval mode, running averages too.
      masks: of the map of features, for a model in two parts; the images of others have lost them.

    Raises:
      ValueError: for a window of features that the model does not have, and as ``check_parts``.
    """
    if recipe.bounds_patch:
        return _of_bounds(model, recipe)
    module = computing(model.train_module if recipe.train == "all" else model.module, recipe)
    if model.kind.parts is not None:
        return _of_parts(model.kind.parts, module, recipe, masks)
    window = recipe.feature_window
    grid = check_window(model, window) if window else (0, 0)

    def logits_of(
        variables: Params, images: Array, labels: Array, key: Array, progress: Array
    ) -> Any:
        del labels, progress
        changing = _changing(variables)
        if not window:
            return module.apply(variables, images, mutable=changing)
        local, changed = module.apply(variables, images, method="local_logits", mutable=changing)
        kept = random_windows(key, images.shape[0], grid=grid, window=window)
        return mean_of_kept((), local, ~kept), changed

    return logits_of


def _of_bounds(model: Model, recipe: Recipe) -> Pass:
    """What the model says, and the worst by its bounds, half each as of Gowal et al. (2018).

    Nothing beside the parameters changes, as norms are in eval mode.
    """
    check_bounds(model, recipe)
    drawn = {"patch": recipe.bounds_patch, "places": recipe.bounds_places}

    def logits_of(
        variables: Params, images: Array, labels: Array, key: Array, progress: Array
    ) -> Any:
        width = jnp.clip(progress / max(recipe.bounds_ramp, 1e-6), 0, 1)
        worst = worst_logits(model, variables, images, labels, key, width=width, **drawn)
        logits: Any = model.module.apply(variables, images)
        both = jnp.concatenate([logits, worst])
        return both, {name: variables[name] for name in _changing(variables)}

    return logits_of


def check_parts(recipe: Recipe) -> None:
    """What a recipe asks for that a model in two parts does not have.

    Raises:
      ValueError: naming the field.
    """
    for name, is_asked, instead in (
        (
            "train",
            recipe.train == "head",
            "all or last_block, as what is hidden is before the head",
        ),
        ("compute", recipe.compute != "float32", "float32, the type of its parts"),
        ("views", recipe.views != NONE, "none, as a view of an image has its patch in other cells"),
        ("feature_window", recipe.feature_window > 0, "0, as its cells lose masks, by cutout"),
        ("cutout", recipe.cutout in BANDS, "no bands, as a stem is run once an image"),
    ):
        if is_asked:
            raise ValueError(
                f"{name}: for a model in two parts expected {instead}; got {getattr(recipe, name)}"
            )


def _of_parts(parts: TwoParts, module: Any, recipe: Recipe, masks: Sequence[MaskSet]) -> Pass:
    """The pass of stem and head; a gradient goes through what is seen of the map, and no other."""
    check_parts(recipe)
    hides = recipe.cutout in OF_MASKS
    hide = hiding(recipe, parts.grid, masks, "the map's {} cells") if hides else None

    def features_of(variables: Params, images: Array) -> Any:
        changing = _changing(variables)
        if parts.head is mean_of_kept and hasattr(module, "local_logits"):  # norms by the batch
            return module.apply(variables, images, method="local_logits", mutable=changing)
        return parts.stem(variables, images), {name: variables[name] for name in changing}

    def logits_of(
        variables: Params, images: Array, labels: Array, key: Array, progress: Array
    ) -> Any:
        del progress
        features, changed = features_of(variables, images)
        # A map of ones loses masks as an image does: what is 0 then is hidden.
        seen = jnp.ones((images.shape[0], *parts.grid, 1), jnp.float32)
        if hide is not None:
            as_it_is = jax.lax.stop_gradient(variables)
            # In eval mode: the worst masks of an image must not depend on its neighbours. Once,
            # whatever is hidden, and not at all (XLA drops it) where no losses are asked for.
            clean = parts.stem(as_it_is, images)

            def losses_of(left: Array) -> Array:
                logits = parts.head(as_it_is, clean, left[..., 0] == 0)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

            seen = hide(key, seen, losses_of)
        return parts.head(variables, features, seen[..., 0] == 0), changed

    return logits_of


def _changing(variables: Params) -> list[str]:
    return [name for name in variables if name != "params"]
