"""Attacks without gradients on the defenses of a run, for models that have none or do not tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_images import AttackedImages
from certmask_jax.attacks.black_box import search_without_gradients
from certmask_jax.attacks.patch_places import random_places, weakest_places
from certmask_jax.defenses import ALERT, Defense, Guarantee
from certmask_jax.inference.defended_model import DefendedPredictor
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.masks.distinct_unions import unmasked
from certmask_jax.programs.attacking.attack_job import AnyDefense, Attacker, model_of, pixel_threat
from certmask_jax.programs.attacking.given_places import places_at
from certmask_jax.programs.certification_job import Job


class AskedRule:
    """A defense of a job, or its model for None, of which labels and margins alone are known.

    Attributes:
      engine: the model on the masked images of the defense, or on whole images.
      weakest: see ``weakest_places``; None where masks are not of pixels, or there are none.
    """

    def __init__(self, job: Job, defense: Defense | None) -> None:
        size = job.attacks[0].image_size
        parts = _parts_of(job)
        is_function = isinstance(job.model.apply_fn, NumpyFunction)
        self.engine = engine_for(
            model_of(job),
            job.params,
            (*size, job.model.data_config.channels),
            defense.masked_images
            if defense is not None
            else unmasked(size if parts is None else parts.grid),
            preprocessing=job.preprocessing,
            local=job.local,
            mesh=device_mesh(jax.local_devices()[:1]) if is_function else None,
        )
        self._guard = None if defense is None else DefendedPredictor(defense, self.engine)
        self.weakest: NDArray[np.int64] | None = None
        if defense is not None and defense.threat.image_size == size:
            self.weakest = weakest_places(defense.masked_images, defense.threat)

    def answers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """What is answered to ``uint8[B, h, w, c]``: ``int32[B]``."""
        if self._guard is not None:
            return self._guard(images).labels
        return np.asarray(self.engine.table(images).predictions[:, 0], np.int32)


def _parts_of(job: Job) -> TwoParts | None:
    """The model of a job, if it is one in two parts, whose maps are masked and not its images."""
    return job.model.apply_fn if isinstance(job.model.apply_fn, TwoParts) else None


class BlackBoxAttacker(Attacker):
    """As ``Attacker``, by asking alone: ``options.black_box`` says how."""

    def _seen(self, defense: AnyDefense | None) -> Any:
        if defense is not None and not isinstance(defense, Defense):
            raise ValueError(
                f"--search: expected gradient for {defense.spec or defense.name}, as searches "
                "without gradients know masks alone; leave it out with --only"
            )
        return AskedRule(self._job, defense)

    def _attacked(
        self,
        defense: AnyDefense | None,
        asked: Any,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        numbers: Sequence[int],
        stop: Callable[[], bool],
    ) -> AttackedImages:
        assert self._options.black_box is not None
        may_alert = defense is not None and defense.guarantee == Guarantee.DETECTION
        return search_without_gradients(
            asked.engine,
            asked.answers,
            images,
            labels,
            [self._places(defense, asked, number) for number in numbers],
            search=self._options.black_box,
            allowed=(ALERT,) if may_alert else (),
            parts=_parts_of(self._job),
            seed=self._options.seed,
            numbers=numbers,
            stop=stop,
        )

    def _places(self, defense: AnyDefense | None, asked: Any, number: int) -> NDArray[np.int64]:
        options, threat = self._options, pixel_threat(self._job, defense)
        random = np.random.default_rng([options.seed, number])
        if options.place is not None:
            return places_at(threat, options.place)[: options.locations]
        places = asked.weakest
        if places is None or options.places == "random":
            return random_places(threat, options.locations, random)
        return places[random.permutation(len(places))[: options.locations]]
