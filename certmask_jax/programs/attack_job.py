"""Attacks on the defenses of a run, image by image: goals from its tables, searches, and lines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_images import AttackedImages, attack_images
from certmask_jax.attacks.patch_places import places_by_gradient, random_places, weakest_places
from certmask_jax.attacks.table_goals import Goal, goals_at, undefended_goals
from certmask_jax.defenses import ALERT, Defense
from certmask_jax.inference.masked_pass import masked_logits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.token_dropping import SeenTokens
from certmask_jax.inference.whole_table import predict
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.attack_folder import AttackFolder, Line
from certmask_jax.programs.attack_options import AttackOptions
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.given_places import places_at
from certmask_jax.tables.image_sets import readable

_MOST_PLACES = 64


class Attacker:
    """Attacks the images of a job under each defense, and keeps what comes of it.

    Args:
      job, options: what is attacked, and how.
      folder: where lines and patched images go.
      tick: called with the images of a search that are settled and those that are broken, again and
        again while it runs; what it raises ends the search, of which nothing is kept.
    """

    def __init__(
        self,
        job: Job,
        options: AttackOptions,
        folder: AttackFolder,
        tick: Callable[[int, int], None] | None = None,
    ) -> None:
        self._job, self._options, self._folder, self._tick = job, options, folder, tick
        self._apply_fn = model_of(job)
        self._images = readable(job.dataset, job.unreadable)
        self._classes = job.model.num_classes
        self._class_names: list[str] = list(job.provenance.get("class_names") or ())
        self._weak: dict[Defense, NDArray[np.int64]] = {}

    def specs(self) -> list[str]:
        """What is attacked, in order."""
        return self._options.chosen([_spec(defense) for defense in self._job.defenses])

    def remaining(self) -> int:
        """How many lines are not there yet."""
        specs = self.specs()
        done = sum(spec in specs for spec, _ in self._folder.done())
        return len(specs) * len(self._images) - done

    def run(self, stop: Callable[[], bool], progress: Callable[[int, int, int], None]) -> bool:
        """Attacks what is not settled yet; whether all is.

        Args:
          stop: asked before each block of images.
          progress: told of the lines that are new, and of those how many were attacked and broken.
        """
        done = self._folder.done()
        size = max(self._options.at_once, 8)
        for spec in self.specs():
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
                lines = self.attack(spec, numbers)
                tried = [line for line in lines if line["broken"] is not None]
                progress(len(lines), len(tried), sum(line["broken"] for line in tried))
        return True

    def attack(self, spec: str, numbers: Sequence[int]) -> list[Line]:
        """Attacks some images, by their numbers, under one of ``specs``; gives their new lines."""
        by_spec = {_spec(defense): defense for defense in self._job.defenses}
        lines, images = self._block(spec, by_spec.get(spec), numbers)
        self._folder.add(lines, images)
        return lines

    def _block(
        self, spec: str, defense: Defense | None, numbers: Sequence[int]
    ) -> tuple[list[Line], list[NDArray[np.uint8] | None]]:
        parts = [self._images.read(n, n + 1) for n in numbers]
        images = np.concatenate([part.images for part in parts])
        labels = np.concatenate([part.labels for part in parts]).astype(np.int32)
        ids = [part.ids[0] for part in parts]
        logits = self._logits(images)
        lines: list[Line] = [
            {
                "defense": spec,
                "number": number,
                "image": image_id,
                "label": int(label),
                "class": self._name_of(int(label)),
                "broken": None,
            }
            for number, image_id, label in zip(numbers, ids, labels, strict=True)
        ]
        chosen, goals = self._goals(defense, images, labels, logits, numbers, lines)
        patched: list[NDArray[np.uint8] | None] = [None] * len(lines)
        if chosen:
            made = self._attacked(defense, images, labels, goals, chosen, numbers)
            for row, place in enumerate(chosen):
                lines[place] |= _line_of(made, row)
                patched[place] = made.patched[row]
        return lines, patched

    def _goals(
        self,
        defense: Defense | None,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        logits: NDArray[np.float32],
        numbers: Sequence[int],
        lines: list[Line],
    ) -> tuple[list[int], list[list[Goal]]]:
        """Which images of a block are attacked, and what for; fills in what is known before."""
        threat = self._job.defenses[0].threat if defense is None else defense.threat
        goals: list[list[Goal]] = [[] for _ in labels]
        options = self._options
        if defense is None:
            before = logits.argmax(axis=1)
            certified = np.zeros(len(labels), np.bool_)
            published = certified
        else:
            table = predict(
                self._apply_fn,
                self._job.params,
                images,
                defense.masked_images,
                preprocessing=self._job.preprocessing,
            )
            before = defense.rule(table)
            verdicts = defense.verdicts(table, labels)
            certified = verdicts["worst_case"]
            conditions = {name: verdicts[name] for name in defense.row_conditions}
            published = np.any([np.zeros_like(certified), *conditions.values()], axis=0)
            for row, line in enumerate(lines):
                line["conditions"] = {name: bool(v[row]) for name, v in conditions.items()}
        right = before == labels
        wanted = {
            "all": right,
            "certified": right & certified,
            "published": right & published & ~certified,
            "uncertified": right & ~certified,
        }[options.images]
        if defense is None:
            wanted = right
        by_gradient = options.places == "gradient" or (
            defense is None and options.places == "weakest"
        )
        by_gradient = by_gradient and options.place is None
        mass = self._mass(images, labels) if by_gradient and len(threat) == 1 else None
        for row, line in enumerate(lines):
            line |= {"before": int(before[row]), "certified": bool(certified[row])}
            if not wanted[row]:
                continue
            random = np.random.default_rng([options.seed, numbers[row]])
            if options.place is not None:
                places = places_at(threat, options.place)
            elif mass is not None:
                places = places_by_gradient(mass[row], threat, options.locations)
            elif defense is None or options.places == "random":
                places = random_places(threat, options.locations, random)
            else:
                places = self._weakest(defense, random)
            if defense is None:
                goals[row] = undefended_goals(int(labels[row]), places=places)
                continue
            likely = [int(z) for z in np.argsort(-logits[row]) if z != labels[row]]
            goals[row] = goals_at(
                defense,
                table.predictions[row],
                table.margins[row],
                int(labels[row]),
                places=places,
                targets=likely[: options.targets],
                num_classes=self._classes,
            )[: options.locations]
        return [int(row) for row in np.flatnonzero(wanted)], goals

    def _weakest(self, defense: Defense, random: np.random.Generator) -> NDArray[np.int64]:
        if defense not in self._weak:
            self._weak[defense] = weakest_places(defense.masked_images, defense.threat)
        places = self._weak[defense]
        return places[random.permutation(len(places))[:_MOST_PLACES]]

    def _attacked(
        self,
        defense: Defense | None,
        images: NDArray[np.uint8],
        labels: NDArray[np.int32],
        goals: Sequence[Sequence[Goal]],
        chosen: Sequence[int],
        numbers: Sequence[int],
    ) -> AttackedImages:
        return attack_images(
            self._apply_fn,
            self._job.params,
            images[list(chosen)],
            labels[list(chosen)],
            defense,
            [goals[row] for row in chosen],
            preprocessing=self._job.preprocessing,
            search=self._options.search,
            starts=self._options.starts,
            at_once=self._options.at_once,
            seed=self._options.seed,
            numbers=[numbers[row] for row in chosen],
            progress=self._tick,
        )

    @reproducible()
    def _logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(images)
        padded = np.pad(images, ((0, -count % 8), *((0, 0),) * 3))
        parts = [
            _plain_logits(self._apply_fn, self._job.preprocessing)(
                self._job.params, jnp.asarray(padded[at : at + 8])
            )
            for at in range(0, len(padded), 8)
        ]
        return np.concatenate([np.asarray(part) for part in parts])[:count]

    @reproducible()
    def _mass(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """``float32[B, h, w]``: how much each pixel matters to the lead of the true label."""
        program = _mass_program(self._apply_fn, self._job.preprocessing)
        each = [
            program(self._job.params, jnp.asarray(image), jnp.int32(label))
            for image, label in zip(images, labels, strict=True)
        ]
        return np.stack([np.asarray(one) for one in each])

    def _name_of(self, label: int) -> str:
        named = label < len(self._class_names) and self._class_names[label]
        return str(named or label)


def model_of(job: Job) -> ApplyFn:
    """The model function that is certified, as a function of masked images."""
    return job.model.apply_fn if job.dropping is None else SeenTokens(job.dropping)


def threat_of(job: Job) -> Threat:
    """What the attacker may do, which is one for all defenses.

    Raises:
      ValueError: for no defense, or several threats.
    """
    threats = list(dict.fromkeys(defense.threat for defense in job.defenses))
    if len(threats) != 1:
        raise ValueError(
            f"expected defenses against one threat, got {len(threats)}; attack them one by one"
        )
    return threats[0]


def _spec(defense: Defense) -> str:
    return defense.spec or defense.name


def _line_of(made: AttackedImages, row: int) -> Line:
    after = int(made.answers[row])
    return {
        "after": "alert" if after == ALERT else after,
        "broken": bool(made.broken[row]),
        "target": int(made.targets[row]),
        "place": made.places[row].tolist(),
        "steps": int(made.steps[row]),
    }


@functools.lru_cache(maxsize=4)
def _plain_logits(apply_fn: Any, preprocessing: Any) -> Any:
    @jax.jit
    def logits(params: Any, images: jax.Array) -> jax.Array:
        nothing = jnp.zeros((len(images), 1, 4), jnp.int32)
        return masked_logits(apply_fn, params, images, nothing, preprocessing=preprocessing)

    return logits


@functools.lru_cache(maxsize=4)
def _mass_program(apply_fn: Any, preprocessing: Any) -> Any:
    @jax.jit
    def mass(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        def lead(pixels: jax.Array) -> jax.Array:
            nothing = jnp.zeros((1, 1, 4), jnp.int32)
            [logits] = masked_logits(
                apply_fn, params, pixels[None], nothing, preprocessing=preprocessing
            )
            own = jnp.arange(len(logits), dtype=jnp.int32) == label
            named = jnp.where(own, logits, 0).sum()
            return named - jnp.where(own, -jnp.inf, logits).max()

        return jnp.abs(jax.grad(lead)(image.astype(jnp.float32))).sum(axis=-1)

    return mass
