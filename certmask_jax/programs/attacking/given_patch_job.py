"""Given patches on the images of a run: what each defense, and the model alone, answers to them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses import ALERT
from certmask_jax.files import fingerprint
from certmask_jax.programs.attacking.asked_rule import AskedRule
from certmask_jax.programs.attacking.attack_folder import AttackFolder, Line
from certmask_jax.programs.attacking.attack_options import AttackOptions
from certmask_jax.programs.attacking.attacked_job import defenses_of, detects, threat_of
from certmask_jax.programs.attacking.given_patches import GivenPatch, pasted
from certmask_jax.programs.attacking.given_places import place_of
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.certification_job import Job
from certmask_jax.tables.image_sets import readable

_IMAGES_AT_ONCE = 32


class PatchTest:
    """Puts patches on the images of a job, and keeps what is answered.

    Args:
      job: whose images, model and defenses.
      claims: what its run said of the images without a patch.
      patches: that fit its threat.
      folder: where lines and patched images go.
      options: the seed of the places, or the one place, and whether the model alone is asked too.
    """

    def __init__(
        self,
        job: Job,
        claims: Claims,
        patches: Sequence[GivenPatch],
        folder: AttackFolder,
        options: AttackOptions,
    ) -> None:
        self._job, self._claims, self._patches = job, claims, patches
        self._folder, self._options = folder, options
        self._row_of = {image_id: row for row, image_id in enumerate(claims.ids)}
        self._images = readable(job.dataset, job.unreadable)
        self._names: list[str] = list(job.provenance.get("class_names") or ())

    def specs(self) -> list[str]:
        """What is asked, in order."""
        return self._options.chosen(list(defenses_of(self._job)))

    def remaining(self) -> int:
        """How many lines are not there yet."""
        specs = self.specs()
        done = sum(line["defense"] in specs for line in self._folder.lines)
        return len(specs) * len(self._patches) * len(self._images) - done

    def run(self, stop: Callable[[], bool], progress: Callable[[int, int, int], None]) -> bool:
        """Asks what was not asked yet; whether that is all. As ``Attacker.run``."""
        done = {(line["defense"], line["patch"], line["number"]) for line in self._folder.lines}
        specs = self.specs()
        ask: dict[str, AskedRule] | None = None
        threat = threat_of(self._job)
        for start in range(0, len(self._images), _IMAGES_AT_ONCE):
            batch = self._images.read(start, start + _IMAGES_AT_ONCE)
            self._claims.check_known(batch.ids)
            for patch in self._patches:
                rows = [
                    row
                    for row in range(len(batch.ids))
                    if any((spec, patch.name, start + row) not in done for spec in specs)
                ]
                if not rows:
                    continue
                if stop():
                    return False
                if ask is None:
                    by_spec = defenses_of(self._job)
                    ask = {spec: AskedRule(self._job, by_spec.get(spec)) for spec in specs}
                images, lines = [], []
                for row in rows:
                    random = np.random.default_rng(
                        [self._options.seed, start + row, zlib.crc32(patch.name.encode())]
                    )
                    place = place_of(patch.size, threat, random, self._options.place)
                    images.append(pasted(batch.images[row], patch, place))
                    lines.append(
                        {
                            "patch": patch.name,
                            "number": start + row,
                            "image": batch.ids[row],
                            "label": int(batch.labels[row]),
                            "class": self._name_of(int(batch.labels[row])),
                            "place": place.tolist(),
                        }
                    )
                told = self._asked(ask, np.stack(images), lines)
                both = zip(told, images * len(ask), strict=True)
                new = [
                    (line, image)
                    for line, image in both
                    if (line["defense"], patch.name, line["number"]) not in done
                ]
                self._folder.add([line for line, _ in new], [image for _, image in new])
                tried = [line for line, _ in new if line["broken"] is not None]
                progress(len(new), len(tried), sum(line["broken"] for line in tried))
        return True

    def _asked(
        self, ask: dict[str, AskedRule], images: NDArray[np.uint8], about: Sequence[Line]
    ) -> list[Line]:
        lines = []
        for spec, rule in ask.items():
            for line, after in zip(about, rule.answers(images).tolist(), strict=True):
                is_right, is_certified = self._before(spec, self._row_of[line["image"]])
                withstands = after == line["label"] or (after == ALERT and detects(self._job, spec))
                lines.append(
                    {
                        **line,
                        "defense": spec,
                        "after": "alert" if after == ALERT else after,
                        "right": withstands,
                        "certified": is_certified,
                        "broken": not withstands if is_right else None,
                    }
                )
        return lines

    def _before(self, spec: str, row: int) -> tuple[bool, bool]:
        claim = self._claims.of[spec][row]
        return claim.is_right, claim.is_certified

    def _name_of(self, label: int) -> str:
        return str((label < len(self._names) and self._names[label]) or label)


def facts(patches: Sequence[GivenPatch], options: AttackOptions, *, scaled: bool) -> dict[str, Any]:
    """What decides the numbers of a test of patches, JSON-able."""
    place = {} if options.place is None else {"place": list(options.place)}
    return {
        "patches": {
            patch.name: {"size": list(patch.size), "sha256": fingerprint.of_arrays(patch.pixels)}
            for patch in patches
        },
        "scaled": scaled,
        "seed": options.seed,
        "undefended": options.undefended,
        **place,
    }
