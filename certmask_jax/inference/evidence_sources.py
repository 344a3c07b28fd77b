"""Where evidence comes from: the local logits of one pass, or one pass for each band of an image.

Pure functions of arrays that are traced inside the program of a run. A source is a frozen value, so
that defenses on the same evidence share it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.masked_pass import masked_logits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.views import views_of
from certmask_jax.masks.distinct_unions import MaskedImages


class Evidence(NamedTuple):
    """Of T images."""

    parts: Array  # float32[T, ..., K]: of each cell, or each band
    whole: Array | None  # float32[T, K], the logits of the image; None where nobody asked


@dataclasses.dataclass(frozen=True)
class LocalSource:
    """The local logits of a model, one pass an image; their mean are the logits of the image.

    Attributes:
      local: the model.
    """

    local: LocalLogits

    def passes(self) -> int:
        """Passes of the model that an image takes."""
        return 1

    def slots(self, images: int) -> int:
        """Places for passes, with those left empty, that so many images at once take."""
        return images

    def evidence(self, params: Any, images: Array, preprocessing: Preprocessing) -> Evidence:
        """Of ``uint8[T, h, w, c]``."""
        nothing = jnp.zeros((len(images), 1, 4), jnp.int32)
        parts = masked_logits(
            self.local.apply_fn, params, images, nothing, preprocessing=preprocessing
        )
        return Evidence(parts, parts.mean(axis=(1, 2)))


@dataclasses.dataclass(frozen=True)
class BandSource:
    """The logits of each band of an image, all else hidden: a pass for each.

    Attributes:
      apply_fn: the model.
      bands: what is hidden around each band.
      whole: whether the image itself is evaluated too, in a pass more.
      at_once: passes that a device makes together, at most.
    """

    apply_fn: ApplyFn
    bands: MaskedImages
    whole: bool
    at_once: int

    @property
    def masked(self) -> int:
        """Masked images of an image, with the image itself where it is one of them."""
        return len(self.bands) + self.whole

    def passes(self) -> int:
        """Passes of the model that an image takes, of each view of each masked image."""
        return self.masked * max(1, len(views_of(self.apply_fn)))

    def slots(self, images: int) -> int:
        """Places for passes, with those left empty, that so many images at once take."""
        rounds, size = self._rounds(images)
        return rounds * size * max(1, len(views_of(self.apply_fn)))

    def evidence(self, params: Any, images: Array, preprocessing: Preprocessing) -> Evidence:
        """Of ``uint8[T, h, w, c]``: ``at_once`` masked images after ``at_once``, evenly."""
        boxes = self.bands.boxes
        if self.whole:
            boxes = np.concatenate([boxes, np.zeros_like(boxes[:1])])
        rounds, size = self._rounds(len(images))
        count = len(images) * self.masked
        items = np.minimum(np.arange(rounds * size, dtype=np.int32), count - 1)  # the last again
        image_of, mask_of = (a.reshape(rounds, size) for a in np.divmod(items, self.masked))

        def some(of: tuple[Array, Array]) -> Array:
            return seen(self.apply_fn, params, images, jnp.asarray(boxes)[of[1]], of[0],
                        preprocessing)  # fmt: skip

        work = jnp.asarray(image_of, jnp.int32), jnp.asarray(mask_of, jnp.int32)
        found = some((work[0][0], work[1][0]))[None] if rounds == 1 else jax.lax.map(some, work)
        logits = found.reshape(rounds * size, -1)[:count]
        logits = logits.reshape(len(images), self.masked, -1)
        if not self.whole:
            return Evidence(logits, None)
        return Evidence(logits[:, :-1], logits[:, -1])

    def _rounds(self, images: int) -> tuple[int, int]:
        """How many rounds of how many masked images: even ones, so that few places stay empty."""
        count = images * self.masked
        rounds = -(-count // self.at_once)
        return rounds, -(-count // rounds)


Source = LocalSource | BandSource


def seen(
    apply_fn: ApplyFn,
    params: Any,
    images: Array,
    boxes: Array,
    image_of: Array,
    preprocessing: Preprocessing,
) -> Array:
    """What the model says of W masked images: the one place where bands meet it.

    ``boxes int32[W, R, 4]`` are hidden of the images ``image_of int32[W]``; ``float32[W, K]``.
    """
    return masked_logits(
        apply_fn, params, images, boxes, preprocessing=preprocessing, image_of=image_of
    )
