"""What a choice found, as text for a terminal and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from certmask_jax._text import counted
from certmask_jax.certification.report import Interval, layout, wilson_interval
from certmask_jax.certification.report.numbers import with_interval
from certmask_jax.certification.successive_halving import Dropped, Measured, mean_interval
from certmask_jax.programs.choosing.choose_candidates import Candidate
from certmask_jax.programs.choosing.choose_options import BUDGETS, ChooseOptions
from certmask_jax.programs.choosing.wave_times import WaveTimes, as_json

_UNITS = {"passes": "passes", "ms": "milliseconds"}


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """A finished choice.

    Attributes:
      sizes: patch sizes as typed; one empty word where there is one threat.
      threat: what is proved against, in words.
      candidates: all of them; other members name them by their numbers.
      too_dear: those whose least passes are above the budget, which were never run.
      dropped: those that were dropped, in order.
      front: those that were chosen, by passes.
      chosen_on: front number -> what it did on the images of the choice.
      reported: front number -> what it did on the other images.
      commands: front number -> the command of certify.
      images: how many it was chosen on, and how many others there are to report on; of a finished
        choice without those that could not be read.
      passes: forward passes made on the images of the choice.
      whole: what whole tables of all candidates that were run would have taken there.
      least: of each candidate, what any image costs at least.
      times: of chunks for each variant, where the budget is of milliseconds.
      timed: front number -> what its guard was timed at, where the budget is of milliseconds.
    """

    options: ChooseOptions
    sizes: tuple[str, ...]
    threat: str
    candidates: Sequence[Candidate]
    too_dear: Sequence[int]
    dropped: Sequence[Dropped]
    front: Sequence[int]
    chosen_on: dict[int, Measured]
    reported: dict[int, Measured]
    commands: dict[int, str]
    images: tuple[int, int]
    passes: int
    whole: int
    least: Sequence[float]
    times: Mapping[str, WaveTimes] = dataclasses.field(default_factory=dict)
    timed: Mapping[int, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def name(self, number: int) -> str:
        """A candidate in a line."""
        one = self.candidates[number]
        several = len(self.options.variants) > 1
        variant = f" --fill {one.variant.fill} --views {one.variant.views}" if several else ""
        return f"{one.spec}{variant}"


def as_text(choice: Choice, width: int) -> str:
    """The front with intervals, what was dropped and the commands, in lines of ``width``."""
    options = choice.options
    on, others = choice.images
    top = [
        f"{counted(len(choice.candidates), 'candidate')} {choice.threat}, at most "
        f"{options.budget:g} "
        f"{options.unit} an image: {BUDGETS[options.budget_of]}",
        f"chosen on {counted(on, 'image')} (seed {options.seed}); the numbers below are of the "
        "other "
        f"{others:,}, which the choice never saw",
    ]
    what = "worst case" if len(choice.sizes) == 1 else "worst case, mean over sizes"
    names = [f"{number}." for number in range(1, len(choice.front) + 1)]
    of = [choice.reported[one] for one in choice.front]
    before = [choice.chosen_on[one] for one in choice.front]
    columns = [
        layout.Column("", tuple(names)),
        layout.Column(options.unit, tuple(f"{m.cost:.1f}" for m in of), right=True),
        layout.Column("clean", tuple(map(_clean, of))),
        layout.Column(what, tuple(map(_worth, of))),
        layout.Column("where chosen", tuple(f"{100 * m.worth:.1f}" for m in before), right=True),
    ]
    if choice.timed:
        timed = tuple(f"{choice.timed[one]['mean']:.1f}" for one in choice.front)
        columns.insert(2, layout.Column("timed", timed, right=True))
    lines = layout.table(columns)
    legend = [f"{n} {choice.name(one)}" for n, one in zip(names, choice.front, strict=True)]
    for name, one in zip(names, choice.front, strict=True):
        each = choice.reported[one].demands
        legend += [f"{name} {d.name}: {100 * d.share:.1f}, asked {100 * d.least:g}" for d in each]
    above = [
        f"{name} takes {m.cost:.1f} {options.unit} on these images, more than the budget: it kept "
        "to it on those of the choice"
        for name, m in zip(names, of, strict=True)
        if m.cost > options.budget
    ]
    explained = [
        "worst case: % of images on which no attacker can win, as of certify; brackets: 95% "
        "intervals. where chosen: the same on the images of the choice, which flatters what was "
        "chosen on them",
        *_about_times(choice),
        *_about_dropped(choice),
        f"passes made to choose: {choice.passes:,}, of {choice.whole:,} for whole tables of all "
        f"candidates that were run, {choice.passes / max(choice.whole, 1):.0%}",
    ]
    commands = ["to certify all images, those of the choice among them:"]
    commands += [f"{n} {choice.commands[one]}" for n, one in zip(names, choice.front, strict=True)]
    parts = [
        layout.paragraphs(top, width),
        lines,
        layout.paragraphs([*legend, *above], width),
        layout.paragraphs(explained, width),
        commands,  # whole lines, to be copied
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def to_json(choice: Choice) -> dict[str, Any]:
    """The same, JSON-able: fractions, and every candidate."""
    options = choice.options
    return {
        "budget": options.budget,
        "budget_unit": options.unit,
        "budget_of": options.budget_of,
        "threat": choice.threat,
        "sizes": [size for size in choice.sizes if size],
        "size_weights": list(options.size_weights),
        "seed": options.seed,
        "images": {"chosen_on": choice.images[0], "reported_on": choice.images[1]},
        "passes": {"made_to_choose": choice.passes, "whole_tables": choice.whole},
        "candidates": [_candidate(one) for one in choice.candidates],
        "too_dear": list(choice.too_dear),
        "dropped": [drop._asdict() for drop in choice.dropped],
        "front": [
            {
                "candidate": one,
                "command": choice.commands[one],
                "chosen_on": _numbers(choice.chosen_on[one], options.unit),
                "reported_on": _numbers(choice.reported[one], options.unit),
                **({"timed": dict(choice.timed[one])} if one in choice.timed else {}),
            }
            for one in choice.front
        ],
        **(
            {"milliseconds_a_chunk": {name: as_json(of) for name, of in choice.times.items()}}
            if choice.times
            else {}
        ),
        "measured": {str(one): _numbers(m, options.unit) for one, m in choice.chosen_on.items()},
    }


def nothing_left(choice: Choice) -> str:
    """One sentence on why no candidate is left, and what to do."""
    options = choice.options
    least, unit = min(choice.least), options.unit
    typed = f"--budget {options.budget:g}{'ms' if unit == 'ms' else ''}"
    if len(choice.too_dear) == len(choice.candidates):
        return (
            f"{typed}: expected at least {least:.4g} {unit} an image, which the "
            f"cheapest of {counted(len(choice.candidates), 'candidate')} takes"
        )
    near = [
        f"{choice.name(one)} takes {m.cost:.1f} {unit}"
        + "".join(f", {d.name} {100 * d.share:.1f} of {100 * d.least:g}" for d in m.demands)
        for one, m in choice.chosen_on.items()
    ]
    why = sorted({drop.why for drop in choice.dropped if drop.why != "beaten"})
    cheapest = min(choice.dropped, key=lambda drop: drop.cost, default=None)
    if not near and cheapest is not None:
        near = [
            f"all were dropped for {' and '.join(why)}: the cheapest, "
            f"{choice.name(cheapest.candidate)}, took {cheapest.cost:.1f} {unit} on "
            f"{counted(cheapest.images, 'image')}"
        ]
    said = "; ".join(near[:3])
    return (
        f"no candidate of {len(choice.candidates)} keeps to {typed} and all "
        f"demands on the {counted(choice.images[0], 'image')} of the choice ({said}); ask for "
        "less, or name "
        "other candidates with --defense"
    )


def _candidate(one: Candidate) -> dict[str, Any]:
    return {
        "defense": one.spec,
        "fill": one.variant.fill,
        "views": one.variant.views,
        "masked_images": len(one.defenses[0].masked_images),
        "passes_each": one.passes_each,
    }


def _numbers(measured: Measured, unit: str) -> dict[str, Any]:
    clean = float(measured.right.mean())
    count = len(measured.right)
    return {
        _UNITS[unit]: measured.cost,
        f"{_UNITS[unit]}_interval": mean_interval(measured.costs),
        "clean_accuracy": clean,
        "clean_accuracy_interval": wilson_interval(clean, count),
        "worst_case_accuracy": measured.worth,
        "worst_case_accuracy_interval": _interval(measured),
        "demands": {d.name: {"share": d.share, "asked": d.least} for d in measured.demands},
    }


def _interval(measured: Measured) -> Interval:
    """Wilson's; of a mean over patch sizes too, which varies less than zeros and ones do."""
    return wilson_interval(measured.worth, len(measured.certified))


