"""Chooses a defense for a budget of passes: ``certmask choose --budget 30 --patch 5 ...``.

Candidates are measured on a part of the images, drawn at random, and the chosen ones are certified
on all others; those numbers are the result. A choice that was stopped, however, goes on when the
same command is given again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from certmask_jax._text import counted
from certmask_jax.certification import certified_size, evaluation
from certmask_jax.certification.report.labels import against
from certmask_jax.certification.successive_halving import Dropped, Measured, Search, rungs, search
from certmask_jax.data import Dataset
from certmask_jax.files import whole_files
from certmask_jax.inference import views
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import program, runtime
from certmask_jax.programs.certification_job import Job, opened
from certmask_jax.programs.choosing import budget_times, choice_folder, choose_options
from certmask_jax.programs.choosing.choice_folder import ASKED, RESULT
from certmask_jax.programs.choosing.choose_candidates import Candidate, candidates
from certmask_jax.programs.choosing.choose_options import ChooseOptions, Variant
from certmask_jax.programs.choosing.choose_report import Choice, as_text, nothing_left, to_json
from certmask_jax.programs.choosing.choose_runs import Certified, Runs, Stopped, joined
from certmask_jax.programs.choosing.image_halves import SomeImages, halves
from certmask_jax.programs.command_line import CommandLine, as_options
from certmask_jax.programs.printing import width_of
from certmask_jax.programs.run_folder import write_report

STOPPED = 3
"""Exit status of a choice that ended as it had no more time."""


def parser() -> CommandLine:
    """The command line."""
    return choose_options.parser()


def run(options: ChooseOptions, words: Sequence[str]) -> int:
    """Chooses, writes the folder and prints the front; returns the exit status."""
    started = time.monotonic()
    config = options.variants[0].config
    runtime.start(config.runtime)
    command = program.typed("choose", words)
    jobs = {one.name: _opened(options, one, command) for one in options.variants}
    job = next(iter(jobs.values()))
    assert isinstance(job.dataset, Dataset)
    attacks = job.attacks
    _check(attacks, config.threat.sizes)
    each = [views.passes_each(jobs[one.name].identity) for one in options.variants]
    all_candidates = candidates(options, attacks, each)
    with as_options("calibrate", "num_images"):
        chosen_on, others = halves(job.dataset, options.calibrate, options.seed)
    folder = config.out or Path("runs") / choice_folder.name_of(job, options, all_candidates)
    deadline = None if config.max_minutes is None else started + 60 * config.max_minutes
    with choice_folder.alone(folder, choice_folder.asked_of(options)):
        runs = Runs(options, jobs, folder, deadline)
        return _chosen(runs, all_candidates, chosen_on, others, words)


def _chosen(
    runs: Runs,
    all_candidates: Sequence[Candidate],
    chosen_on: SomeImages,
    others: SomeImages,
    words: Sequence[str],
) -> int:
    """Chooses in a folder that is its own; returns the exit status."""
    options, jobs, folder = runs.options, runs.jobs, runs.folder
    job = next(iter(jobs.values()))
    attacks = job.attacks
    times = runs.times = budget_times.of_variants(options, jobs, all_candidates, folder)
    least = [one.least(options.budget_of, times.get(one.variant.name)) for one in all_candidates]
    affordable = [number for number, cost in enumerate(least) if cost <= options.budget]
    sizes = tuple(options.variants[0].config.threat.sizes) or ("",)
    choice = Choice(
        options=options,
        sizes=sizes,
        threat=f"against {against(attacks[-1])}" if len(attacks) == 1 else _over(attacks),
        candidates=all_candidates,
        too_dear=[number for number in range(len(all_candidates)) if number not in affordable],
        dropped=(),
        front=(),
        chosen_on={},
        reported={},
        commands={},
        images=(len(chosen_on), len(others)),
        passes=0,
        whole=len(chosen_on) * _whole([all_candidates[number] for number in affordable]),
        least=least,
        times=times,
    )
    if not affordable:
        raise ValueError(nothing_left(choice))
    asked = choice_folder.asked_of(options)
    whole_files.write_text(folder / ASKED, json.dumps(asked, indent=1))
    program.say(
        f"{len(affordable)} of {counted(len(all_candidates), 'candidate')} on up to "
        f"{counted(len(chosen_on), 'image')}, then the "
        f"best on {len(others)} others"
    )
    try:
        found_by = _searched(runs, [all_candidates[n] for n in affordable], chosen_on, sizes)
        choice = dataclasses.replace(
            choice,
            dropped=[_renumbered(drop, affordable) for drop in found_by.dropped],
            front=[affordable[one] for one in found_by.front],
            chosen_on={affordable[one]: m for one, m in found_by.measured.items()},
            passes=runs.passes,
        )
        if not choice.front:
            raise ValueError(nothing_left(choice))
        reported = _reported(runs, choice, others)
        choice = _of_readable(choice, reported)
    except Stopped:
        print(f"stopped: what was done is in {folder}; give the same command again")
        return STOPPED
    commands = {
        one: choose_options.command_of(words, all_candidates[one].spec, all_candidates[one].variant)
        for one in choice.front
    }
    timed = budget_times.of_guards(jobs, choice, others) if times else {}
    choice = dataclasses.replace(choice, commands=commands, timed=timed)
    command = program.typed("choose", words)
    content = {**to_json(choice), "provenance": {**job.provenance, "command": command}}
    whole_files.write_text(folder / RESULT, json.dumps(content, indent=1))
    print(as_text(choice, width_of(sys.stdout)))
    print(f"\nresults in {folder}: {RESULT}, and a run folder for each model in reported")
    return 0


def _opened(options: ChooseOptions, variant: Variant, command: str) -> Job:
    """The model and the images; defenses are built apart."""
    some = options.defenses[:1] or ("double_masking:masks_per_axis=2",)
    config = dataclasses.replace(variant.config, defenses=some)
    job = opened(config, command)
    if not job.model.kind.hides_pixels:
        raise ValueError(
            f"--model: expected a model that sees masked images, got {job.model.name} in two "
            f"parts; {program.command('certify')} runs its defenses"
        )
    if variant == options.variants[0]:
        for line in job.notes:
            program.say(line)
    return job


def _searched(
    runs: Runs, entrants: Sequence[Candidate], images: SomeImages, sizes: Sequence[str]
) -> Search:
    """The search over candidates; each round runs what is new in it."""
    options = runs.options
    seen = rungs(len(images), len(entrants)) if options.halving else [len(images)]
    parts: dict[int, list[Measured]] = {number: [] for number in range(len(entrants))}

    def measure(left: Sequence[int], count: int) -> list[Measured]:
        rung = seen.index(count)
        new = images.some(seen[rung - 1] if rung else 0, count)
        for variant in options.variants:
            mine = [number for number in left if entrants[number].variant == variant]
            if not mine:
                continue
            name = f"rounds/{rung + 1}-of-{len(seen)}-{variant.name}"
            program.say(
                f"round {rung + 1} of {len(seen)}: {counted(len(mine), 'candidate')}, "
                f"{counted(count, 'image')}"
            )
            done = runs.certified(name, variant, [entrants[number] for number in mine], new)
            for number in mine:
                parts[number].append(done.measured(entrants[number], options, sizes))
        return [joined(parts[number]) for number in left]

    return search(len(entrants), seen, measure, budget=options.budget, may_lose=options.may_lose)


def _reported(runs: Runs, choice: Choice, images: SomeImages) -> dict[int, Measured]:
    """The front on the images that the choice never saw; writes a run folder a variant."""
    measured: dict[int, Measured] = {}
    for variant in choice.options.variants:
        mine = [one for one in choice.front if choice.candidates[one].variant == variant]
        if not mine:
            continue
        chosen = [choice.candidates[one] for one in mine]
        name = f"reported/{variant.name}"
        program.say(
            f"reported on {counted(len(images), 'other image')}: {counted(len(mine), 'defense')}"
        )
        done: Certified = runs.certified(name, variant, chosen, images)
        write_report(done.report, runs.folder / name, program.say)
        for one in mine:
            measured[one] = done.measured(choice.candidates[one], choice.options, choice.sizes)
    return measured


def _of_readable(choice: Choice, reported: dict[int, Measured]) -> Choice:
    """The choice with what was reported; images that could not be read count nowhere."""
    read = len(choice.chosen_on[choice.front[0]].right), len(reported[choice.front[0]].right)
    whole = choice.whole // choice.images[0] * read[0]
    return dataclasses.replace(choice, reported=reported, images=read, whole=whole)


def _check(attacks: Sequence[Threat], sizes: Sequence[str]) -> None:
    """``ValueError`` unless there is one threat, or one for each of growing sizes."""
    if sizes:
        try:
            certified_size.check_sizes([threat.shapes[0] for threat in attacks])
        except ValueError as error:
            raise ValueError(f"--sizes: {error}") from error
    elif len(attacks) != 1:
        raise ValueError(
            f"--patch: expected one threat to choose for, got {len(attacks)}; where the size is "
            "not known give --sizes"
        )


def _over(attacks: Sequence[Threat]) -> str:
    sides = ", ".join("x".join(map(str, threat.shapes[0])) for threat in attacks)
    height, width = attacks[0].image_size
    return f"against patches of {sides} on {height}x{width}"


def _whole(entrants: Sequence[Candidate]) -> int:
    """Passes of an image for whole tables of all, each masked image of a variant once."""
    total = 0
    for name in dict.fromkeys(one.variant.name for one in entrants):
        mine = [one for one in entrants if one.variant.name == name]
        columns, _ = evaluation.merged([one.defenses[0] for one in mine])
        total += mine[0].passes_each * len(columns)
    return total


def _renumbered(drop: Dropped, numbers: Sequence[int]) -> Dropped:
    """With the numbers of all candidates for those of the ones that were run."""
    by = None if drop.by is None else numbers[drop.by]
    return drop._replace(candidate=numbers[drop.candidate], by=by)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status.

    0: done; 2: bad input, or nothing meets the budget; 3: stopped by ``--max-minutes``, to be
    resumed; 130: interrupted.
    """
    return program.run(
        lambda: _run(argv), interrupted="interrupted; give the same command again to go on"
    )


def _run(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    return run(choose_options.read(parser().parse_args(words)), words)
