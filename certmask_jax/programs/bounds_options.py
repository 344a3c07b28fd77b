"""A run of interval bounds: a model that is told nothing of hidden pixels, for all its defenses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from certmask_jax.defenses import Defense
from certmask_jax.defenses.interval_bounds_recovery import IntervalBounds
from certmask_jax.inference import views
from certmask_jax.inference.bound_propagation import check_model
from certmask_jax.inference.bounded_model import BoundedModel, check_bounded
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.models import Model
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.command_line import as_options, named


def bounded(
    config: Config, model: Model, params: Any, defenses: Sequence[Defense], *, others: bool
) -> Model:
    """The model of bounds where the defenses are proved by these; else itself.

    Args:
      config: of the run.
      model, params: as they were opened.
      defenses: that mask images.
      others: whether there are defenses on evidence too.

    Raises:
      ValueError: for other defenses beside them, or what bounds are not known of.
    """
    by_bounds = [isinstance(defense, IntervalBounds) for defense in defenses]
    if not any(by_bounds):
        return model
    if others or not all(by_bounds):
        raise ValueError(
            "--defense: expected a run of interval_bounds alone, whose masks hide what the model "
            "is told nothing of, where other defenses show it a fill; give these a run of their own"
        )
    for option, is_given in (
        ("--views", config.views != views.NONE),
        ("--hidden-tokens", config.hidden_tokens != "fill"),
        ("--two-parts", config.two_parts is not None),
        ("--patched", config.patched is not None),
        ("--encoding", model.encoding != "fill"),
    ):
        if is_given:
            raise ValueError(f"{option}: expected none beside interval_bounds; leave it out")
    if not model.kind.is_traced:
        raise ValueError(
            "--defense interval_bounds: expected a model of JAX, whose operations have bounds, got "
            f"{model.name}"
        )
    with named("--defense interval_bounds", "interval bounds"):
        shape = (*model.data_config.input_size, model.data_config.channels)
        check_model(model.apply_fn, params, shape)
    return dataclasses.replace(
        model, apply_fn=BoundedModel(model.apply_fn), local=None, dropping=None
    )


def check_images(model: Model, preprocessing: Preprocessing) -> None:
    """``ValueError`` for images that are no boxes of what a model of bounds sees."""
    if model.kind.bounded is None:
        return
    if preprocessing.resize_to is not None:
        raise ValueError(
            "--patch-lives native: expected none beside interval_bounds, as what a resize makes of "
            "the images with a patch is no box; leave it out"
        )
    with as_options("precision"):
        check_bounded(preprocessing)
