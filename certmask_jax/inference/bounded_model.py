"""A model that is told nothing of hidden pixels: what it says whatever stands there.

A plain model sees a fill where a mask hides. This one sees every image at once that agrees with the
pixels that are seen: by interval bounds, the label of a masked image is the one that all of these
get, if they can be shown to get one. So what it says of a mask that hides a patch was never in the
attacker's hands (Chiang et al., ICLR 2020).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.inference.bound_propagation import LogitBounds, logit_bounds
from certmask_jax.inference.interval_rules import Interval, outward
from certmask_jax.inference.masking import hidden_pixels
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.tables.outputs import CERTAIN, LARGEST_MARGIN, NO_LABEL, Outputs


@dataclasses.dataclass(frozen=True)
class BoundedModel:
    """A model function whose masked images are boxes, for ``predict`` and the programs.

    Called as a function it is the model itself. Equal ones hash alike.

    Attributes:
      apply_fn: the model, ``(params, float32[B, h, w, c]) -> logits [B, K]``, of operations that
        have bounds, see ``interval_bounds``.
    """

    apply_fn: ApplyFn

    def __call__(self, params: Any, images: Array) -> Array:
        """Logits ``float32[B, K]`` of images as the model sees them."""
        return self.apply_fn(params, images)

    def outputs(
        self,
        params: Any,
        images: Array,
        boxes: Array,
        image_of: Array,
        preprocessing: Preprocessing,
    ) -> Outputs:
        """What it says of W masked images: ``[W]`` each.

        The label that all images get which agree in what is seen, with confidence ``CERTAIN`` and
        for a margin by how much at the least. Where that cannot be shown: the label half way
        between the bounds, margin 0 and confidence 0.

        Args:
          params: of the model.
          images: ``uint8[B, h, w, c]``.
          boxes: ``int32[W, R, 4]``, what each masked image hides.
          image_of: ``int32[W]``, of which image.
          preprocessing: see ``check_bounded``.

        Raises:
          ValueError: for what has no bounds.
        """
        check_bounded(preprocessing)
        size = (images.shape[1], images.shape[2])
        lower, upper = boxes_of(images, image_of, boxes, preprocessing)
        with preprocessing.products():
            bounds = logit_bounds(self.apply_fn, params, lower, upper)
        hides = jax.vmap(lambda mask: hidden_pixels(mask, size).any())(boxes)
        return _said(bounds, hides)


def check_bounded(preprocessing: Preprocessing) -> None:
    """``ValueError`` for images that are not boxes once they are preprocessed, or rounded more."""
    for name, is_there, expected in (
        ("precision", preprocessing.precision != "highest", "highest, which float32 bounds are of"),
        ("resize_to", preprocessing.resize_to is not None, "images of the size that the model sees,"
         " as what a resize makes of a box is none"),
        ("encoding", preprocessing.encoding != "fill", "fill, as a model of bounds sees no masks"),
    ):  # fmt: skip
        if is_there:
            raise ValueError(
                f"{name}: for interval bounds expected {expected}; got "
                f"{getattr(preprocessing, name)}"
            )


def boxes_of(
    images: Array, image_of: Array, boxes: Array, preprocessing: Preprocessing
) -> Interval:
    """The boxes of W masked images as a model sees them, ``float32[W, h, w, c]`` at each end.

    What is hidden is anything between black and white. Arguments are those of
    ``BoundedModel.outputs``.
    """

    def box_of(number: Array, mask: Array) -> Interval:
        black, white = (
            model_input(images[number], mask, dataclasses.replace(preprocessing, fill=fill))
            for fill in ((0.0,), (255.0,))
        )
        return _widened(outward(Interval(black, white)), preprocessing)

    boxes_seen: Interval = jax.vmap(box_of)(image_of, boxes)
    return boxes_seen


def _widened(box: Interval, preprocessing: Preprocessing) -> Interval:
    """By what a device may lose where it takes a mean from a pixel that is nearly as large."""
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    lost = (2.0**-21 * (1 + np.abs(mean)) / std).reshape(1, 1, -1)
    return Interval(box.lower - lost, box.upper + lost)


def _said(bounds: LogitBounds, hides: Array) -> Outputs:
    lead, label = bounds.leads.max(axis=1), bounds.leads.argmax(axis=1)
    middle = bounds.middle.argmax(axis=1)
    certain = lead > 0  # not of NaN
    broken = ~hides & ~jnp.isfinite(bounds.middle).all(axis=1)
    margin = jnp.where(certain, jnp.minimum(lead, LARGEST_MARGIN), 0)
    return Outputs(
        jnp.where(broken, NO_LABEL, jnp.where(certain, label, middle)).astype(jnp.int16),
        jnp.where(broken, jnp.nan, margin).astype(jnp.float16),
        jnp.where(certain & ~broken, CERTAIN, 0).astype(jnp.float16),
    )
