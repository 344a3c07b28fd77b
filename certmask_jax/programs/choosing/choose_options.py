"""The command line of ``certmask choose``: that of certify, and what is to be chosen."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shlex
from collections.abc import Sequence

from certmask_jax.programs import certification_options, page_options, program
from certmask_jax.programs.certification_config import Config, read_config
from certmask_jax.programs.command_line import CommandLine, check_not_typed
from certmask_jax.programs.number_options import number, seed, whole

BUDGETS = {
    "answer": "the mean of answers alone, with early exit, as a guarded classifier makes them",
    "table": "the whole table of an image, as a service with a fixed time makes it",
}
_OTHERWISE = (
    *("list", "from_tables", "dry_run", "shard", "decide", "two_parts", "patched", "format"),
    *("distributed", "page", "keep_evidence", *page_options.DESTINATIONS),
)
"""Options of certify that have no use here."""
_OWN = (
    *("budget", "budget_of", "calibrate", "choice_seed", "least_clean", "floor", "size_weights"),
    *("halving", "may_lose", "defense", "fill", "views", "out", "max_minutes"),
)
"""Options that are not repeated in the command of one choice."""
_EPILOG = """A choice is only as good as the images that it was made on, so it is made on some and
reported on others. Example:
  {command} --dataset cifar10 --data-dir DIR \\
      --model cifar_resnet20 --weights FILE --patch 5 --num-images 1000 \\
      --budget 30 --views none/mirror"""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model as candidates may have it, with one fill and one list of views."""

    fill: str
    views: str
    config: Config

    @property
    def name(self) -> str:
        """As it is in the name of a folder."""
        return f"{self.fill},{self.views}".replace(",", "-").replace("+", "-")


@dataclasses.dataclass(frozen=True)
class ChooseOptions:
    """What to choose; one field for each option."""

    variants: tuple[Variant, ...]
    defenses: tuple[str, ...]  # none: a list that fits the images
    budget: float
    unit: str  # of the budget: "passes" or "ms"
    budget_of: str
    calibrate: int | None
    seed: int
    least_clean: float | None  # a fraction
    floors: tuple[tuple[str, float], ...]  # patch size as typed, fraction
    size_weights: tuple[float, ...]
    halving: bool
    may_lose: float  # a fraction


def parser() -> CommandLine:
    """The command line."""
    parse = certification_options.parser()
    parse.prog = program.command("choose")
    parse.description = (
        "Chooses a defense for a budget of forward passes: measures candidates on some of the "
        "images, drops the worse ones early, and certifies those that are left on the other "
        "images. Prints the front of certified accuracy against passes."
    )
    parse.epilog = _EPILOG.format(command=program.command("choose"))
    changed = {
        "defense": "a candidate; repeat for several (default: pair covers, double and challenger "
        "masking in many sizes, all that recover and fit the images)",
        "fill": "what masked pixels become, as of certify; several candidates with / between, such "
        "as mean/black (default: %(default)s)",
        "views": "views as of certify; several candidates with / between, such as none/mirror "
        "(default: %(default)s)",
        "sizes": "patch sizes of which nobody knows which one comes: each candidate is one "
        "classifier, with masks for the largest, and is judged by its mean over the sizes (see "
        "--size-weights, --floor) (default: --patch)",
        "out": "folder for results, new or of this same command, which then goes on (default: "
        "runs/choose-DATASET-MODEL-HASH)",
    }
    for action in parse._actions:
        if action.dest in _OTHERWISE:
            action.help = argparse.SUPPRESS
        action.help = changed.get(action.dest, action.help)
        if action.dest in ("fill", "views"):
            action.metavar = f"{action.dest.upper()}[/{action.dest.upper()}]"
    group = parse.add_argument_group("what is chosen")
    group.add_argument(
        "--budget",
        type=_budget,
        required=True,
        metavar="PASSES|MILLISECONDSms",
        help="forward passes that an image may take, such as 30; or milliseconds of this machine, "
        "such as 200ms: a chunk of the model is timed first, and what the answers of an image ask "
        "for is counted by that",
    )
    group.add_argument(
        "--budget-of",
        choices=BUDGETS,
        default="answer",
        help="what it is of: "
        + "; ".join(f"{name}, {about}" for name, about in BUDGETS.items())
        + " (default: %(default)s)",
    )
    group.add_argument(
        "--calibrate",
        type=whole(1),
        metavar="N",
        help="choose on N images, drawn at random, and report on the others (default: on half)",
    )
    group.add_argument(
        "--choice-seed",
        type=seed,
        default=0,
        metavar="S",
        help="of that draw (default: %(default)s)",
    )
    group.add_argument(
        "--least-clean",
        type=number(above=0),
        metavar="PERCENT",
        help="only what answers so many images rightly without a patch (default: any)",
    )
    group.add_argument(
        "--floor",
        action="append",
        metavar="SIZE:PERCENT",
        help="only what certifies so many images at that size of --sizes, such as 2%%:60; repeat "
        "for several sizes (default: any)",
    )
    group.add_argument(
        "--size-weights",
        metavar="W,W,...",
        help="how much each size of --sizes counts (default: all the same)",
    )
    group.add_argument(
        "--halving",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look at few images first and at the better candidates on more; --no-halving measures "
        "all of them on all images of the choice (default: --halving)",
    )
    group.add_argument(
        "--may-lose",
        type=number(least=0),
        default=5.0,
        metavar="POINTS",
        help="by halving one is dropped for a better one only once it cannot certify more than "
        "that one by so many percent of the images, with 95%% confidence; larger is quicker "
        "(default: %(default)s)",
    )
    return parse


