"""Models by name: the Flax module, its data config, and the apply function that ``forward`` takes.

A model here is an example of ``apply_fn(params, images) -> logits``; any other will do.
"""

from certmask_jax.models.any_framework import from_function
from certmask_jax.models.claimed_field import check_field
from certmask_jax.models.data_config import DataConfig
from certmask_jax.models.named_models import (
    DEFAULT,
    ApplyFn,
    Model,
    Params,
    create,
    default_weights,
    names,
)
from certmask_jax.models.parts_choice import in_two_parts

__all__ = [
    "DEFAULT",
    "ApplyFn",
    "DataConfig",
    "Model",
    "Params",
    "check_field",
    "create",
    "default_weights",
    "from_function",
    "in_two_parts",
    "names",
]
