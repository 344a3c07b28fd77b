"""Attacks without gradients on the defenses of a run, for models that have none or do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_images import AttackedImages, WhenSettled
from certmask_jax.attacks.black_box import search_without_gradients
from certmask_jax.attacks.patch_places import random_places
from certmask_jax.defenses import ALERT, Guarantee
from certmask_jax.programs.attacking.asked_rule import AskedRule
from certmask_jax.programs.attacking.attack_job import Attacker, Stops
from certmask_jax.programs.attacking.attacked_job import AnyDefense, pixel_threat
from certmask_jax.programs.attacking.clean_verdicts import Before


class BlackBoxAttacker(Attacker):
    """As ``Attacker``, by asking alone: ``options.black_box`` says how."""

    def _seen(self, defense: AnyDefense | None) -> Any:
        return AskedRule(self._job, defense)

    def _before(
        self,
        defense: AnyDefense | None,
        asked: Any,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
    ) -> Before:
        seen = asked if asked.evidence is None else asked.evidence
        return super()._before(defense, seen, images, labels)

    def _attacked(
        self,
        defense: AnyDefense | None,
        asked: Any,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        numbers: Sequence[int],
        stops: Stops,
        settled: WhenSettled,
    ) -> AttackedImages:
        assert self._options.black_box is not None
        may_alert = defense is not None and defense.guarantee == Guarantee.DETECTION
        return search_without_gradients(
            asked.labels,
            asked.answers,
            images,
            labels,
            [self._places(defense, asked, number) for number in numbers],
            search=self._options.black_box,
            allowed=(ALERT,) if may_alert else (),
            parts=self._job.model.kind.parts,
            at_once=self._options.at_once,
            seed=self._options.seed,
            numbers=numbers,
            stop=stops.between_steps,
            when_settled=settled,
        )

    def _places(self, defense: AnyDefense | None, asked: Any, number: int) -> NDArray[np.int64]:
        options, threat = self._options, pixel_threat(self._job, defense)
        random = np.random.default_rng([options.seed, number])
        given = options.given_places(threat)
        if given is not None:
            all_of_them = len(given) <= options.locations or options.place is not None
            order = np.arange(len(given)) if all_of_them else random.permutation(len(given))
            return given[order[: options.locations]]
        places = asked.weakest
        if places is None or options.places == "random":
            return random_places(threat, options.locations, random)
        return places[random.permutation(len(places))[: options.locations]]
