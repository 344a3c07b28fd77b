"""One patch for many images of a run: which it is made on, the search, and the patch as it is kept.

``patch.png`` is the patch, and ``universal.json`` says how it was made and on which images. It is
written last: a patch without it is not finished. What there is of a search lies in
``universal.npz`` until then, so one that was stopped or killed goes on, and ends with the same
patch.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from certmask_jax._text import json_of, some
from certmask_jax.attacks.universal_patches import UniversalPatch, universal_patch
from certmask_jax.defenses import Defense
from certmask_jax.files import fingerprint, whole_files
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.threats import Threat
from certmask_jax.programs.attacking.attack_options import UNDEFENDED, AttackOptions
from certmask_jax.programs.attacking.attacked_job import (
    check_target,
    defenses_of,
    model_of,
    threat_of,
)
from certmask_jax.programs.attacking.given_patches import GivenPatch
from certmask_jax.programs.attacking.given_places import check_place
from certmask_jax.programs.attacking.run_claims import Claims
from certmask_jax.programs.attacking.universal_options import UniversalOptions
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.command_line import hint
from certmask_jax.tables.image_sets import readable

PATCH, MANIFEST, SO_FAR = "patch.png", "universal.json", "universal.npz"
NAME = "universal"

_SECONDS_BETWEEN = 30.0  # after which what there is of a search is written


class Halves(NamedTuple):
    """Numbers of the images of a run.

    Attributes:
      made_on: those that the patch is made on.
      held_out: the others.
    """

    made_on: tuple[int, ...]
    held_out: tuple[int, ...]


class UniversalJob:
    """Makes the patch, once.

    Args:
      job: whose images and model.
      claims: what its run said of its images.
      options: of the search: steps, optimizer, seed, and a place if there is but one.
      universal: of the patch.

    Attributes:
      halves: which images it is made on.

    Raises:
      ValueError: for a threat of several patches or shapes, a defense or class that is not there.
    """

    def __init__(
        self, job: Job, claims: Claims, options: AttackOptions, universal: UniversalOptions
    ) -> None:
        self._job, self._claims, self._options, self._own = job, claims, options, universal
        self._threat = _threat(job, options)
        self._masked = _masked_images(job, universal)
        self._images = readable(job.dataset, job.unreadable)
        check_target(job, universal.target)
        self.halves = halves(len(self._images), universal.held_out, options.seed)

    def facts(self) -> dict[str, Any]:
        """What decides patch and numbers, JSON-able."""
        search = self._options.facts()
        names = [name for name in ("seed", "undefended", "place") if name in search]
        known: dict[str, Any] = {name: search[name] for name in names}
        wanted = ("steps", "step_size", "schedule", "optimizer", "momentum", "surplus")
        how = {name: search["search"][name] for name in wanted}
        return {**known, "search": how, "universal": self._own.facts()}

    def patch(
        self,
        folder: Path,
        about: Mapping[str, Any],
        *,
        stop: Callable[[], bool],
        progress: Callable[[int, float], None],
    ) -> GivenPatch | None:
        """The patch of a folder, which is made there unless it is finished; None if stopped.

        Args:
          folder: of the attack.
          about: provenance, for the manifest.
          stop: asked every few steps.
          progress: told how many steps are done, and the loss of the last.
        """
        if (folder / MANIFEST).exists():
            return _finished(folder)
        begun = _so_far(folder / SO_FAR)
        written = time.monotonic()

        def told(now: UniversalPatch) -> None:
            nonlocal written
            progress(len(now.losses), float(now.losses[-1]))
            if time.monotonic() - written > _SECONDS_BETWEEN:
                _keep(folder / SO_FAR, now)
                written = time.monotonic()

        images, labels, ids = self._read()
        made = universal_patch(
            model_of(self._job),
            self._job.params,
            images,
            labels,
            threat=self._threat,
            target=self._own.target,
            masked_images=self._masked,
            preprocessing=self._job.preprocessing,
            search=self._options.search,
            transformations=self._own.transformations,
            images_a_step=self._own.images_a_step,
            seed=self._options.seed,
            begun=begun,
            progress=told,
            stop=stop,
        )
        progress(len(made.losses), float(made.losses[-1]))
        if len(made.losses) < self._options.search.steps:
            _keep(folder / SO_FAR, made)
            return None
        _write(folder, made, {**self.facts(), "made_on": ids, "provenance": about})
        return GivenPatch(NAME, made.pixels)

    def _read(self) -> tuple[NDArray[np.uint8], NDArray[np.int32], list[str]]:
        parts = [self._images.read(n, n + 1) for n in self.halves.made_on]
        ids = [part.ids[0] for part in parts]
        self._claims.check_known(ids)
        images = np.concatenate([part.images for part in parts])
        return images, np.concatenate([part.labels for part in parts]).astype(np.int32), ids


def halves(count: int, held_out: float, seed: int) -> Halves:
    """The images that a patch is made on, at least one, and the others; by the seed alone."""
    order = np.random.default_rng([seed, count]).permutation(count)
    first = max(1, round((1 - held_out) * count))
    return Halves(tuple(sorted(order[:first].tolist())), tuple(sorted(order[first:].tolist())))


def _threat(job: Job, options: AttackOptions) -> Threat:
    """Where the patch may be: everywhere that is allowed, or at the one place."""
    threat = threat_of(job)
    if len(threat) != 1 or len(threat.shapes) != 1:
        raise ValueError(
            f"--universal: expected a run against one patch of one shape, got {threat}"
        )
    if options.place is None:
        return threat
    [(height, width)] = threat.shapes
    row, column = options.place
    check_place((height, width), threat, options.place)
    there = (row, column, row + height, column + width)
    return Threat.of(threat.image_size, (height, width), region=there)


def _masked_images(job: Job, universal: UniversalOptions) -> MaskedImages | None:
    """Those of the defense that the patch is made under."""
    if universal.under is None or universal.under == UNDEFENDED:
        return None
    known = {
        spec: defense for spec, defense in defenses_of(job).items() if isinstance(defense, Defense)
    }
    if universal.under not in known:
        raise ValueError(
            f"--under: expected a defense of the run that hides parts of the image, "
            f"{some(list(known)) or 'of which it has none'}, got {universal.under!r}"
            f"{hint(universal.under, list(known))}"
        )
    return known[universal.under].masked_images


def _finished(folder: Path) -> GivenPatch:
    """The patch that lies in a folder; ``ValueError`` if it is another than was made there."""
    try:
        known = json_of((folder / MANIFEST).read_text())["patch"]["sha256"]
        picture = np.asarray(Image.open(folder / PATCH), np.uint8)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / MANIFEST}: expected what was written of the patch ({error}); "
            "choose another folder"
        ) from error
    pixels = picture.reshape(*picture.shape[:2], -1)
    if fingerprint.of_arrays(pixels) != known:
        raise ValueError(
            f"{folder / PATCH}: expected the patch that was made here, got other pixels; "
            "--patch-images takes patches from elsewhere"
        )
    return GivenPatch(NAME, pixels)


def _write(folder: Path, made: UniversalPatch, about: Mapping[str, Any]) -> None:
    pixels = made.pixels[..., 0] if made.pixels.shape[2] == 1 else made.pixels
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "png")
    whole_files.write(folder / PATCH, picture.getvalue())
    height, width, _ = made.pixels.shape
    manifest = {
        **about,
        "patch": {
            "file": PATCH,
            "size": [height, width],
            "sha256": fingerprint.of_arrays(made.pixels),
        },
        "losses": made.losses.tolist(),
        "judged": made.judged.tolist(),
    }
    text = json.dumps(fingerprint.plain(manifest), indent=1, sort_keys=True)
    whole_files.write_text(folder / MANIFEST, text + "\n")
    (folder / SO_FAR).unlink(missing_ok=True)


def _keep(path: Path, now: UniversalPatch) -> None:
    file = io.BytesIO()
    parts = {f"motion{number}": part for number, part in enumerate(now.motion)}
    parts |= {"levels": now.levels, "losses": now.losses}
    np.savez(file, pixels=now.pixels, judged=now.judged, **parts)  # type: ignore[arg-type]
    whole_files.write(path, file.getvalue())


def _so_far(path: Path) -> UniversalPatch | None:
    """What there is of a search; None where there is nothing that can be read."""
    try:
        with np.load(path, allow_pickle=False) as there:
            motion = tuple(there[f"motion{n}"] for n in range(len(there.files) - 4))
            pixels, losses, levels, judged = (
                there[name] for name in ("pixels", "losses", "levels", "judged")
            )
            return UniversalPatch(pixels, losses, levels, motion, judged)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