def _clean(measured: Measured) -> str:
    share = float(measured.right.mean())
    return with_interval(share, wilson_interval(share, len(measured.right)))


def _worth(measured: Measured) -> str:
    return with_interval(measured.worth, _interval(measured))


def _about_times(choice: Choice) -> list[str]:
    """Where milliseconds come from."""
    lines = []
    several = len(choice.times) > 1
    whole = choice.options.budget_of == "table"
    counted = "a whole table" if whole else "what an answer asks for at once"
    early = ", which ends before its whole table where it can" if whole else ""
    for name, times in choice.times.items():
        chunks = ", ".join(
            f"{size} in {ms:.1f}" for size, ms in zip(times.sizes, times.milliseconds, strict=True)
        )
        of = f" of {name}" if several else ""
        lines.append(
            f"ms: {counted}, by the time of a chunk{of} on this machine "
            f"before the search (masked images in ms: {chunks})"
        )
    if choice.timed:
        images = int(next(iter(choice.timed.values()))["images"])
        lines.append(
            f"timed: the mean of the guarded classifier itself on {images} of these images, one at "
            f"a time{early}; another load of the machine gives other times"
        )
    return lines


def _about_dropped(choice: Choice) -> list[str]:
    lines = []
    if choice.too_dear:
        lines.append(
            "not run, as every image takes more than the budget: "
            f"{counted(len(choice.too_dear), 'candidate')}"
        )
    whys = [drop.why for drop in choice.dropped if drop.why != "beaten"]
    for why in dict.fromkeys(whys):
        lines.append(f"dropped for {why}: {counted(whys.count(why), 'candidate')}")
    beaten = [drop for drop in choice.dropped if drop.why == "beaten"]
    if beaten:
        most = max(drop.at_most for drop in beaten)
        lines.append(
            "dropped for a better one before all images were seen: "
            f"{counted(len(beaten), 'candidate')}; what "
            f"beat it certifies at most {100 * most:.1f} points less (95%, each comparison by "
            "itself)"
        )
    return lines
