"""The times of a budget in milliseconds: of chunks before the search, of chosen guards after it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from certmask_jax.certification import evaluation
from certmask_jax.files import fingerprint
from certmask_jax.files.storage import AnyPath
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.programs import program
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.choosing import wave_times
from certmask_jax.programs.choosing.choose_candidates import Candidate
from certmask_jax.programs.choosing.choose_options import ChooseOptions
from certmask_jax.programs.choosing.choose_report import Choice
from certmask_jax.programs.choosing.image_halves import SomeImages
from certmask_jax.programs.choosing.wave_times import WaveTimes
from certmask_jax.programs.measurements import answer_times
from certmask_jax.tables.image_sets import readable

_TIMED = 20  # images that the chosen guards are timed on


def of_variants(
    options: ChooseOptions,
    jobs: Mapping[str, Job],
    candidates: Sequence[Candidate],
    folder: AnyPath,
) -> dict[str, WaveTimes]:
    """Seconds of chunks for each variant, measured before the search; none for a budget of passes.

    Raises:
      ValueError: for a model that does not evaluate masked images one by one.
    """
    if options.unit == "passes":
        return {}
    times = {}
    for name, job in jobs.items():
        mine = [one for one in candidates if one.variant.name == name]
        least = min(one.first for one in mine)
        # A choice that could afford nothing leaves its times, and its folder may become another's.
        of = fingerprint.of_facts({**job.identity, "first": least})[:8]
        measure = functools.partial(_measured, options, job, mine, least)
        times[name] = wave_times.kept(folder, f"{name} {of}", measure)
    return times


def _measured(options: ChooseOptions, job: Job, mine: Sequence[Candidate], least: int) -> WaveTimes:
    """Times of a variant with the candidates ``mine``; ``least`` is the smallest first wave."""
    image = readable(job.dataset, job.unreadable).read(0, 1).images
    engine = engine_for(
        job.model.apply_fn,
        job.params,
        image.shape[1:],
        evaluation.merged([one.defenses[0] for one in mine])[0],
        preprocessing=job.preprocessing,
        local=job.local,
        dropping=job.dropping,
    ).for_blocks(None)
    if not engine.by_items:
        raise ValueError(
            f"--budget {options.budget:g}ms: expected a model that evaluates masked images one by "
            f"one, got {job.model.name}, which evaluates all of an image together; give passes, or "
            "--whole-images"
        )
    program.say("timing chunks of the model")
    return wave_times.measured(engine, image, least)


def of_guards(
    jobs: Mapping[str, Job], choice: Choice, images: SomeImages
) -> dict[int, dict[str, float]]:
    """The chosen guards on some images, one at a time, in turn: by their numbers."""
    some = readable(images, next(iter(jobs.values())).unreadable).read(0, _TIMED).images
    answers = {}
    for one in choice.front:
        candidate = choice.candidates[one]
        job = jobs[candidate.variant.name]
        answers[one] = answer_times.guard(
            job.model.apply_fn,
            job.params,
            candidate.defenses[0],
            some.shape[3],
            preprocessing=job.preprocessing,
            local=job.local,
            dropping=job.dropping,
        )
    times = answer_times.measured(answers, some)
    return {one: {**of, "images": len(some)} for one, of in times.items()}
