"""Training with Cutout, from scratch or from given weights, so that a model bears masks.

Everything but the clock is a pure function of seed, recipe, data and first weights. A run that is
stopped and resumed from its checkpoint, on the same devices, ends in the same bits as one that
was left alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from certmask_jax.training.recipes import Recipe

if TYPE_CHECKING:
    from certmask_jax.training.loop import Progress, Trained
    from certmask_jax.training.training_run import train

__all__ = ["Progress", "Recipe", "Trained", "train"]

# Imported when they are asked for: options name recipes, and need neither Optax nor Flax.
_LOOP = {"Progress": "loop", "Trained": "loop", "train": "training_run"}


def __getattr__(name: str) -> Any:
    if name in _LOOP:
        return getattr(importlib.import_module(f"{__name__}.{_LOOP[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
