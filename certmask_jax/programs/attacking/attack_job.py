"""Attacks on the defenses of a run, image by image: goals from its tables, searches, and lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_evidence import OnBands, OnLocalLogits
from certmask_jax.attacks.attacked_images import AttackedImages, WhenSettled, attack_images
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.goal_choice import promising_goals
from certmask_jax.attacks.goals_in_time import GoalsInTime
from certmask_jax.attacks.table_goals import Goal
from certmask_jax.defenses import ALERT, Defense
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.whole_table import predict
from certmask_jax.programs.attacking.attack_folder import AttackFolder, Line
from certmask_jax.programs.attacking.attack_options import AttackOptions
from certmask_jax.programs.attacking.attacked_job import (
    AnyDefense,
    asked_of,
    defenses_of,
    model_of,
    pixel_threat,
)
from certmask_jax.programs.attacking.given_places import places_at
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.certification_job import Job
from certmask_jax.tables.image_sets import readable

_IMAGES_A_SEARCH = 4
"""Images of a block for each search that runs at once: one that is over makes room for the next."""


class Before(NamedTuple):
    """What is known of B images without a patch."""

    answers: NDArray[np.integer]
    certified: NDArray[np.bool_]
    conditions: Mapping[str, NDArray[np.bool_]]


class Attacker:
    """Attacks the images of a job under each defense, and keeps what comes of it.

    Args:
      job: what is attacked.
      options: how.
      folder: where lines and images are kept.
      claims: of the run that is attacked, if it is one: images that are right now and were not in
        the run, or the other way round, are not attacked, and their lines say ``otherwise``.
    """

    def __init__(
        self, job: Job, options: AttackOptions, folder: AttackFolder, claims: Claims | None = None
    ) -> None:
        self._job, self._options, self._folder = job, options, folder
        self._images = readable(job.dataset, job.unreadable)
        self._class_names: list[str] = list(job.provenance.get("class_names") or ())
        of_job = defenses_of(job)
        self._targets = {spec: of_job.get(spec) for spec in options.chosen(list(of_job))}
        self._asked: dict[str, Attacked] = {}
        self._was_right = {
            spec: {} if claims is None else claims.right_by_id(spec) for spec in self._targets
        }

    def specs(self) -> list[str]:
        """What is attacked, in order."""
        return list(self._targets)

    def remaining(self) -> int:
        """How many lines are not there yet."""
        done = sum(spec in self._targets for spec, _ in self._folder.done())
        return len(self._targets) * len(self._images) - done

    def run(self, stop: Callable[[], bool], progress: Callable[[int, int, int], None]) -> bool:
        """Attacks what is not settled yet; whether all is.

        Args:
          stop: asked before each block of images, and between steps.
          progress: told of the lines that are new, and of those how many were attacked and broken.
        """

        def told(lines: Sequence[Line]) -> None:
            tried = [line for line in lines if line["broken"] is not None]
            progress(len(lines), len(tried), sum(line["broken"] for line in tried))

        done = self._folder.done()
        size = max(_IMAGES_A_SEARCH * self._options.at_once, 8)
        for spec in self._targets:
            for start in range(0, len(self._images), size):
                numbers = [
                    n
                    for n in range(start, min(start + size, len(self._images)))
                    if (spec, n) not in done
                ]
                if not numbers:
                    continue
                if stop():
                    return False
                lines = self.attack(spec, numbers, stop, told)
                if len(lines) < len(numbers):
                    return False
            self._asked.pop(spec, None)
        return True

    def attack(
        self,
        spec: str,
        numbers: Sequence[int],
        stop: Callable[[], bool],
        told: Callable[[Sequence[Line]], None] | None = None,
    ) -> list[Line]:
        """Attacks some images, by their numbers, under one of ``specs``.

        Lines and patched images are kept as soon as an image is settled.

        Args:
          spec: one of them.
          numbers: of the images.
          stop: asked between steps.
          told: called with lines that are new.

        Returns:
          The new lines, which are kept: fewer than there are numbers if it was stopped.
        """
        defense = self._targets[spec]
        if spec not in self._asked:
            self._asked[spec] = self._seen(defense)
        kept: list[Line] = []

        def keep(lines: Sequence[Line], images: Sequence[NDArray[np.uint8] | None]) -> None:
            if lines:
                self._folder.add(lines, images)
                kept.extend(lines)
                if told is not None:
                    told(lines)

        self._block(spec, defense, self._asked[spec], numbers, stop, keep)
        return kept

    def _seen(self, defense: AnyDefense | None) -> Attacked:
        """What is attacked, as a search sees it."""
        return asked_of(self._job, defense)

    def _block(
        self,
        spec: str,
        defense: AnyDefense | None,
        asked: Attacked,
        numbers: Sequence[int],
        stop: Callable[[], bool],
        keep: Callable[[Sequence[Line], Sequence[NDArray[np.uint8] | None]], None],
    ) -> None:
        """Gives the lines of images that are settled, and their patched images, to ``keep``."""
        parts = [self._images.read(n, n + 1) for n in numbers]
        images = np.concatenate([part.images for part in parts])
        labels = np.concatenate([part.labels for part in parts]).astype(np.int32)
        ids = [part.ids[0] for part in parts]
        before = self._before(defense, asked, images, labels)
        right = before.answers == labels
        was_right = [self._was_right[spec].get(ids[row], right[row]) for row in range(len(ids))]
        otherwise = right != np.asarray(was_right)
        lines: list[Line] = [
            {
                "defense": spec,
                "number": number,
                "image": ids[row],
                "label": int(labels[row]),
                "class": self._name_of(int(labels[row])),
                "broken": None,
                "before": int(before.answers[row]),
                "certified": bool(before.certified[row]),
                **(
                    {"conditions": {key: bool(v[row]) for key, v in before.conditions.items()}}
                    if defense is not None
                    else {}
                ),
                **({"otherwise": True} if otherwise[row] else {}),
            }
            for row, number in enumerate(numbers)
        ]
        wanted = self._wanted(defense, before, labels) & ~otherwise
        chosen = [int(row) for row in np.flatnonzero(wanted)]
        others = [line for place, line in enumerate(lines) if place not in set(chosen)]
        keep(others, [None] * len(others))
        if not chosen:
            return
        waiting = set(range(len(chosen)))

        def settled(made: AttackedImages, rows: Sequence[int]) -> None:
            waiting.difference_update(rows)
            own = [lines[chosen[row]] | _line_of(made, row) for row in rows]
            keep(own, [made.patched[row] for row in rows])

        known = [numbers[row] for row in chosen]
        of_chosen = images[chosen], labels[chosen], known
        made = self._attacked(defense, asked, *of_chosen, stop, settled)
        settled(made, [row for row in sorted(waiting) if made.settled[row]])

    def _before(
        self,
        defense: AnyDefense | None,
        asked: Attacked,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
    ) -> Before:
        nothing = np.zeros(len(labels), np.bool_)
        if defense is None:
            return Before(asked.answers(images), nothing, {})
        if isinstance(asked, OnBands | OnLocalLogits):
            assert isinstance(defense, EvidenceDefense)
            found = asked.results(images, labels)
            worst_case, *holds = np.asarray(found.verdicts).T
            return Before(
                np.asarray(found.answers[:, 0]),
                worst_case,
                dict(zip(defense.condition_names, holds, strict=True)),
            )
        assert isinstance(defense, Defense)
        table = predict(
            model_of(self._job),
            self._job.params,
            images,
            defense.masked_images,
            preprocessing=self._job.preprocessing,
        )
        verdicts = defense.verdicts(table, labels)
        conditions = {name: verdicts[name] for name in defense.row_conditions}
        return Before(defense.rule(table), verdicts["worst_case"], conditions)

    def _wanted(
        self, defense: AnyDefense | None, before: Before, labels: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Which images are attacked."""
        right, certified = before.answers == labels, before.certified
        if defense is None:
            return right
        published = np.any([np.zeros_like(certified), *before.conditions.values()], axis=0)
        return {
            "all": right,
            "certified": right & certified,
            "published": right & published & ~certified,
            "uncertified": right & ~certified,
        }[self._options.images]

    def _attacked(
        self,
        defense: AnyDefense | None,
        asked: Attacked,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        numbers: Sequence[int],
        stop: Callable[[], bool],
        settled: WhenSettled,
    ) -> AttackedImages:
        options = self._options
        threat = pixel_threat(self._job, defense)
        given = None if options.place is None else places_at(threat, options.place)

        def choose(some: range) -> list[list[Goal]]:
            rows = slice(some.start, some.stop)
            return promising_goals(
                asked,
                images[rows],
                labels[rows],
                threat=threat,
                search=options.search,
                locations=options.locations,
                targets=options.targets,
                where=options.places,
                seeds=[[options.seed, number] for number in numbers[rows]],
                given=given,
            )

        goals = GoalsInTime(len(images), choose, patches=len(threat), at_once=options.at_once)
        return attack_images(
            model_of(self._job),
            self._job.params,
            images,
            labels,
            asked,
            goals,
            preprocessing=self._job.preprocessing,
            search=options.search,
            starts=options.starts,
            at_once=options.at_once,
            seed=options.seed,
            numbers=numbers,
            stop=stop,
            when_settled=settled,
        )

    def _name_of(self, label: int) -> str:
        named = label < len(self._class_names) and self._class_names[label]
        return str(named or label)


def _line_of(made: AttackedImages, row: int) -> Line:
    after = int(made.answers[row])
    return {
        "after": "alert" if after == ALERT else after,
        "broken": bool(made.broken[row]),
        "target": int(made.targets[row]),
        "place": made.places[row].tolist(),
        "steps": int(made.steps[row]),
    }
