"""How to train: one frozen value, and the recipes that have a name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

from certmask_jax._later import Later
from certmask_jax.inference import views
from certmask_jax.training.cutout import BANDS, Cutout

if TYPE_CHECKING:
    import optax
else:
    optax = Later("optax")

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "cosine"]
Compute = Literal["float32", "bfloat16"]
Train = Literal["all", "head", "last_block"]

_EPOCHS_A_STEP = 5
_FACTOR = 0.1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are PatchCleanser's fine-tuning (its section 4.1 and program).

    Attributes:
      epochs: passes over the training images.
      batch_size: images a step.
      optimizer: ``"sgd"`` with ``momentum``, or ``"adamw"``.
      learning_rate: the highest, a factor of the gradient; None for 0.01 with ResNets and 0.001
        with all others (``learning_rate``).
      momentum: of sgd, the fraction of the step before that is taken again.
      weight_decay: fraction of the parameters that is added to the gradient (sgd) or taken off
        them, times the learning rate (adamw); all parameters.
      schedule: ``"step"``, times 0.1 every 5 epochs, or ``"cosine"`` down to 0.
      warmup: fraction of all steps in which the learning rate grows from 0.
      cutout: what an image loses, see ``ABOUT``.
      cutout_size: side of the random squares in pixels; None for 128 at 224, scaled to the input.
      cutout_squares: how many random squares an image loses.
      cutout_band: rows or columns of the band, or side of the block, that is seen alone; None for 4
        at 32, scaled to the input.
      feature_window: side in cells of a random window of local logits that is left out of the mean
        of each image (PatchGuard's masked features), or 0. For models with local logits.
      bounds_patch: side in pixels of the patches whose interval bounds are trained on
        (Chiang et al., 2020), beside the logits, half each; or 0.
      bounds_ramp: fraction of all steps in which what such patches may do grows, from nothing to
        everything between black and white. Bounds that are wide from the start teach one answer.
      bounds_places: how many such patches an image has in a step, each at a place drawn anew.
      flip: mirror every other image.
      crop: random crops after padding by so many pixels.
      shift: random moves, up to so many pixels.
      rotate: random turns, up to so many degrees.
      zoom: random zoom, up to this fraction of the size.
      views: train on views of each image too, made after Cutout: each gives a loss of its own, and
        the mean counts; a step then takes as many passes of a batch. Accuracies are those of the
        logits' mean.
      label_smoothing: fraction of the label that is spread over all classes alike.
      compute: ``"bfloat16"`` computes in it; parameters, norms, loss and optimiser stay float32.
      ema: decay a step of an exponential moving average of the variables, which is then the
        result; 0 for none.
      looped: compile the step as the body of a loop of one. It then rounds as whole epochs in one
        loop do, which is how the shipped digits model was made. XLA's convolutions are very slow
        inside loops on CPU.
      seed: of all randomness: first weights, order of the images, moves and Cutout.
      train: what is trained: ``"all"``; ``"last_block"``, the last block of a ViT with its norm and
        head; or ``"head"``, on features of copies of each image that are computed once. All else is
        frozen.
      copies: of each image for the head: the image itself, and others that lose and move what the
        recipe says. One is drawn each time that an image has its turn.

    Raises:
      ValueError: for a value out of range.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: Optimizer = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "step"
    warmup: float = 0.0
    cutout: Cutout = "random"
    cutout_size: int | None = None
    cutout_squares: int = 2
    cutout_band: int | None = None
    feature_window: int = 0
    bounds_patch: int = 0
    bounds_places: int = 4
    bounds_ramp: float = 0.5
    flip: bool = False
    crop: int = 0
    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    views: str = views.NONE
    label_smoothing: float = 0.0
    compute: Compute = "float32"
    ema: float = 0.0
    looped: bool = False
    seed: int = 0
    train: Train = "all"
    copies: int = 4

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", get_args(Optimizer)),
            ("schedule", get_args(Schedule)),
            ("cutout", get_args(Cutout)),
            ("compute", get_args(Compute)),
            ("train", get_args(Train)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        views.read(self.views)
        if self.train == "head" and self.views != views.NONE:
            raise ValueError(
                f"views: expected none where the head alone is trained, on features of images, got "
                f"{self.views!r}"
            )
        ones = ("epochs", "batch_size", "cutout_squares", "copies", "bounds_places")
        zeros = ("seed", "feature_window", "bounds_patch")
        for name, least in (*((one, 1) for one in ones), *((zero, 0) for zero in zeros)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.train == "head" and self.cutout == "greedy":
            raise ValueError(
                "cutout: expected none, random, mask_set or two_masks where the head alone is "
                "trained, whose features are computed before there is a head to be greedy on; got "
                "'greedy'"
            )
        if self.cutout_size is not None and self.cutout_size < 1:
            raise ValueError(
                f"cutout_size: expected at least 1 pixel, got {self.cutout_size}; cutout none "
                "trains without squares"
            )
        if self.cutout_band is not None and self.cutout_band < 1:
            raise ValueError(f"cutout_band: expected at least 1 pixel, got {self.cutout_band}")
        if self.feature_window and self.train == "head":
            raise ValueError(
                "feature_window: expected 0 where the head alone is trained, on features of whole "
                f"images, got {self.feature_window}"
            )
        for name in ("momentum", "warmup", "bounds_ramp", "label_smoothing", "ema", "zoom"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 <= {name} < 1, got {getattr(self, name)}")
        for name in ("weight_decay", "crop", "shift", "rotate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"learning_rate: expected more than 0, got {self.learning_rate}")

    def check_input_size(self, input_size: tuple[int, int]) -> None:
        """``ValueError`` where squares, bands, padding or moves are larger than the images."""
        side = min(input_size)
        for name, applies in (
            ("cutout_size", self.cutout == "random"),
            ("cutout_band", self.cutout in BANDS),
            ("crop", True),
            ("shift", True),
        ):
            value = getattr(self, name)
            most = {"cutout_size": max(input_size), "cutout_band": side - 1}.get(name, side)
            if applies and value is not None and value > most:
                raise ValueError(
                    f"{name}: expected at most {most} on images of {input_size[0]}x{input_size[1]} "
                    f"pixels, got {value:g}"
                )


RECIPES: dict[str, tuple[str, Recipe]] = {
    "patchcleanser": ("fine-tuning as PatchCleanser: SGD, x0.1 every 5 epochs", Recipe()),
    "from_scratch": (
        "AdamW and cosine with flips and crops, for small natural images",
        Recipe(
            epochs=100,
            batch_size=128,
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup=0.1,
            flip=True,
            crop=4,
            label_smoothing=0.1,
        ),
    ),
    "head": (
        "a head on frozen features: AdamW and cosine",
        Recipe(
            epochs=50,
            optimizer="adamw",
            learning_rate=1e-2,
            weight_decay=0.3,
            schedule="cosine",
            train="head",
        ),
    ),
    "digits": (
        "how the shipped vit_digits was made",
        Recipe(
            epochs=500,
            batch_size=128,
            optimizer="adamw",
            learning_rate=4e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup=0.1,
            cutout_size=3,
            shift=1.0,
            rotate=6.0,
            zoom=0.06,
            label_smoothing=0.1,
            looped=True,
        ),
    ),
}
"""Name -> one line about it, and the recipe."""


def learning_rate(recipe: Recipe, model_name: str) -> float:
    """The recipe's, or PatchCleanser's by family: 1e-2 for ResNets, 1e-3 for all others."""
    if recipe.learning_rate is not None:
        return recipe.learning_rate
    return 1e-2 if "resnet" in model_name.lower() else 1e-3


def schedule(recipe: Recipe, peak: float, *, steps_per_epoch: int) -> Callable[[Any], Any]:
    """Learning rate of a step, counted from 0; ``peak`` as of ``learning_rate``."""
    import optax  # here, as options name recipes and need no more of them

    total = steps_per_epoch * recipe.epochs
    warmup = max(1, math.floor(total * recipe.warmup + 1e-9)) if recipe.warmup else 0
    if recipe.schedule == "cosine":
        if warmup:
            return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total)
        return optax.cosine_decay_schedule(peak, total)
    drops = range(_EPOCHS_A_STEP, recipe.epochs, _EPOCHS_A_STEP)
    stepped = optax.piecewise_constant_schedule(
        peak, {epoch * steps_per_epoch: _FACTOR for epoch in drops}
    )
    if not warmup:
        return stepped
    grown = optax.linear_schedule(0.0, 1.0, warmup)
    return lambda count: stepped(count) * grown(count)


def optimizer(recipe: Recipe, rate: Callable[[Any], Any]) -> optax.GradientTransformation:
    """The recipe's optimiser with a learning rate that is a function of the step."""
    import optax

    if recipe.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=recipe.weight_decay)
    sgd = optax.sgd(rate, momentum=recipe.momentum)
    if not recipe.weight_decay:
        return sgd
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay), sgd)
