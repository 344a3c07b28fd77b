"""Training with Cutout, from scratch or from given weights, so that a model bears masks.

Everything but the clock is a pure function of seed, recipe, data and first weights. A run that is
stopped and resumed from its checkpoint, on the same devices, ends in the same bits as one that
was left alone.
"""

from certmask_jax.training.loop import Progress, Trained
from certmask_jax.training.recipes import Recipe
from certmask_jax.training.training_run import train

__all__ = ["Progress", "Recipe", "Trained", "train"]
