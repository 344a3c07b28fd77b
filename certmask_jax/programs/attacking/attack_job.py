"""Attacks on the defenses of a run, image by image: goals from its tables, searches, and lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_images import AttackedImages, WhenSettled, attack_images
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.goal_choice import promising_goals
from certmask_jax.attacks.goals_in_time import GoalsInTime
from certmask_jax.attacks.table_goals import Goal
from certmask_jax.programs import program
from certmask_jax.programs.attacking.attack_folder import AttackFolder, Line
from certmask_jax.programs.attacking.attack_lines import line_after, line_before
from certmask_jax.programs.attacking.attack_options import AttackOptions
from certmask_jax.programs.attacking.attacked_job import (
    AnyDefense,
    asked_of,
    defenses_of,
    model_of,
    pixel_threat,
)
from certmask_jax.programs.attacking.clean_verdicts import Before, before_attack, joined
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.certification_job import Job
from certmask_jax.tables.image_sets import readable

_IMAGES_A_SEARCH = 4
"""Images of a block for each search that runs at once: one that is over makes room for the next."""


class Stops(NamedTuple):
    """What is asked whether to stop: between steps of a search, and before there are any."""

    between_steps: Callable[[], bool]
    late: Callable[[], bool]


class Attacker:
    """Attacks the images of a job under each defense, and keeps what comes of it.

    Args:
      job: what is attacked.
      options: how.
      folder: where lines and images are kept.
      claims: of the run that is attacked, if it is one: images that do not give now what the run
        recorded of them are not attacked, and their lines say ``otherwise``. Which are attacked
        is chosen by what the run says.
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
        self._claims, self._said_otherwise = claims, False

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
        late: Callable[[], bool] | None = None,
    ) -> list[Line]:
        """Attacks some images, by their numbers, under one of ``specs``.

        Lines and patched images are kept as soon as an image is settled.

        Args:
          spec: one of them.
          numbers: of the images.
          stop: asked between steps.
          told: called with lines that are new.
          late: asked before there are steps, while images are looked at and goals are chosen; as
            ``stop`` by default.

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

        stops = Stops(stop, stop if late is None else late)
        self._block(spec, defense, self._asked[spec], numbers, stops, keep)
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
        stops: Stops,
        keep: Callable[[Sequence[Line], Sequence[NDArray[np.uint8] | None]], None],
    ) -> None:
        """Gives the lines of images that are settled, and their patched images, to ``keep``."""
        parts = [self._images.read(n, n + 1) for n in numbers]
        images = np.concatenate([part.images for part in parts])
        labels = np.concatenate([part.labels for part in parts]).astype(np.int32)
        ids = [part.ids[0] for part in parts]
        befores: list[Before] = []
        for at in range(0, len(numbers), self._options.at_once):
            if befores and stops.late():
                return
            some = slice(at, at + self._options.at_once)
            befores.append(self._before(defense, asked, images[some], labels[some]))
        before = joined(befores)
        shown = defense is not None
        lines = [
            {
                "defense": spec,
                "number": number,
                "image": ids[row],
                **line_before(before, row, int(labels[row]), self._class_names, conditions=shown),
            }
            for row, number in enumerate(numbers)
        ]
        wanted = self._wanted(defense, self._of_run(spec, ids, before), labels)
        for row, line in enumerate(lines):
            if self._is_otherwise(line):
                line["otherwise"] = True
                wanted[row] = False
        chosen = [int(row) for row in np.flatnonzero(wanted)]
        others = [line for place, line in enumerate(lines) if place not in set(chosen)]
        keep(others, [None] * len(others))
        if not chosen:
            return
        waiting = set(range(len(chosen)))

        def settled(made: AttackedImages, rows: Sequence[int]) -> None:
            waiting.difference_update(rows)
            own = [lines[chosen[row]] | line_after(made, row, self._options.target) for row in rows]
            keep(own, [made.patched[row] for row in rows])

        known = [numbers[row] for row in chosen]
        of_chosen = images[chosen], labels[chosen], known
        made = self._attacked(defense, asked, *of_chosen, stops, settled)
        settled(made, [row for row in sorted(waiting) if made.settled[row]])

    def _is_otherwise(self, line: Line) -> bool:
        """Whether it is not what the run recorded; the first such image is said at once."""
        if self._claims is None or self._claims.agree(line):
            return False
        if not (self._said_otherwise or self._claims.is_tie(line)):
            self._said_otherwise = True
            program.say(
                f"error: {line['image']} does not give what the run recorded under "
                f"{line['defense']}; what does is still attacked"
            )
        return True

    def _of_run(self, spec: str, ids: Sequence[str], before: Before) -> Before:
        """With the certificates that the run gave, which a margin guard may have made fewer."""
        if self._claims is None:
            return before
        known = self._claims.by_id(spec)
        certified = [
            known[one].is_certified if one in known else bool(before.certified[row])
            for row, one in enumerate(ids)
        ]
        return before._replace(certified=np.asarray(certified, np.bool_))

    def _before(
        self,
        defense: AnyDefense | None,
        asked: Attacked,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
    ) -> Before:
        return before_attack(self._job, defense, asked, images, labels)

    def _wanted(
        self, defense: AnyDefense | None, before: Before, labels: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Which images are attacked."""
        right, certified = before.answers == labels, before.certified
        if self._options.target is not None:  # an image of that class has nothing to be made of it
            right &= labels != self._options.target
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
        stops: Stops,
        settled: WhenSettled,
    ) -> AttackedImages:
        options = self._options
        threat = pixel_threat(self._job, defense)
        given = options.given_places(threat)

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
                target=options.target,
                stop=stops.late,
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
            targeted=options.target is not None,
            seed=options.seed,
            numbers=numbers,
            stop=stops.between_steps,
            when_settled=settled,
        )
