"""Rules on local evidence as a search without gradients asks them: the nearest label, its lead.

Such a search looks at labels of masked images and at how far they lead. A rule on local evidence
has no masked images. Its own scores stand in their place: the label that it is nearest to
answering, and how much less the next one lags behind.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_evidence import OnLocalLogits
from certmask_jax.attacks.rule_scores import wrong_lags
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine import Indices
from certmask_jax.inference.evidence_sources import LocalSource
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.distinct_unions import unmasked
from certmask_jax.tables.outputs import Outputs

_AT_ONCE = 8


class NearestLabels:
    """Stands where an engine does: one masked image that hides nothing, whose label is a rule's.

    Attributes:
      masked_images: that one.
    """

    def __init__(self, asked: OnLocalLogits) -> None:
        self._program, self._params = asked.program_of(_nearest_program), asked.params
        self.masked_images = unmasked(asked.rule.threat.image_size)

    def images_at_once(self) -> int:
        """As many as an attack has in a block, and more."""
        return 64

    @reproducible()
    def evaluate(self, images: NDArray[np.uint8], image_of: Indices, columns: Indices) -> Outputs:
        """What an engine says of W items, whose ``columns`` are all 0."""
        del columns
        parts = []
        for at in range(0, len(images), _AT_ONCE):
            some = images[at : at + _AT_ONCE]
            filled = np.pad(some, ((0, _AT_ONCE - len(some)), *((0, 0),) * 3))
            labels_and_leads = self._program(self._params, jnp.asarray(filled))
            parts.append([np.asarray(column)[: len(some)] for column in labels_and_leads])
        labels, leads = (np.concatenate(column)[image_of] for column in zip(*parts, strict=True))
        known = Outputs.unknown((len(labels),))
        sure = np.ones(len(labels), np.float32)
        return dataclasses.replace(known, predictions=labels, margins=leads, confidences=sure)


@functools.lru_cache(maxsize=16)
def _nearest_program(
    local: LocalLogits, preprocessing: Preprocessing, defense: LocalDefense
) -> Any:
    def nearest(params: Any, images: Array) -> tuple[Array, Array]:
        evidence = LocalSource(local).evidence(params, images, preprocessing).parts
        lags = jax.vmap(functools.partial(wrong_lags, defense))(evidence.astype(jnp.float32))
        (first, second), (label, _) = (part.T for part in jax.lax.top_k(-lags, 2))
        return label, first - second

    return jax.jit(nearest)
