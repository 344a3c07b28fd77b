"""A defense of a job, or its model, of which nothing but answers, labels and margins is asked."""

from __future__ import annotations

import functools

import jax
import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.asked_scores import NearestLabels
from certmask_jax.attacks.attacked_evidence import OnBands, OnLocalLogits
from certmask_jax.attacks.black_box import AskedLabels
from certmask_jax.attacks.patch_places import weakest_places
from certmask_jax.defenses import Defense
from certmask_jax.inference.defended_model import DefendedPredictor
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.engine import Engine
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.masks.distinct_unions import MaskedImages, unmasked
from certmask_jax.programs.attacking.attacked_job import (
    AnyDefense,
    asked_of,
    image_shape,
    model_of,
)
from certmask_jax.programs.certification_job import Job


class AskedRule:
    """A defense of a job, or its model for None, of which it is known what it says and no more.

    Args:
      job: with its model.
      defense: one of it.

    Attributes:
      evidence: a defense on evidence as a search sees it; None for others.
    """

    def __init__(self, job: Job, defense: AnyDefense | None) -> None:
        self._job, self._defense = job, defense
        self.evidence: OnBands | OnLocalLogits | None = None
        if defense is not None and not isinstance(defense, Defense):
            asked = asked_of(job, defense)
            assert isinstance(asked, OnBands | OnLocalLogits)
            self.evidence = asked

    @functools.cached_property
    def labels(self) -> AskedLabels:
        """What says labels and margins: of masked images or bands, of the image, of a rule."""
        if isinstance(self.evidence, OnLocalLogits):
            return NearestLabels(self.evidence)
        return self._engine

    @functools.cached_property
    def _engine(self) -> Engine:
        """The model on masked images, on bands, or on the image itself."""
        job, defense = self._job, self._defense
        shape, kind = image_shape(job), job.model.kind
        if isinstance(defense, Defense):
            seen = defense.masked_images
        elif self.evidence is not None:
            seen = MaskedImages(self.evidence.boxes, shape[:2])
        else:
            seen = unmasked(kind.masked_size(shape[:2]))
        return engine_for(
            model_of(job),
            job.params,
            shape,
            seen,
            preprocessing=job.preprocessing,
            local=job.local,
            mesh=None if kind.is_traced else device_mesh(jax.local_devices()[:1]),
        )

    @functools.cached_property
    def weakest(self) -> NDArray[np.int64] | None:
        """See ``weakest_places``; None where masks are not of pixels, or there are none."""
        defense = self._defense
        if isinstance(defense, Defense) and defense.threat.image_size == image_shape(self._job)[:2]:
            return weakest_places(defense.masked_images, defense.threat)
        return None

    def answers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """What is answered to ``uint8[B, h, w, c]``: ``int32[B]``, labels or ``ALERT``."""
        if self.evidence is not None:
            return self.evidence.answers(images)
        if isinstance(self._defense, Defense):
            return DefendedPredictor(self._defense, self._engine)(images).labels
        step = self._engine.images_at_once()
        parts = [
            np.asarray(self._engine.table(images[at : at + step]).predictions[:, 0], np.int32)
            for at in range(0, len(images), step)
        ]
        return np.concatenate([np.zeros(0, np.int32), *parts])
