"""Where evidence comes from: the local logits of one pass, or one pass for each band of an image.

Pure functions of arrays that are traced inside the program of a run. A source is a frozen value, so
that defenses on the same evidence share it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.masked_pass import masked_logits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import SeenTokens, TokenDropping
from certmask_jax.inference.token_groups import TokenGroup, grouped
from certmask_jax.inference.views import views_of
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.visible_tokens import kept_counts


class Evidence(NamedTuple):
    """What cells or bands of T images say."""

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
        """The evidence of ``uint8[T, h, w, c]``."""
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
      dropping: how the model drops tokens, if it is to be given those alone that are seen.
      seen_size: (height, width) that masked images are resized to; None: as they are.
    """

    apply_fn: ApplyFn
    bands: MaskedImages
    whole: bool
    at_once: int
    dropping: TokenDropping | None = None
    seen_size: tuple[int, int] | None = None

    @property
    def boxes(self) -> NDArray[np.int32]:
        """``int32[N, R, 4]``: what is hidden of an image in each of its passes, the image last."""
        bands = self.bands.boxes
        return np.concatenate([bands, np.zeros_like(bands[:1])]) if self.whole else bands

    @property
    def masked(self) -> int:
        """Masked images of an image, with the image itself where it is one of them."""
        return len(self.bands) + self.whole

    def passes(self) -> int:
        """Passes of the model that an image takes, of each view of each masked image."""
        return self.masked * max(1, len(views_of(self.apply_fn)))

    def tokens(self) -> tuple[int, ...]:
        """How many tokens its programs take, where hidden ones are dropped; else none."""
        return tuple(group.most for group in _groups_of_tokens(self))

    def slots(self, images: int) -> int:
        """Places for passes, with those left empty, that so many images at once take."""
        each = (_rounds(images * len(masks), self.at_once) for masks, _ in _groups(self))
        views = max(1, len(views_of(self.apply_fn)))
        return sum(rounds * size for rounds, size in each) * views

    def evidence(self, params: Any, images: Array, preprocessing: Preprocessing) -> Evidence:
        """The evidence of ``uint8[T, h, w, c]``, ``at_once`` masked images at a time, evenly."""
        groups = _groups(self)
        parts = [
            self._logits(model, masks, params, images, preprocessing) for masks, model in groups
        ]
        logits = parts[0]
        if len(groups) > 1:
            order = np.argsort(np.concatenate([masks for masks, _ in groups]))
            logits = jnp.take(jnp.concatenate(parts, axis=1), order.astype(np.int32), axis=1)
        if not self.whole:
            return Evidence(logits, None)
        return Evidence(logits[:, :-1], logits[:, -1])

    def _logits(
        self,
        model: ApplyFn,
        masks: NDArray[np.int32],
        params: Any,
        images: Array,
        preprocessing: Preprocessing,
    ) -> Array:
        """``float32[T, masks, K]`` of some of the masks."""
        boxes = jnp.asarray(self.boxes[masks])
        count = len(images) * len(masks)
        rounds, size = _rounds(count, self.at_once)
        items = np.minimum(np.arange(rounds * size, dtype=np.int32), count - 1)  # the last again
        image_of, mask_of = (
            jnp.asarray(a.reshape(rounds, size)) for a in np.divmod(items, np.int32(len(masks)))
        )

        def some(of: tuple[Array, Array]) -> Array:
            return seen(model, params, images, boxes[of[1]], of[0], preprocessing)

        if rounds == 1:
            logits = some((image_of[0], mask_of[0]))
        else:
            logits = jax.lax.map(some, (image_of, mask_of)).reshape(rounds * size, -1)
        return logits[:count].reshape(len(images), len(masks), -1)


def _rounds(count: int, at_once: int) -> tuple[int, int]:
    """How many rounds of how many masked images: even ones, so that few places stay empty."""
    rounds = -(-count // at_once)
    return rounds, -(-count // rounds)


@functools.lru_cache(maxsize=64)
def _groups(source: BandSource) -> tuple[tuple[NDArray[np.int32], ApplyFn], ...]:
    """Masks that go through one program, and the model that sees them."""
    dropping = source.dropping
    if dropping is None:
        return ((np.arange(source.masked, dtype=np.int32), source.apply_fn),)
    return tuple(
        (group.masks.astype(np.int32), SeenTokens(dropping, group.most, group.padded))
        for group in _groups_of_tokens(source)
    )


@functools.lru_cache(maxsize=64)
def _groups_of_tokens(source: BandSource) -> tuple[TokenGroup, ...]:
    """Masks that leave about as many tokens; none where hidden tokens are filled."""
    if source.dropping is None:
        return ()
    token, seen = source.dropping.token, source.seen_size
    counts = kept_counts(source.boxes, source.bands.image_size, token=token, seen_size=seen)
    return grouped(counts)


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