def read(arguments: argparse.Namespace) -> ChooseOptions:
    """Arguments -> options; ``ValueError`` for what makes no sense."""
    check_not_typed(arguments, _OTHERWISE, "with a choice")
    variants = []
    fills, views = arguments.fill.split("/"), arguments.views.split("/")
    for option, names in (("fill", fills), ("views", views)):
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(
                f"--{option}: expected each candidate once, with / between, got {'/'.join(names)}"
            )
    for fill, view in itertools.product(fills, views):
        one = argparse.Namespace(**{**vars(arguments), "fill": fill, "views": view})
        variants.append(Variant(fill, view, read_config(one)))
    if not arguments.halving:
        check_not_typed(arguments, ("may_lose",), "with --no-halving")
    threat = variants[0].config.threat
    clean = arguments.least_clean
    if clean is not None and clean > 100:
        raise ValueError(f"--least-clean: expected a percent of at most 100, got {clean:g}")
    if not threat.sizes and (arguments.floor or arguments.size_weights):
        option = "--floor" if arguments.floor else "--size-weights"
        raise ValueError(f"{option}: expected --sizes beside it, the sizes that it is about")
    return ChooseOptions(
        variants=tuple(variants),
        defenses=tuple(arguments.defense or ()),
        budget=arguments.budget[0],
        unit=arguments.budget[1],
        budget_of=arguments.budget_of,
        calibrate=arguments.calibrate,
        seed=arguments.choice_seed,
        least_clean=None if clean is None else clean / 100,
        floors=tuple(_floor(text, threat.sizes) for text in arguments.floor or ()),
        size_weights=_weights(arguments.size_weights, len(threat.sizes) or 1),
        halving=arguments.halving,
        may_lose=arguments.may_lose / 100,
    )


def command_of(words: Sequence[str], spec: str, variant: Variant) -> str:
    """The command of certify for one candidate, from the words that choose was given."""
    kept = parser().without(words, _OWN)
    more = ["--defense", spec]
    more += ["--fill", variant.fill] if variant.fill != "mean" else []
    more += ["--views", variant.views] if variant.views != "none" else []
    return f"{program.command('certify')} {shlex.join([*kept, *more])}"


def _budget(text: str) -> tuple[float, str]:
    """argparse's type of a budget: how much, and of what."""
    amount = text.removesuffix("ms")
    try:
        return number(above=0)(amount), "passes" if amount == text else "ms"
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected passes such as 30, or milliseconds such as 200ms, more than 0, got {text!r}"
        ) from error


def _floor(text: str, sizes: Sequence[str]) -> tuple[str, float]:
    size, colon, percent = text.rpartition(":")
    try:
        share = float(percent) / 100
    except ValueError:
        share = -1.0
    if not colon or not 0 <= share <= 1:
        raise ValueError(f"--floor: expected SIZE:PERCENT such as 2%:60, got {text!r}")
    if size not in sizes:
        raise ValueError(f"--floor {text}: expected a size of --sizes ({', '.join(sizes)})")
    return size, share


def _weights(text: str | None, count: int) -> tuple[float, ...]:
    """Weights that add up to 1."""
    if text is None:
        return (1 / count,) * count
    try:
        given = [float(part) for part in text.split(",")]
    except ValueError:
        given = []
    if len(given) != count or min(given, default=-1) < 0 or not 0 < sum(given) < float("inf"):
        raise ValueError(
            f"--size-weights: expected {count} numbers of at least 0, one for each size, such as "
            f"{','.join(['1'] * count)}, got {text!r}"
        )
    return tuple(weight / sum(given) for weight in given)
